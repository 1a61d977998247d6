"""`fullres targets`: training targets for a whole data set; `fullres targets show`: pictures of some."""

import enum
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.dataset
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fullres.cluster import targets as cluster_targets
from fullres.cluster.connection import ray_cluster
from fullres.jobs.common import (
    AddressOption,
    check_split,
    clear_errors,
    complain,
    console,
    fail,
    known_dataset,
    parse_target_classes,
    parse_workers,
)
from fullres.ops.boundary import boundary_map
from fullres.pipeline.data.images import decode_image, naming, write_png
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets import DATASETS, Dataset
from fullres.pipeline.datasets.dataset import MAX_CLASSES
from fullres.pipeline.datasets.layout import Frame, find_stored_frames
from fullres.pipeline.targets import pictures
from fullres.pipeline.targets.compute import TargetSpec, class_ids
from fullres.pipeline.targets.folder import SUMMARY, settings_of

app = typer.Typer(help="Training targets for a whole data set, in Parquet.", invoke_without_command=True)


_SPOKEN = 30  # seconds between two lines of progress where there is no terminal


class MetricChoice(enum.StrEnum):
    """What `--metric` takes."""

    pixels = "pixels"
    unit = "unit"


@app.callback()
def targets(
    context: typer.Context,
    dataset_name: Annotated[
        str | None,
        typer.Option("--dataset", help=f"{', '.join(DATASETS)}; or folder: any images/ and labels/."),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_CLASSES, help="How many classes the folder's label maps have."),
    ] = None,
    root: Annotated[str | None, typer.Option(help="Its folder: a path, s3://... or gs://...")] = None,
    split: Annotated[str | None, typer.Option(help="Which part of it; its first by default.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the targets: a path or URI.")] = None,
    grid: Annotated[str, typer.Option(help="Rows and columns of the sampling tensor.")] = "8x8",
    smoothness: Annotated[
        float, typer.Option("--lambda", help="Weight of smoothness in the sampling tensor, 0 or more.")
    ] = 1.0,
    target_classes: Annotated[
        str | None,
        typer.Option(
            help="Whose boundaries count: names with commas between, or all. The data set's by default."
        ),
    ] = None,
    metric: Annotated[
        MetricChoice, typer.Option(help="Nearest boundary in pixels, or in units of the image's sides.")
    ] = MetricChoice.pixels,
    cpp: Annotated[
        str | None,
        typer.Option(help="Also class probabilities at these scales, each a multiple of the last: 4,8,16."),
    ] = None,
    boundary: Annotated[bool, typer.Option("--boundary", help="Also the boundary map.")] = False,
    distance: Annotated[
        bool, typer.Option("--distance", help="Also the distance of each pixel to the boundary.")
    ] = False,
    workers: Annotated[str, typer.Option(help="How many at most, or auto: one a CPU.")] = "auto",
    address: AddressOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at the first label map that cannot be used.")
    ] = False,
) -> None:
    """Boundaries, distances, sampling tensors and class probabilities of every label map of a split.

    Started again, it does what is left.
    """
    if context.invoked_subcommand is not None:
        return
    if dataset_name is None or root is None or out is None:
        fail("--dataset, --root and --out are needed")
    known = known_dataset(dataset_name, classes)
    spec = TargetSpec(
        _grid(grid), smoothness, parse_target_classes(target_classes, known) or None, metric.value,
        _scales(cpp), boundary, distance,
    )  # fmt: skip
    split = split or next(iter(known.splits))
    check_split(split, known)
    count = parse_workers(workers)
    with clear_errors():
        spec.check(known)
        source, target = Storage(root), Storage(out)
        found = find_stored_frames(source, known, split)
        with ray_cluster(address, count), _bar() as bar:
            show = _show_on(bar, len(found.frames))
            begun = time.monotonic()
            if strict and found.problems:
                fail(found.problems[0])
            done = cluster_targets.run(found.frames, source, target, known, split, spec, count, strict, show)
        summary = {
            **asdict(done), "without_counterpart": found.problems,
            "total_seconds": round(time.monotonic() - begun, 3),
        }  # fmt: skip
        target.write(SUMMARY, json.dumps(summary, indent=2).encode())
    left_out = [*(naming(*failure) for failure in done.failures.items()), *found.problems]
    for reason in left_out:
        complain("left out", reason)
    print(_line(done, len(left_out), out))
    raise typer.Exit(1 if left_out else 0)


@app.command()
def show(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder that `fullres targets` wrote.")],
    root: Annotated[str, typer.Option(help="The data set's folder.")],
    pictures: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    key: Annotated[
        list[str] | None, typer.Option(help="A label map's key, as in the files. Given again: one more.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many, from the first, if no key is given.")] = 3,
) -> None:
    """Pictures of targets: boundary on the label map, the grid on the image, distances, class
    probabilities."""
    with clear_errors():
        source, target = Storage(root), Storage(out)
        settings = settings_of(target)
        is_folder = settings["dataset"] == "folder"
        known = known_dataset(settings["dataset"], len(settings["classes"]) if is_folder else None)
        frames = {frame.key: frame for frame in find_stored_frames(source, known, settings["split"]).frames}
        try:
            for row in _rows(target, key, count):
                if row["key"] not in frames:
                    fail(f"--root: {root} has no frame {row['key']}")
                labels, image = _frame(source, frames[row["key"]], known, row)
                for name, picture in _pictures(row, labels, image, known, settings).items():
                    path = pictures / f"{row['key']}_{name}.png"
                    write_png(path, picture)
                    print(path)
        except ValueError as error:  # label ids that do not belong, a damaged file of targets
            fail(error)


def _rows(out: Storage, keys: list[str] | None, count: int) -> list[dict[str, Any]]:
    """The rows of these keys, or the first ones."""
    parts = [f"{out.path}/{name}" for name in out.names() if name.endswith(".parquet")]
    table = pyarrow.dataset.dataset(parts, filesystem=out.files) if parts else None
    if table is None or not table.count_rows():
        fail(f"{out.location}: no label maps here yet")
    rows = table.filter(pyarrow.dataset.field("key").isin(keys)) if keys else table
    shown = rows.head(len(set(keys)) if keys else count).to_pylist()
    if missing := sorted(set(keys or []) - {row["key"] for row in shown}):
        fail(f"--key: {out.location} has no {missing[0]}")
    return shown


def _frame(root: Storage, frame: Frame, known: Dataset, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The label map that a row was made of, and its image."""
    labels = known.decode(root.read(str(frame.labels)), frame.labels)
    if labels.shape != (row["height"], row["width"]):
        (height, width) = labels.shape
        fail(
            f"{frame.labels}: {width}x{height} pixels, but its targets are of a map of"
            f" {row['width']}x{row['height']}"
        )
    return labels, decode_image(root.read(str(frame.image)), frame.image)


def _pictures(
    row: dict[str, Any], labels: Any, image: Any, known: Dataset, settings: dict[str, Any]
) -> dict[str, Any]:
    boundary = boundary_map(labels, known.ignore_index, class_ids(known, settings["target_classes"]))
    made = {
        "boundary": pictures.boundary_picture(labels, boundary, known.palette),
        "grid": pictures.grid_picture(image, np.array(row["phi"], np.float32).reshape(*settings["grid"], 2)),
    }
    if "distance" in row:
        made["distance"] = pictures.distance_picture(_array(row["distance"]))
    for scale in settings["cpp"]:
        made[f"cpp_{scale}"] = pictures.probability_picture(_array(row[f"cpp_{scale}"]), known.classes)
    return made


def _array(value: dict[str, Any]) -> np.ndarray:
    return np.array(value["data"], np.float32).reshape(value["shape"])


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        fail(f"--grid is '{text}': rows x columns, e.g. 8x8")
    return int(match[1]), int(match[2])


def _scales(text: str | None) -> tuple[int, ...]:
    scales = [] if text is None else text.split(",")
    if not all(scale.isdecimal() for scale in scales):
        fail(f"--cpp is '{text}': whole numbers with commas between, e.g. 4,8,16,32")
    return tuple(sorted({int(scale) for scale in scales}))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[rate]}  {task.fields[failed]} left out"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
    )  # fmt: skip


def _show_on(bar: Progress, maps: int) -> Callable[[cluster_targets.Progress], None]:
    """Shows progress on the bar, and in lines now and then where nobody sees it: the log of a job."""
    task = bar.add_task("label maps", total=maps, failed=0, rate="")
    spoken = 0.0

    def show(done: cluster_targets.Progress) -> None:
        nonlocal spoken
        here, failed = done.done + len(done.failures), len(done.failures)
        ended = done.before + here
        rate = f"{here / done.seconds:.0f}/s" if done.seconds else ""
        bar.update(task, completed=ended, failed=failed, rate=rate)
        if here and not console.is_terminal and done.seconds >= spoken + _SPOKEN:
            spoken = done.seconds
            left = timedelta(seconds=round((maps - ended) * done.seconds / here))
            line = f"label maps {ended}/{maps}  {rate}  {failed} left out  {left} left"
            console.print(line, soft_wrap=True, highlight=False)

    return show


def _line(done: cluster_targets.Progress, left_out: int, out: str) -> str:
    parts = [f"targets of {done.done} label map{'s' * (done.done != 1)} in {done.seconds:.0f} s"]
    if done.before:
        parts.append(f"{done.before} done before")
    if left_out:
        parts.append(f"{left_out} left out")
    return f"{', '.join(parts)}; in {out}"
