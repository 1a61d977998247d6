"""`fullres bench parity`: whether a training is the same however it is computed, in one run.

Every network is trained on the same drawn scenes and seed by plain torch in this process, which is the
reference, and by workers. Networks are narrow and learn slowly: where a layer has few values a channel,
batch norm makes rounding larger from step to step, whoever computes it. How much larger is measured too: this
process trains once more from weights of which each is the next number that fp32 has, above or below. A layout
that rounds otherwise cannot be closer to the reference than that.
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
from fullres.jobs.common import AddressOption, console, print_table
from fullres.models.catalogue import CATALOGUE
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import write_png
from fullres.pipeline.scenes import render_scene
from fullres.pipeline.train.config import TrainingConfig, extended
from fullres.pipeline.train.engine import objective_of
from fullres.pipeline.train.loop import fit

_NETWORKS = ("fcn8s18", "smp18", "pspnet50", "spgnet18x2", "seethroughnet48", "deeplabv3plus50")
_SCENES = 12
_CROP = 128

_ROUNDED = "one process, weights rounded otherwise"
_PARTS = {"accumulation": 2}
_PHASES = {"phases": (2, 1, 2, 1)}
# Name, workers (None: this process), what differs from the configuration, and the run it is held against.
# Accumulated parts have a batch norm each.
Layout = tuple[str, int | None, dict[str, Any], str | None]
_LAYOUTS: tuple[Layout, ...] = (
    ("one process", None, {}, None),
    (_ROUNDED, None, {}, "one process"),
    ("activation checkpointing", None, {"activation_checkpointing": True}, "one process"),
    ("one worker", 1, {}, "one process"),
    ("two workers", 2, {}, "one process"),
    ("two workers, ZeRO 1", 2, {"parallel": {"zero": 1}}, "one process"),
    ("two workers, ZeRO 2", 2, {"parallel": {"zero": 2}}, "one process"),
    ("two workers, ZeRO 3", 2, {"parallel": {"zero": 3}}, "one process"),
    ("accumulation 2", None, _PARTS, None),
    ("two workers, accumulation 2", 2, _PARTS, "accumulation 2"),
    ("two stages", 2, {**_PARTS, "parallel": {"pipeline": 2}}, "accumulation 2"),
    ("four stages", 4, {**_PARTS, "parallel": {"pipeline": 4}}, "accumulation 2"),
    ("two stages of two replicas", 4, {**_PARTS, "parallel": {"pipeline": 2, "data": 2}}, "accumulation 2"),
)
_OF_SMP: tuple[Layout, ...] = (
    ("four phases", None, _PHASES, None),
    ("two workers share four phases", 2, {**_PHASES, "parallel": {"split": 2}}, "four phases"),
)


def parity(
    networks: Annotated[str, typer.Option(help="Names of the catalogue.")] = ",".join(_NETWORKS),
    width: Annotated[float, typer.Option(min=0.01)] = 0.125,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    learning_rate: Annotated[float, typer.Option()] = 1e-4,
    address: AddressOption = None,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Train by one process and by several, and compare the losses of all steps."""
    rows: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ray_cluster(address, 4):
        scenes = write_scenes(Path(name), _CROP + 32, _CROP + 64)
        for network in networks.split(","):
            given = {
                "model": {"name": network, "width": width}, "steps": steps, "learning_rate": learning_rate,
                "data": {"dataset": "scenes", "root": str(scenes), "split": "all", "workers": 0},
                "batch_size": 4, "crop": (_CROP, _CROP), "optimizer": "sgd", "report_every": 1,
            }  # fmt: skip
            losses: dict[str, list[float]] = {}
            smp = _OF_SMP if CATALOGUE[network].splits else ()
            for layout, workers, differing, reference in (*_LAYOUTS, *smp):
                console.print(f"{network}: {layout}")
                out = Path(name) / f"{network}-{layout}"
                config = TrainingConfig(**extended(given, {**differing, "out": out}))
                if layout == _ROUNDED:
                    config = _rounded(config, Path(name) / f"{network}.safetensors")
                if workers is None:
                    fit(config, torch.device("cpu"))
                else:
                    training.fit(config, workers)
                lines = (out / "metrics.jsonl").read_text().splitlines()
                losses[layout] = [json.loads(line)["loss"] for line in lines]
                if reference is not None:
                    largest = _difference(losses[layout], losses[reference])
                    rows.append(
                        {"network": network, "layout": layout, "beside": reference, "difference": largest}
                    )
    if json_out is not None:
        json_out.write_text(json.dumps(rows, indent=1))
    table = Table(box=None, pad_edge=False)
    for heading in ("network", "layout", "beside", "largest relative difference of a loss"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(row["network"], row["layout"], row["beside"], f"{row['difference']:.1e}")
    print_table(table, 110)


def _rounded(config: TrainingConfig, path: Path) -> TrainingConfig:
    """With weights from a file: each a unit in its last place from where it would start. Auxiliary heads
    start as they would."""
    network = objective_of(config, config.data.known(), False, False).network
    noise = torch.Generator().manual_seed(0)
    for p in network.parameters():
        towards = torch.where(torch.rand(p.shape, generator=noise) < 0.5, -torch.inf, torch.inf)
        p.data = torch.nextafter(p.data, towards)
    network.auxiliary = None  # type: ignore[assignment]
    classes = len(config.data.known().classes)
    info = WeightsInfo(config.model.name, config.model.width, classes, like=config.model.like)
    save_weights(network, path, info)
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": path})})


def write_scenes(folder: Path, height: int, width: int) -> Path:
    """A folder data set of drawn scenes."""
    scenes = folder / "scenes"
    for seed in range(_SCENES):
        image, labels = render_scene(seed, height, width)
        write_png(scenes / f"images/{seed}.png", image)
        write_png(scenes / f"labels/{seed}.png", labels)
    return scenes


def _difference(ours: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))
