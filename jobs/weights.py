"""`fullres weights`: which published weights `--weights` takes by name."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from fullres.jobs.common import check_model, known_dataset, print_table
from fullres.pipeline.predict.published import published


def weights(
    dataset: Annotated[str | None, typer.Option(help="Only those for its classes.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those of this network.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with addresses.")] = False,
) -> None:
    """List published weights that are known by name: network, data set, mean IoU as published.

    The mean IoU is what the publisher measured on the validation images, at one scale but for hmsa48x3;
    "here": fetched; "by hand": the publisher gives it to browsers alone, and the command that wants it says
    where to put it.
    """
    if model is not None:
        check_model(model)
    if dataset is not None:
        known_dataset(dataset)
    rows = [r for r in published().values() if dataset in (None, r.dataset) and model in (None, r.model)]
    where = {row.name: "here" if row.place.is_file() else "by hand" if row.by_hand else "" for row in rows}
    if as_json:
        print(json.dumps([asdict(row) | {"here": where[row.name] == "here"} for row in rows], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("weights", "model", "dataset"):
        table.add_column(heading, no_wrap=True)
    table.add_column("mIoU", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.model, row.dataset, f"{row.miou:.2f}", where[row.name])
    print_table(table, 130)
    if not rows:
        print("none is known")
