"""`fullres bench smp`: split-merge against the ways people have today, same weights, same image, one run."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from fullres.jobs.bench.variants import check_network, describe
from fullres.jobs.common import (
    PrecisionChoice,
    choose_precision,
    clear_errors,
    console,
    parse_bytes,
    print_table,
)
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import read_image
from fullres.pipeline.scenes import render_scene

# name in the table, variant, what it is asked beyond the common settings
_ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("split-merge", "split_merge", {}),
    ("dilated, whole image", "dilated", {}),
    ("sliding windows, 25 % overlap", "sliding", {"overlap": 0.25}),
    ("sliding windows, 50 % overlap", "sliding", {"overlap": 0.5}),
    ("bare convolutions (floor)", "floor", {}),
]


def smp(
    model: Annotated[str, typer.Option(help="An SMP network.")] = "smp18",
    width: Annotated[
        float | None,
        typer.Option(min=0.01, help="Random weights of this width instead of the shipped ones."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A rendered street scene by default.")] = None,
    height: Annotated[int, typer.Option(min=32, help="Of the rendered scene.")] = 1024,
    scene_width: Annotated[int, typer.Option(min=32, help="Of the rendered scene.")] = 2048,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="auto: bf16 where the CPU computes it natively.")
    ] = PrecisionChoice.fp32,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Times each is run, in turn; medians are shown.")] = 3,
    memory_budget: Annotated[str, typer.Option(help="Split-merge's.")] = "4GiB",
    peers: Annotated[bool, typer.Option(help="With the dilated network and sliding windows: slow.")] = True,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
) -> None:
    """Time, peak memory and the share of pixels whose class differs from the exact result, side by side.

    Each run is a process of its own, so that memory is its own; ratios are taken within a round, because
    shared machines drift.
    """
    rows = [row for row in _ROWS if peers or row[1] in ("split_merge", "floor")]
    check_network(model, width)
    chosen, budget = choose_precision(precision, "cpu"), parse_bytes(memory_budget)
    with clear_errors():
        pixels = read_image(image) if image else render_scene(0, height, scene_width)[0]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in rows}
    differing: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "image.npy", pixels)
        for index in range(rounds):
            for name, variant, extra in rows:
                console.print(f"round {index + 1}/{rounds}: {name}", highlight=False)
                request = {
                    "variant": variant, "model": model, "width": width, "precision": chosen,
                    "threads": threads, "memory_budget": budget, "image": f"{folder}/image.npy",
                    "labels": f"{folder}/{len(runs[name])}-{variant}.npy", **extra,
                }  # fmt: skip
                runs[name].append(_measure(request))
                labels = np.load(request["labels"])
                if name == "dilated, whole image":
                    exact = labels
                    differing["split-merge"] = float(
                        (np.load(f"{folder}/{index}-split_merge.npy") != exact).mean()
                    )
                elif variant == "sliding":
                    differing[name] = float((labels != exact).mean())
    result = {name: _row(name, runs, differing) for name in runs}
    _show(
        result,
        f"{model} {describe(width)}, {pixels.shape[1]}x{pixels.shape[0]}, {chosen}, "
        f"{threads} thread(s), {rounds} round(s)",
    )
    if json_out:
        write_bytes_atomically(json_out, json.dumps({"rows": result, "runs": runs}, indent=2).encode())


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "fullres.jobs.bench.variants"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{request['variant']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(name: str, runs: dict[str, list[dict[str, Any]]], differing: dict[str, float]) -> dict[str, Any]:
    ours = runs["split-merge"]
    return {
        "seconds": statistics.median(r["seconds"] for r in runs[name]),
        "ratio": statistics.median(
            r["seconds"] / o["seconds"] for r, o in zip(runs[name], ours, strict=True)
        ),
        "memory": None if "floor" in name else statistics.median(r["memory"] for r in runs[name]),
        "differing": differing.get(name),
    }


def _show(result: dict[str, dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for heading in ("", "seconds", "time / split-merge", "peak memory, MiB", "pixels of another class"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in result.items():
        memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:.0f}"
        share = "" if row["differing"] is None else f"{row['differing']:.4%}"
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['ratio']:.3f}", memory, share)
    print_table(table)
