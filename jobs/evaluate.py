"""`fullres evaluate`: predictions against labels, as a table and as JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from fullres.jobs.common import (
    clear_errors,
    console,
    fail,
    known_dataset,
    parse_target_classes,
    print_table,
)
from fullres.ops.boundary import check_widths
from fullres.ops.objects import SizeBin
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.datasets import DATASETS
from fullres.pipeline.datasets.dataset import MAX_CLASSES
from fullres.pipeline.review.evaluate import Evaluation, ObjectRecall
from fullres.pipeline.review.evaluate import evaluate as score_folders

_MOST_BINS = 100


def evaluate(
    pred_dir: Annotated[Path, typer.Argument(help="Folder of class-id PNG files, as `predict` writes them.")],
    label_dir: Annotated[Path, typer.Argument(help="Folder of label files as the data set stores them.")],
    dataset_name: Annotated[
        str, typer.Option("--dataset", help=f"What the labels are: {', '.join(DATASETS)}, or folder.")
    ],
    classes: Annotated[
        int | None, typer.Option(min=1, max=MAX_CLASSES, help="How many classes a folder's label maps have.")
    ] = None,
    target_classes: Annotated[
        str | None,
        typer.Option(
            help="Whose mean IoU is given apart, and whose objects count: names with commas between, or all. "
            "The data set's by default."
        ),
    ] = None,
    trimap: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHS",
            help="Accuracy and mean IoU also within so many pixels of the truth's boundaries: 1,2,4,8,16.",
        ),
    ] = None,
    by_size: Annotated[
        int | None,
        typer.Option(
            metavar="BINS",
            help="Recall of the target classes' objects also, in so many bins by area: 4.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores and confusion matrix here.")
    ] = None,
) -> None:
    """Score predictions: IoU of each class, their mean, pixel accuracy, mean of small and thin classes.

    Every prediction needs a label and every label a prediction; files are matched by relative path and name.
    """
    widths = _widths(trimap)
    if by_size is not None and not 1 <= by_size <= _MOST_BINS:
        fail(f"--by-size is {by_size}: 1 to {_MOST_BINS} bins")
    with clear_errors():
        known = known_dataset(dataset_name, classes)
        known = replace(known, target_classes=parse_target_classes(target_classes, known))
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("frames")
            evaluation = score_folders(
                pred_dir,
                label_dir,
                known,
                lambda done, total: bar.update(task, completed=done, total=total),
                widths,
                by_size,
            )
        if json_file:
            write_bytes_atomically(json_file, json.dumps(evaluation.to_json(), indent=1).encode())
    print_table(score_table(evaluation))
    if evaluation.trimap:
        print_table(trimap_table(evaluation))
    if evaluation.by_size:
        print_table(size_table(evaluation.by_size), 40 + 8 * len(evaluation.by_size.all))


def score_table(evaluation: Evaluation) -> Table:
    """The scores in percent, one class a row; small and thin classes are marked, target classes too."""
    known = evaluation.dataset
    caption = "* small and thin" + ", ! target" * bool(known.target_classes)
    table = Table(title=f"{known.name}, {evaluation.images} images", caption=caption)
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for name, score in zip(known.classes, evaluation.class_iou, strict=True):
        marks = " *" * (name in known.small_thin) + " !" * (name in known.target_classes)
        table.add_row(name + marks, _percent(score))
    table.add_section()
    table.add_row("mean IoU", _percent(evaluation.mean_iou))
    table.add_row("small-and-thin mean", _percent(evaluation.small_thin_iou))
    if known.target_classes:
        table.add_row("target-class mean", _percent(evaluation.target_iou))
    table.add_row("pixel accuracy", _percent(evaluation.pixel_accuracy))
    return table


def trimap_table(evaluation: Evaluation) -> Table:
    """The scores near boundaries, a band a row."""
    table = Table(title="near boundaries", caption="width: pixels on each side")
    for name in ("width", "pixels", "accuracy %", "mean IoU %"):
        table.add_column(name, justify="right")
    for band in evaluation.trimap:
        table.add_row(str(band.width), f"{band.pixels:,}", _percent(band.accuracy), _percent(band.mean_iou))
    return table


def size_table(by_size: ObjectRecall) -> Table:
    """The mean recall of objects in percent, a class a row and a bin a column."""
    what = "instance maps" if by_size.annotated else "connected pieces of a class"
    table = Table(title="recall of objects by area", caption=f"1: the smallest; objects are {what}")
    for name in ("class", "objects", *(f"{i} %" for i in range(1, len(by_size.all) + 1))):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, bins in by_size.by_class.items():
        table.add_row(name, *_recalls(bins))
    table.add_section()
    table.add_row("all", *_recalls(by_size.all))
    return table


def _recalls(bins: Sequence[SizeBin]) -> list[str]:
    return [f"{sum(one.objects for one in bins):,}", *(_percent(one.recall) for one in bins)]


def _widths(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        fail(f"--trimap is '{text}': whole numbers of pixels with commas between, e.g. 1,2,4,8,16")
    widths = tuple(map(int, text.split(",")))
    try:
        check_widths(widths)
    except ValueError as error:
        fail(f"--trimap: {error}")
    return widths


def _percent(score: float) -> str:
    return "-" if score != score else f"{100 * score:.1f}"  # nan: nothing of this class
