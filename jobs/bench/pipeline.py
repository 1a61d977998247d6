"""`fullres bench pipeline`: how long the stages of a pipeline wait, beside what is said of ideal ones.

The same steps with more and more parts (`accumulation`, each as large), by one process of plain torch and by
the stages on Ray and DeepSpeed. A part more takes a stage the same time again; what a step takes beyond that
for its parts is waiting, and the step's end: (P - 1) / (m + P - 1) of it with P stages that take equally long
and m parts. Times are medians of the second half of the steps.
"""

import json
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
from fullres.pipeline.train.layout import ParallelConfig
from fullres.pipeline.train.loop import fit

_PARTS = (2, 4, 8)
_AT_HAND = {"in_memory": True, "workers": 0}  # reading would take the stages' processors


def pipeline(
    model: Annotated[str, typer.Option(help="A network of the catalogue.")] = "fcn8s18",
    width: Annotated[float, typer.Option(min=0.01)] = 0.25,
    crop: Annotated[int, typer.Option(min=32)] = 256,
    part: Annotated[int, typer.Option(min=1, help="Images of a part.")] = 2,
    stages: Annotated[int, typer.Option(min=2)] = 2,
    steps: Annotated[int, typer.Option(min=2)] = 16,
    address: AddressOption = None,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Time steps of 2, 4 and 8 parts by one process and by the stages of a pipeline."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"one process": [], "stages": []}
    with tempfile.TemporaryDirectory() as name, ray_cluster(address, stages):
        scenes = write_scenes(Path(name), crop + 64, crop + 128)
        for parts in _PARTS:
            console.print(f"{parts} parts")
            given: dict[str, Any] = {
                "model": {"name": model, "width": width}, "steps": steps, "batch_size": part * parts,
                "data": {"dataset": "scenes", "root": str(scenes), "split": "all", **_AT_HAND},
                "crop": (crop, crop), "learning_rate": 1e-4, "accumulation": parts, "report_every": 1,
            }  # fmt: skip
            plain = TrainingConfig(**given, out=f"{name}/plain-{parts}")
            fit(plain, device)
            times["one process"].append(_seconds(plain))
            staged = TrainingConfig(
                **given, out=f"{name}/staged-{parts}", parallel=ParallelConfig(pipeline=stages)
            )
            training.fit(staged, None)
            times["stages"].append(_seconds(staged))
    rows = [_row(part, stages, i, times) for i in range(len(_PARTS))]
    if json_out is not None:
        json_out.write_text(json.dumps(rows, indent=1))
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    print_table(table, 110)


def _seconds(config: TrainingConfig) -> float:
    """Of a step."""
    lines = [json.loads(line) for line in Path(config.out, "metrics.jsonl").read_text().splitlines()]
    seconds = sorted(config.batch_size / line["images_per_second"] for line in lines[len(lines) // 2 :])
    return seconds[len(seconds) // 2]


def _row(part: int, stages: int, index: int, times: dict[str, list[float]]) -> dict[str, float]:
    parts, staged = _PARTS[index], times["stages"]
    of_part = (staged[-1] - staged[0]) / (_PARTS[-1] - _PARTS[0])
    return {
        "parts": parts,
        "one process, images/s": part * parts / times["one process"][index],
        "stages, images/s": part * parts / staged[index],
        "beside one process": times["one process"][index] / staged[index],
        "waiting": 1 - parts * of_part / staged[index],
        "(P - 1) / (m + P - 1)": (stages - 1) / (parts + stages - 1),
    }
