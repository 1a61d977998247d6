"""`fullres bench adaptive`: cost and quality of labelling images from few pixels, uniform and adaptive.

The curves of "Learning Downsampling Near Semantic Boundaries", Figs. 8 to 11: a network is trained for each
size and way, and labels the validation frames. Beside it stands what the points alone allow: label maps
sampled there and interpolated back, of a uniform grid, of the downsampler, and of the sampling tensors that
the label maps themselves call for.
"""

import csv
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.progress import Progress
from rich.table import Table

from fullres.jobs.common import clear_errors, console, fail, print_table
from fullres.jobs.train import read_config
from fullres.models.weights import load_network
from fullres.ops.metrics import confusion_matrix
from fullres.ops.sampling import resize_tensor
from fullres.ops.sampling_solve import sampling_tensor
from fullres.pipeline.data.files import atomic, write_bytes_atomically
from fullres.pipeline.predict.adaptive import adaptive_engine
from fullres.pipeline.predict.engines import Resources, label_image
from fullres.pipeline.predict.sampler import Sampler, load_downsampler, sampled_and_back
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.loop import fit
from fullres.pipeline.train.samples import Frames

_BUDGET = 4 << 30


@dataclass(frozen=True)
class Point:
    """One measurement. `way`: uniform or adaptive, of a network; "truth, ..." of sampled label maps. Of these
    multiply-adds and time are nothing."""

    way: str
    size: int
    giga_operations: float | None
    milliseconds: float | None  # of a frame, without reading it; the median
    mean_iou: float
    target_iou: float


def adaptive(
    config_path: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", exists=True, help="A training with a validation split.")
    ],
    auxiliary: Annotated[str, typer.Option(help="The downsampler's weights.")],
    out: Annotated[Path, typer.Option(help="Folder for trainings, curves.csv and curves.png.")],
    sizes: Annotated[str, typer.Option(help="Points a side, with commas between.")] = "32,64,128,256",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="As of `fullres train`.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train a network at several sizes, uniform and adaptive; write operations, time and scores as curves.

    What is trained stays in the folder, and is not trained again.
    """
    torch.set_num_threads(threads)
    listed = [int(size) if size.isdecimal() else 0 for size in sizes.split(",")]
    if min(listed) < 2:
        fail(f"--sizes is '{sizes}': whole numbers from 2, with commas between")
    config = read_config(config_path, changes or [])
    if config.data.validation is None:
        fail(f"{config_path}: no data.validation to score on")
    with clear_errors():
        points = list(_points(config, auxiliary, out, listed))
    _write(out, points)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "size", "GOPs", "ms", "mean IoU %", "target classes %"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for p in points:
        cost = ("", "") if p.milliseconds is None else (f"{p.giga_operations:.2f}", f"{p.milliseconds:.1f}")
        table.add_row(p.way, str(p.size), *cost, f"{100 * p.mean_iou:.1f}", f"{100 * p.target_iou:.1f}")
    print_table(table, 90)


def _points(config: TrainingConfig, auxiliary: str, out: Path, sizes: list[int]) -> Iterator[Point]:
    frames = Frames(config.data, config.data.validation)
    downsampler = load_downsampler(auxiliary, torch.device("cpu"))
    grid, ignored = (downsampler.grid, downsampler.grid), frames.known.ignore_index
    truths: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "truth, uniform": lambda image, labels: Sampler(grid).at(image),
        "truth, adaptive": lambda image, labels: Sampler(grid, downsampler).at(image),
        "truth, its own tensors": lambda image, labels: sampling_tensor(labels, grid, 1.0, ignored),
    }
    for size in sizes:
        for way in ("uniform", "adaptive"):
            yield _of_network(config, way, size, auxiliary, out / f"{way}-{size}", frames)
        for way, at in truths.items():

            def label(image: np.ndarray, labels: np.ndarray, at: Any = at, size: int = size) -> np.ndarray:
                phi = resize_tensor(at(image, labels).astype(np.float32), (size, size))
                return sampled_and_back(labels, phi, len(frames.known.classes))

            found, _ = _scored(frames, label, f"{way} {size}")
            yield Point(way, size, None, None, found.mean_iou, found.target_iou)


def _of_network(
    config: TrainingConfig, way: str, size: int, auxiliary: str, folder: Path, frames: Frames
) -> Point:
    sampling = config.sampling.model_copy(
        update={"size": (size, size), "auxiliary": auxiliary if way == "adaptive" else None}
    )
    own = config.model_copy(update={"sampling": sampling, "out": str(folder)})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"training {way} {size}", total=own.steps)
        weights = fit(own, device, lambda report: bar.update(task, completed=report.step))
    network, _ = load_network(own.model.name, Path(weights))
    where = load_downsampler(auxiliary, torch.device("cpu")) if way == "adaptive" else None
    engine = adaptive_engine(network, Sampler((size, size), where))
    runner = engine.predictor(device, "fp32")
    resources = Resources(1, _BUDGET, "fp32", device.type)

    def label(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return label_image(engine, runner, image, resources)

    found, milliseconds = _scored(frames, label, f"{way} {size}")
    macs = sum(grain.macs for grain in engine.plan((size, size), resources, False).grains)
    return Point(way, size, 2e-9 * macs, milliseconds, found.mean_iou, found.target_iou)


def _scored(
    frames: Frames, label: Callable[[np.ndarray, np.ndarray], np.ndarray], what: str
) -> tuple[Evaluation, float]:
    """And the median time of a frame, in milliseconds."""
    known = frames.known
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    times = []
    with Progress(console=console, transient=True) as bar:
        for index in bar.track(range(len(frames)), description=what):
            image, labels = frames.read(index)
            before = time.perf_counter()
            found = label(image, labels)
            times.append(time.perf_counter() - before)
            confusion += confusion_matrix(found, labels, len(known.classes), known.ignore_index)
    return Evaluation(known, len(frames), confusion), 1000 * float(np.median(times))


def _write(out: Path, points: list[Point]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(points[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_bytes_atomically(out / "curves.csv", text.getvalue().encode())
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    cost = {p.size: p.giga_operations for p in points if p.way == "uniform"}
    titles = {"mean_iou": "all classes", "target_iou": "target classes"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for way in dict.fromkeys(point.way for point in points):
            own = [point for point in points if point.way == way]
            x = [p.giga_operations if p.giga_operations is not None else cost[p.size] for p in own]
            style = "--" if way.startswith("truth") else "o-"
            axis.plot(x, [100 * getattr(p, name) for p in own], style, label=way)
        axis.set(xscale="log", xlabel="billion operations a frame", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean IoU, %")
    axes[1].legend()
    with atomic(out / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
