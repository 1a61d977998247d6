"""`fullres bench adaptive`: cost and quality of labelling images from few pixels, uniform and adaptive.

The curves of "Learning Downsampling Near Semantic Boundaries", Figs. 8 to 11: a network is trained for each
size and way, and labels the validation frames. Beside it stands

- what the points alone allow: label maps sampled there and interpolated back, of a uniform grid, of
  downsamplers, and of the sampling tensors that the label maps themselves call for; and how fast their errors
  become fewer with more points, of which App. A has bounds;
- a network of split-merge at its output strides, from the cost of an FCN32s to every pixel.
"""

import csv
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.progress import Progress
from rich.table import Table
from torch import nn

from fullres.jobs.common import (
    clear_errors,
    console,
    fail,
    parse_counts,
    parse_target_classes,
    print_table,
)
from fullres.jobs.train import read_config
from fullres.models.catalogue import CATALOGUE
from fullres.models.downsampler import Downsampler
from fullres.models.weights import WeightsError, load_network, load_own_network
from fullres.ops.metrics import confusion_matrix
from fullres.ops.sampling import resize_tensor
from fullres.ops.sampling_solve import sampling_tensor, uniform_tensor
from fullres.pipeline.data.files import atomic, write_bytes_atomically
from fullres.pipeline.predict.adaptive import adaptive_engine
from fullres.pipeline.predict.engines import Engine, Resources, engine_for, label_image
from fullres.pipeline.predict.sampler import Sampler, load_downsampler, sampled_and_back
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.loop import fit
from fullres.pipeline.train.samples import Frames

_BUDGET = 4 << 30
# From an image, its labels and a number of points a side to a sampling tensor.
Tensors = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Point:
    """One measurement. `way`: uniform or adaptive, of a network; "truth, ..." of sampled label maps, which
    cost nothing; split-merge. `size`: points a side, or the output stride of split-merge."""

    way: str
    size: int
    giga_operations: float | None
    milliseconds: float | None  # of a frame, without reading it; the median
    mean_iou: float
    target_iou: float
    wrong: float  # share of pixels


def adaptive(
    config_path: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", exists=True, help="A training with a validation split.")
    ],
    auxiliary: Annotated[
        list[str],
        typer.Option(help="A downsampler's weights, with which networks learn; given again: another's."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for trainings, curves.csv and curves.png.")],
    sizes: Annotated[str, typer.Option(help="Points a side, with commas between.")] = "32,64,128,256",
    beside: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS", help="Of a network of split-merge, e.g. an SMP.")
    ] = None,
    target_classes: Annotated[
        str | None,
        typer.Option(
            help="Whose boundaries the label maps' own tensors are of, as those that the downsampler learned "
            "from, and whose scores stand apart: names with commas between. By default all boundaries, and "
            "the data set's target classes."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="As of `fullres train`.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train a network at several sizes, uniform and adaptive; write operations, time and scores as curves.

    What is trained stays in the folder, and is not trained again. Of a downsampler's configuration nothing
    is trained, and only what the truth allows is written.
    """
    torch.set_num_threads(threads)
    listed = parse_counts("--sizes", sizes, 2)
    config = read_config(config_path, changes or [])
    if config.data.validation is None:
        fail(f"{config_path}: no data.validation to score on")
    if beside is not None and not CATALOGUE[config.model.name].segments:
        fail(f"--beside is '{beside}': beside networks that label, and {config.model.name} does not")
    with clear_errors():
        frames = Frames(config.data, config.data.validation)
        frames.known = replace(
            frames.known, target_classes=parse_target_classes(target_classes, frames.known)
        )
        targets = frames.known.target_ids if target_classes else None
        points = list(_points(config, frames, targets, auxiliary, out, listed, beside))
    slopes = {way: _slope([p for p in points if p.way == way]) for way in _ways(points) if _is_truth(way)}
    _write(out, points, slopes)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "size", "GFLOP", "ms", "mean IoU %", "target classes %", "wrong %"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for p in points:
        cost = ("", "") if p.milliseconds is None else (f"{p.giga_operations:.2f}", f"{p.milliseconds:.1f}")
        scores = (f"{100 * score:.2f}" for score in (p.mean_iou, p.target_iou, p.wrong))
        table.add_row(p.way, str(p.size), *cost, *scores)
    print_table(table, 140)
    if len(listed) > 1:
        for way, slope in slopes.items():
            print(f"{way}: wrong pixels fall with the number of points to the power of {slope:.2f}")


def _points(
    config: TrainingConfig,
    frames: Frames,
    targets: tuple[int, ...] | None,
    auxiliary: list[str],
    out: Path,
    sizes: list[int],
    beside: Path | None,
) -> Iterator[Point]:
    truths = _truths(auxiliary, frames.known.ignore_index, targets)
    split_merge = None if beside is None else _split_merge(beside)  # a mistake here ends before trainings
    for size in sizes:
        for way in ("uniform", "adaptive") if CATALOGUE[config.model.name].segments else ():
            yield _of_network(config, way, size, auxiliary[0], out / f"{way}-{size}", frames)
        for way, at in truths.items():

            def label(image: np.ndarray, labels: np.ndarray, at: Tensors = at, size: int = size) -> Any:
                phi = resize_tensor(at(image, labels, size).astype(np.float32), (size, size))
                return sampled_and_back(labels, phi, len(frames.known.classes))

            yield _scored(frames, label, way, size)
    if split_merge is not None:
        for stride in (1, 2, 4, 8, 16, 32):
            engine = engine_for(split_merge, output_stride=stride)
            yield _of_engine(engine, _device(), frames, "split-merge", stride)


def _truths(auxiliary: list[str], ignored: int, targets: tuple[int, ...] | None) -> dict[str, Tensors]:
    """Of the downsamplers; of the label map at the first one's grid, at all points, and there with the lambda
    that makes it as smooth."""
    found = {file: load_downsampler(file, torch.device("cpu")) for file in auxiliary}
    grid = found[auxiliary[0]].grid

    def predicted(network: Downsampler) -> Tensors:
        sampler = Sampler((network.grid, network.grid), network)
        return lambda image, labels, size: sampler.at(image)

    def own(side: int, smoothness: float, labels: np.ndarray) -> np.ndarray:
        return sampling_tensor(labels, (side, side), smoothness, ignored, targets)

    return {
        "truth, uniform": lambda image, labels, size: uniform_tensor(size, size),
        **{
            f"truth, {'adaptive' if file == auxiliary[0] else file}": predicted(network)
            for file, network in found.items()
        },
        "truth, its own tensors": lambda image, labels, size: own(grid, 1.0, labels),
        "truth, tensors of all points": lambda image, labels, size: own(size, 1.0, labels),
        "truth, as smooth as its own": lambda image, labels, size: own(
            size, ((size - 1) / (grid - 1)) ** 2, labels
        ),
    }


def _split_merge(weights: Path) -> nn.Module:
    network, name = load_own_network(weights)
    if CATALOGUE[name].labelled_by != "split-merge":
        raise WeightsError(f"weights {weights}: of {name}, which is not labelled by split-merge")
    return network


def _of_network(
    config: TrainingConfig, way: str, size: int, auxiliary: str, folder: Path, frames: Frames
) -> Point:
    sampling = config.sampling.model_copy(
        update={"size": (size, size), "auxiliary": auxiliary if way == "adaptive" else None}
    )
    own = config.model_copy(update={"sampling": sampling, "out": str(folder)})
    device = _device()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"training {way} {size}", total=own.steps)
        weights = fit(own, device, lambda report: bar.update(task, completed=report.step))
    network, _ = load_network(own.model.name, Path(weights))
    where = load_downsampler(auxiliary, torch.device("cpu")) if way == "adaptive" else None
    engine = adaptive_engine(network, Sampler((size, size), where))
    return _of_engine(engine, device, frames, way, size)


def _of_engine(engine: Engine, device: torch.device, frames: Frames, way: str, size: int) -> Point:
    runner, resources = engine.predictor(device, "fp32"), Resources(1, _BUDGET, "fp32", device.type)

    def label(image: np.ndarray, labels: np.ndarray) -> Any:
        return label_image(engine, runner, image, resources)

    point = _scored(frames, label, way, size)
    height, width = frames.read(0)[0].shape[:2]
    macs = sum(grain.macs for grain in engine.plan((height, width), resources, False).grains)
    return replace(point, giga_operations=2e-9 * macs)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _scored(
    frames: Frames, label: Callable[[np.ndarray, np.ndarray], np.ndarray], way: str, size: int
) -> Point:
    """All frames labelled."""
    known = frames.known
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    times = []
    with Progress(console=console, transient=True) as bar:
        for index in bar.track(range(len(frames)), description=f"{way} {size}"):
            image, labels = frames.read(index)
            before = time.perf_counter()
            found = label(image, labels)
            times.append(time.perf_counter() - before)
            confusion += confusion_matrix(found, labels, len(known.classes), known.ignore_index)
    scores = Evaluation(known, len(frames), confusion)
    milliseconds = None if _is_truth(way) else 1000 * float(np.median(times))
    wrong = 1 - scores.pixel_accuracy
    return Point(way, size, None, milliseconds, scores.mean_iou, scores.target_iou, wrong)


def _is_truth(way: str) -> bool:
    return way.startswith("truth")


def _ways(points: list[Point]) -> list[str]:
    return list(dict.fromkeys(point.way for point in points))


def _slope(points: list[Point]) -> float:
    """Of the wrong pixels over the points, both as logarithms."""
    x, y = np.log([[p.size**2, p.wrong] for p in points if p.wrong > 0]).reshape(-1, 2).T
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else float("nan")


def _write(out: Path, points: list[Point], slopes: dict[str, float]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(points[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_bytes_atomically(out / "curves.csv", text.getvalue().encode())
    figure = Figure(figsize=(16, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    cost = {p.size: p.giga_operations for p in points if p.way == "uniform"}
    over = "billion operations a frame"
    if not cost:  # no networks
        cost, over = {p.size: float(p.size**2) for p in points}, "points"
    titles = {"mean_iou": "all classes", "target_iou": "target classes"}
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        for way in _ways(points):
            own = [point for point in points if point.way == way]
            x = [p.giga_operations if p.giga_operations is not None else cost[p.size] for p in own]
            style = "--" if _is_truth(way) else "o-"
            axis.plot(x, [100 * getattr(p, name) for p in own], style, label=way)
        axis.set(xscale="log", xlabel=over, title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean IoU, %")
    axes[1].legend(fontsize="small")
    for way, slope in slopes.items():
        own = [point for point in points if point.way == way]
        label = f"{way.removeprefix('truth, ')}: power {slope:.2f}"
        axes[2].plot([p.size**2 for p in own], [100 * p.wrong for p in own], "o--", label=label)
    axes[2].set(xscale="log", yscale="log", xlabel="points", title="wrong pixels of the truth, %")
    axes[2].grid(alpha=0.3)
    axes[2].legend(fontsize="small")
    with atomic(out / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
