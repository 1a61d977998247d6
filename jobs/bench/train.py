"""`fullres bench train`: what the workers of a training cost and bring, in one run.

The same steps on the same drawn scenes by plain torch in this process; by one worker and by two, on Ray and
DeepSpeed; and by two bare processes of plain torch at once, which share nothing: what two workers could reach
at best on this machine. A bare process computes what a worker of two does: half of the batch, by one thread.
Rates are those of the second half of the steps.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from fullres.cluster import training
from fullres.cluster.connection import ray_cluster
from fullres.jobs.bench.parity import write_scenes
from fullres.jobs.common import AddressOption, console, print_table
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.loop import fit

_BARE = """
import sys, torch
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.loop import fit
torch.set_num_threads(1)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
fit(TrainingConfig.model_validate_json(sys.argv[1]), device)
"""


def train(
    model: Annotated[str, typer.Option(help="A network of the catalogue.")] = "smp18",
    width: Annotated[float, typer.Option(min=0.01)] = 0.25,
    crop: Annotated[int, typer.Option(min=32)] = 256,
    batch_size: Annotated[int, typer.Option(min=2)] = 8,
    steps: Annotated[int, typer.Option(min=2)] = 40,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    address: AddressOption = None,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Time steps of one process, one worker, two workers and two bare processes."""
    if batch_size % 2 or steps % 2:
        raise typer.BadParameter(f"batch_size is {batch_size}, steps is {steps}: even numbers")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ray_cluster(address, 2):
        scenes = write_scenes(Path(name), crop + 64, crop + 128)
        for number in range(rounds):

            def config(layout: str, number: int = number, **changes: Any) -> TrainingConfig:
                given: dict[str, Any] = {
                    "model": {"name": model, "width": width}, "steps": steps, "batch_size": batch_size,
                    "data": {"dataset": "scenes", "root": str(scenes), "split": "all", "workers": 1},
                    "augmentation": {"scale": (0.75, 1.5)}, "crop": (crop, crop), "learning_rate": 1e-4,
                    "report_every": steps // 2, "out": Path(name) / f"{layout}-{number}",
                }  # fmt: skip
                return TrainingConfig(**(given | changes))

            console.print(f"round {number + 1} of {rounds}")
            plain, one, two = config("plain"), config("one"), config("two")
            fit(plain, device)
            training.fit(one, 1)
            training.fit(two, 2)
            bare = [config(f"bare-{i}", batch_size=batch_size // 2) for i in (0, 1)]
            command = [sys.executable, "-c", _BARE]
            processes = [subprocess.Popen([*command, c.model_dump_json(exclude_none=True)]) for c in bare]
            if any([process.wait() for process in processes]):
                raise RuntimeError("a bare process failed")
            rows += [
                {"layout": "one process", **_report(plain)},
                {"layout": "one worker", **_report(one)},
                {"layout": "two workers", **_report(two)},
                {"layout": "two bare processes", **_sum(*map(_report, bare))},
            ]
    if json_out is not None:
        json_out.write_text(json.dumps(rows, indent=1))
    _print(rows)


def _report(config: TrainingConfig) -> dict[str, float]:
    """The last line of the metrics: of the second half of the steps."""
    lines = Path(config.out, "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    return {name: last[name] for name in ("images_per_second", "waiting", "memory")}


def _sum(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {
        "images_per_second": one["images_per_second"] + other["images_per_second"],
        "waiting": max(one["waiting"], other["waiting"]),
        "memory": max(one["memory"], other["memory"]),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("layout", "images/s", "beside one process", "waiting", "memory of the first, MiB"):
        table.add_column(heading, no_wrap=True)
    for i, row in enumerate(rows):
        plain = rows[i - i % 4]["images_per_second"]
        rate, memory = row["images_per_second"], f"{row['memory']:.0f}"
        table.add_row(row["layout"], f"{rate:.2f}", f"{rate / plain:.3f}", f"{row['waiting']:.1%}", memory)
    print_table(table, 110)
