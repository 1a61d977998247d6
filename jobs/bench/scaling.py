"""`fullres bench scaling`: how much faster more workers are, on a stream of images, in one run.

Beside it what the machine itself gives: as many bare processes, which run the same grains without Ray, files
or merging. Processes share memory and caches, so two are not always twice as fast as one.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from fullres.cluster.connection import ray_cluster
from fullres.cluster.coordinator import Coordinator
from fullres.cluster.stream import Options, Progress, Task
from fullres.jobs.bench.variants import check_network, describe, network_of
from fullres.jobs.common import (
    AddressOption,
    PrecisionChoice,
    choose_precision,
    console,
    parse_bytes,
    parse_counts,
    print_table,
)
from fullres.ops.allocator import RETURNING, suit_allocator
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import read_image, write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.engines import Resources, SplitMerge
from fullres.pipeline.predict.outputs import write_outputs
from fullres.pipeline.scenes import render_scene


def scaling(
    model: Annotated[str, typer.Option(help="An SMP network.")] = "smp18",
    width: Annotated[
        float | None,
        typer.Option(min=0.01, help="Random weights of this width instead of the shipped ones."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Length of the stream.")] = 4,
    height: Annotated[int, typer.Option(min=32)] = 1024,
    scene_width: Annotated[int, typer.Option(min=32)] = 2048,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="auto: bf16 where the CPU computes it natively.")
    ] = PrecisionChoice.bf16,
    workers: Annotated[
        str, typer.Option(help="Numbers of workers to compare, the first is the base.")
    ] = "1,2",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    memory_budget: Annotated[str, typer.Option()] = "4GiB",
    address: AddressOption = None,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """The stream is read, predicted and written as `fullres predict` does it; starting the workers is not
    counted."""
    check_network(model, width)
    counts = parse_counts("--workers", workers)
    chosen, budget = choose_precision(precision, "cpu"), parse_bytes(memory_budget)
    engine = SplitMerge(network_of(model, width))
    rates: dict[int, list[dict[str, float]]] = {n: [] for n in counts}
    with tempfile.TemporaryDirectory() as name, ray_cluster(address, max(counts)):
        folder = Path(name)
        for i in range(images):
            write_png(folder / f"{i}.png", render_scene(i, height, scene_width)[0])
        tasks = [Task(folder / f"{i}.png", Path(str(i))) for i in range(images)]
        for index in range(rounds):
            for count in counts:
                console.print(f"round {index + 1}/{rounds}: {count} worker(s)", highlight=False)
                options = Options(chosen, budget, count, "cpu")
                row = _measure(Coordinator(engine, options), tasks, folder / "out")
                rates[count].append(row | {"bare": _bare_seconds(engine, tasks[0].path, options, count)})
    result = _compare(rates, counts)
    _show(
        result,
        f"{images} images {scene_width}x{height}, {model} {describe(width)}, {chosen}, {rounds} round(s)",
    )
    if json_out:
        write_bytes_atomically(json_out, json.dumps({"rows": result, "runs": rates}, indent=2).encode())


def _measure(coordinator: Coordinator, tasks: list[Task], out: Path) -> dict[str, float]:
    palette = dataset("scenes").palette

    def write(task: Task, image: Any, result: Any) -> None:
        write_outputs(out, task.stem, image, result, palette, ())

    coordinator.wait_for_workers()
    begin = time.monotonic()
    progress: Progress = coordinator.run(tasks, read_image, write)
    wall = time.monotonic() - begin
    coordinator.close()
    pixels = progress.image_bytes // 3
    return {
        "seconds": wall,
        "busy": sum(w.busy for w in progress.workers) / (wall * len(progress.workers)),
        "bytes": (progress.bytes_out + progress.bytes_back) / (pixels * 4),
    }


def _bare_seconds(engine: SplitMerge, path: Path, options: Options, count: int) -> float:
    """Seconds an image of `count` processes that label one each, all at the same time."""
    os.environ.update(RETURNING)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(count)
    with context.Pool(count, _join, (together,)) as pool:
        times = pool.starmap(_label, [(engine, path, options)] * count, chunksize=1)
    return 1 / sum(1 / seconds for seconds in times)


_together: Barrier  # of a bare process


def _join(together: Barrier) -> None:
    global _together
    _together = together


def _label(engine: SplitMerge, path: Path, options: Options) -> float:
    """Seconds of all grains of an image in this process, from when the others begin theirs."""
    torch.set_num_threads(1)
    image = read_image(path)
    resources = Resources(1, options.memory_budget, options.precision, "cpu", 1)
    plan = engine.plan((image.shape[0], image.shape[1]), resources, scores=False)
    predictor = engine.predictor(torch.device("cpu"), options.precision)
    suit_allocator(plan.schedule.peak_bytes, options.memory_budget)
    parts = engine.parts(plan, image)
    predictor.run(plan.schedule, plan.grains[0], parts[0], False)  # warm
    _together.wait()
    begin = time.perf_counter()
    for grain in plan.grains:
        predictor.run(plan.schedule, grain, parts[grain.tile], False)
    return time.perf_counter() - begin


def _compare(rates: dict[int, list[dict[str, float]]], counts: list[int]) -> dict[int, dict[str, float]]:
    base = rates[counts[0]]
    return {
        n: {
            "seconds": statistics.median(r["seconds"] for r in rates[n]),
            "speedup": statistics.median(
                b["seconds"] / r["seconds"] for b, r in zip(base, rates[n], strict=True)
            ),
            "bare": statistics.median(b["bare"] / r["bare"] for b, r in zip(base, rates[n], strict=True)),
            "busy": statistics.median(r["busy"] for r in rates[n]),
            "bytes": rates[n][0]["bytes"],
        }
        for n in counts
    }


def _show(result: dict[int, dict[str, float]], title: str) -> None:
    table = Table(title=title)
    for heading in (
        "workers", "seconds", "times as fast", "bare processes", "busy", "bytes moved / (image + labels)",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for n, row in result.items():
        table.add_row(
            str(n),
            f"{row['seconds']:.2f}",
            f"{row['speedup']:.3f}",
            f"{row['bare']:.3f}",
            f"{row['busy']:.1%}",
            f"{row['bytes']:.3f}",
        )
    print_table(table)
