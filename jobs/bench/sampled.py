"""`fullres bench sampled`: what it costs to label frames from few of their pixels, step by step, in one run.

Uniform and adaptive take turns on the same drawn frames, on one core. Of the adaptive way the steps are timed
alone too: making the frame small for the downsampler, the downsampler, reading pixels, the network, and
interpolating with argmax. Then a stream of the frames goes over one and several workers.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from rich.table import Table

from fullres.cluster.connection import ray_cluster
from fullres.cluster.coordinator import Coordinator
from fullres.cluster.stream import Options, Task
from fullres.jobs.common import AddressOption, clear_errors, parse_counts, print_table
from fullres.models.catalogue import CATALOGUE
from fullres.models.weights import WeightsError, load_own_network
from fullres.ops.interpolate import interpolate_labels
from fullres.ops.sampling import sample
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.predict.adaptive import Adaptive, adaptive_engine
from fullres.pipeline.predict.engines import Resources, label_image
from fullres.pipeline.predict.sampler import Sampler, load_downsampler
from fullres.pipeline.scenes import render_scene

_CPU = torch.device("cpu")
_ONE = Resources(1, 4 << 30, "fp32", "cpu")


def sampled(
    weights: Annotated[Path, typer.Option(help="The network's, trained on sampled images.")],
    auxiliary: Annotated[Path, typer.Option(help="The downsampler's.")],
    sizes: Annotated[str, typer.Option(help="Points a side, with commas between.")] = "64,128,256",
    frames: Annotated[int, typer.Option(min=1)] = 8,
    height: Annotated[int, typer.Option(min=32)] = 1024,
    scene_width: Annotated[int, typer.Option(min=32)] = 2048,
    rounds: Annotated[int, typer.Option(min=1, help="Over all frames, uniform and adaptive in turn.")] = 3,
    workers: Annotated[str, typer.Option(help="Of the stream; the first is the base.")] = "1,2",
    stream: Annotated[int, typer.Option(min=1, help="Its frames.")] = 64,
    address: AddressOption = None,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Uniform and adaptive side by side: operations, times of the steps, frames a second."""
    torch.set_num_threads(1)
    counts = parse_counts("--workers", workers)
    sides = parse_counts("--sizes", sizes, 2)
    with clear_errors():
        network, name = load_own_network(weights)
        if not CATALOGUE[name].segments:
            raise WeightsError(f"weights {weights}: of a downsampler, not of a network that labels images")
        where = load_downsampler(str(auxiliary), _CPU)
    images = [render_scene(seed, height, scene_width)[0] for seed in range(frames)]
    rows, streams = [], []
    for side in sides:
        engines = {
            "uniform": adaptive_engine(network, Sampler((side, side))),
            "adaptive": adaptive_engine(network, Sampler((side, side), where)),
        }
        rows += _side_by_side(engines, images, rounds, side)
    with clear_errors(), ray_cluster(address, max(counts)):
        for side in sides:
            engine = adaptive_engine(network, Sampler((side, side), where))
            rates = {count: _frames_a_second(engine, images, stream, count) for count in counts}
            streams.append({"size": side, "frames a second": rates})
    _show(rows, streams, f"{name}, {scene_width}x{height}, median of {rounds} x {frames} frames")
    if json_out:
        write_bytes_atomically(json_out, json.dumps({"rows": rows, "streams": streams}, indent=2).encode())


def _side_by_side(
    engines: dict[str, Adaptive], images: list[np.ndarray], rounds: int, side: int
) -> list[dict[str, Any]]:
    runners = {way: engine.predictor(_CPU, "fp32") for way, engine in engines.items()}
    size = (images[0].shape[0], images[0].shape[1])
    plans = {way: engine.plan(size, _ONE, False) for way, engine in engines.items()}
    for way in engines:  # compiled and planned before anything is timed
        label_image(engines[way], runners[way], images[0], _ONE)
    times: dict[str, list[float]] = {way: [] for way in engines}
    steps: list[dict[str, float]] = []
    for _ in range(rounds):
        for image in images:
            for way, engine in engines.items():
                times[way].append(_timed(label_image, engine, runners[way], image, _ONE)[1])
            steps.append(_steps(engines["adaptive"], image))
    base = times["uniform"]
    alone = {step: statistics.median(row[step] for row in steps) for step in steps[0]}
    return [
        {
            "size": side,
            "way": way,
            "GFLOP": 2e-9 * sum(grain.macs for grain in plans[way].grains),
            "ms": statistics.median(times[way]),
            "times uniform": statistics.median(a / b for a, b in zip(times[way], base, strict=True)),
            **({} if way == "uniform" else alone),
        }
        for way in engines
    ]


def _steps(engine: Adaptive, image: np.ndarray) -> dict[str, float]:
    """Milliseconds of each of them."""
    where = engine.sampler.downsampler
    assert where is not None
    _, resize = _timed(cv2.resize, image, where.small[::-1], interpolation=cv2.INTER_AREA)
    phi, both = _timed(engine.sampler.at, image)
    points, read = _timed(sample, image, phi)
    runner = engine.inner.predictor(_CPU, "fp32")
    scores, labels = _timed(label_image, engine.inner, runner, points, _ONE, True)
    _, back = _timed(interpolate_labels, scores, phi, (image.shape[0], image.shape[1]))
    return {"resize": resize, "downsampler": both - resize, "read": read, "network": labels, "back": back}


def _timed(call: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call(*arguments, **named)
    return result, 1000 * (time.perf_counter() - begin)


def _frames_a_second(engine: Adaptive, images: list[np.ndarray], stream: int, count: int) -> float:
    coordinator = Coordinator(engine, Options("fp32", _ONE.memory_budget, count, "cpu"))
    tasks = [Task(Path(str(i)), Path(str(i))) for i in range(stream)]
    coordinator.wait_for_workers()
    begin = time.monotonic()
    coordinator.run(tasks, lambda path: images[int(path.name) % len(images)], lambda *result: None)
    seconds = time.monotonic() - begin
    coordinator.close()
    return stream / seconds


def _show(rows: list[dict[str, Any]], streams: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    numbers = ("GFLOP", "ms", "times uniform", "resize", "downsampler", "read", "network", "back")
    for heading in ("size", "way", *numbers):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        table.add_row(str(row["size"]), row["way"], *(f"{row[n]:.2f}" if n in row else "" for n in numbers))
    print_table(table, 110)
    for row in streams:
        rates = row["frames a second"]
        base = next(iter(rates.values()))
        said = ", ".join(f"{n} workers {rate:.1f} ({rate / base:.2f} times)" for n, rate in rates.items())
        print(f"size {row['size']}, frames a second: {said}")
