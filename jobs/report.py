"""`fullres report`: image, truth and predictions side by side, with their scores, as a page for people."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fullres.jobs.common import clear_errors, console, fail, known_dataset, print_table
from fullres.pipeline.datasets import DATASETS
from fullres.pipeline.datasets.dataset import MAX_CLASSES
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.review.report import Prediction, write_report


def report(
    images: Annotated[Path, typer.Option(help="Folder of images.", exists=True)],
    labels: Annotated[Path, typer.Option(help="Folder of label files as the data set stores them.")],
    dataset_name: Annotated[
        str, typer.Option("--dataset", help=f"What the labels are: {', '.join(DATASETS)}, or folder.")
    ],
    pred: Annotated[
        list[str],
        typer.Option(metavar="NAME=DIR", help="A folder that `predict` wrote. Given again: a column more."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for index.html and its pictures.")],
    classes: Annotated[
        int | None, typer.Option(min=1, max=MAX_CLASSES, help="How many classes a folder's label maps have.")
    ] = None,
) -> None:
    """Write a page that shows each image, its truth and its predictions, and the table of scores."""
    predictions = [_prediction(text) for text in pred]
    if len({p.name for p in predictions}) < len(predictions):
        fail("--pred: two predictions of one name")
    known = known_dataset(dataset_name, classes)
    with clear_errors(), Progress(console=console, transient=True) as bar:
        task = bar.add_task("pictures")
        evaluations = write_report(
            images,
            labels,
            known,
            predictions,
            out,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_table(_table(predictions, evaluations))
    print(out / "index.html")


def _prediction(text: str) -> Prediction:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        fail(f"--pred is '{text}': write NAME=DIR")
    return Prediction(name, Path(folder))


def _table(predictions: list[Prediction], evaluations: list[Evaluation]) -> Table:
    table = Table(title="percent")
    for name in ("", "mean IoU", "small and thin", "pixel accuracy"):
        table.add_column(name, justify="right" if name else "left")
    for prediction, e in zip(predictions, evaluations, strict=True):
        scores = (e.mean_iou, e.small_thin_iou, e.pixel_accuracy)
        table.add_row(escape(prediction.name), *(f"{100 * score:.1f}" for score in scores))
    return table
