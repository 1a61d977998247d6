"""`fullres bench targets`: the targets job beside a loop that only decodes the same label maps."""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.table import Table

from fullres.cluster import targets as cluster_targets
from fullres.cluster.connection import ray_cluster
from fullres.jobs.common import check_writable, clear_errors, console, print_table
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import write_png
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets.cityscapes import SCENES
from fullres.pipeline.datasets.layout import find_stored_frames
from fullres.pipeline.scenes import render_scene
from fullres.pipeline.targets.compute import TargetSpec

_SCENES = 8  # different label maps; the others are these under other names


def targets(
    maps: Annotated[
        int, typer.Option(min=512, help="How many label maps. With few, the workers' start is measured.")
    ] = 2048,
    height: Annotated[int, typer.Option(min=16)] = 1024,
    width: Annotated[int, typer.Option(min=16)] = 2048,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the loop, and workers of the job.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
) -> None:
    """PNG to 8x8 sampling tensors in Parquet, and PNG to arrays with OpenCV. Starting the processes is not
    counted: the job's rate is that of the last three quarters of the maps, when all its workers work."""
    runs: list[dict[str, float]] = []
    if json_out:
        with clear_errors():
            check_writable(json_out)
    with tempfile.TemporaryDirectory() as name, ray_cluster(None, workers):
        root = Path(name) / "scenes"
        _make(root, maps, height, width)
        source = Storage(str(root))
        frames = find_stored_frames(source, SCENES, "all").frames
        paths = [root / frame.labels for frame in frames]
        for index in range(rounds):
            console.print(f"round {index + 1}/{rounds}", highlight=False)
            loop = _decode_rate(paths, workers)
            runs.append({"loop": loop, **_job(frames, source, Storage(f"{name}/{index}"), workers)})
    _show(runs, f"{maps} label maps of {width}x{height}, {workers} processes, {rounds} round(s)")
    if json_out:
        with clear_errors():
            write_bytes_atomically(json_out, json.dumps(runs, indent=2).encode())


def _make(root: Path, maps: int, height: int, width: int) -> None:
    for index in range(maps):
        for kind in ("images", "labels"):
            path, first = (root / kind / f"{i:06}.png" for i in (index, index % _SCENES))
            if index < _SCENES:
                write_png(path, render_scene(index, height, width)[kind == "labels"])
            else:
                os.link(first, path)


def _decode_rate(paths: list[Path], workers: int) -> float:
    """Label maps a second that `workers` processes together read and decode."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return sum(pool.map(_decode, [paths[i::workers] for i in range(workers)], chunksize=1))


def _decode(paths: list[Path]) -> float:
    begin = time.perf_counter()
    for path in paths:
        cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    return len(paths) / (time.perf_counter() - begin)


def _job(frames: list[Any], source: Storage, out: Storage, workers: int) -> dict[str, float]:
    seen: list[tuple[int, float, int]] = []  # maps done, seconds, resident bytes of a worker

    def report(progress: cluster_targets.Progress) -> None:
        if progress.done:
            seen.append((progress.done, progress.seconds, progress.resident_bytes))

    cluster_targets.run(frames, source, out, SCENES, "all", TargetSpec(), workers, report=report)
    (first, begin, _), (last, end, _) = next(s for s in seen if s[0] >= len(frames) / 4), seen[-1]
    quarter = max(1, len(seen) // 4)
    return {
        "job": (last - first) / (end - begin),
        "early_bytes": statistics.median(resident for _, _, resident in seen[:quarter]),
        "late_bytes": statistics.median(resident for _, _, resident in seen[-quarter:]),
    }


def _show(runs: list[dict[str, float]], title: str) -> None:
    table = Table(title=title)
    columns = {
        "decoding, maps/s": lambda run: f"{run['loop']:.1f}",
        "targets, maps/s": lambda run: f"{run['job']:.1f}",
        "share": lambda run: f"{run['job'] / run['loop']:.3f}",
        "a worker's MiB in the first quarter": lambda run: f"{run['early_bytes'] / 2**20:.0f}",
        "in the last": lambda run: f"{run['late_bytes'] / 2**20:.0f}",
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(*(cell(run) for cell in columns.values()))
    print_table(table)
