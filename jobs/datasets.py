"""`fullres datasets`: the data sets the project knows, one of them, or whether a folder holds one."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fullres.jobs.common import check_split, clear_errors, console, fail, known_dataset, print_table
from fullres.pipeline.datasets import DATASETS, Dataset
from fullres.pipeline.datasets.check import Check, check_frames
from fullres.pipeline.datasets.dataset import MAX_CLASSES
from fullres.pipeline.datasets.layout import Found, find_frames, nothing_found

_SHOWN = 20  # problems on the screen; `--json` has all


def datasets(
    name: Annotated[
        str | None,
        typer.Argument(help=f"{', '.join(DATASETS)}; or folder: any images/ and labels/. All by default."),
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Read all files below this local folder, the data set's root.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only these files. By default every split that is there.")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_CLASSES, help="How many classes the folder's label maps have."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List data sets, show one, or check a folder that should hold one.

    A check reads every image and label map. It ends with status 1 if anything is wrong: files that cannot be
    read or lack their counterpart, label ids that don't belong, sizes that differ.
    """
    if name is None:
        if root or split or classes:
            fail("name the data set to be checked")
        known = list(DATASETS.values())
        _show(_list(known), [_in_short(one) for one in known], as_json)
        return
    one = known_dataset(name, classes, "NAME")
    if root is None:
        if split:
            fail(f"--split is '{split}': --root names the folder to check")
        _show(_classes(one), _in_full(one), as_json)
        return
    if "://" in root:
        fail(f"--root is '{root}': only local folders are checked")
    checks = _check(one, Path(root), split)
    _show(_histogram(one, checks), _report(one, root, checks), as_json)
    problems = [problem for check in checks.values() for problem in check.problems]
    for problem in problems[:_SHOWN]:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"and {len(problems) - _SHOWN} more", style="red", highlight=False)
    raise typer.Exit(1 if problems else 0)


def _check(known: Dataset, root: Path, split: str | None) -> dict[str, Check]:
    """Splits that are there, checked. Without any, or without the one that is asked for, the job ends."""
    if split is not None:
        check_split(split, known)
    with clear_errors():
        found: dict[str, Found] = {}
        for name in [split] if split else known.splits:
            if files := find_frames(known, root, name):
                found[name] = files
        if not found:
            raise nothing_found(known, root, split or next(iter(known.splits)))
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bar:
            checks = {}
            for name, files in found.items():
                task = bar.add_task(name, total=len(files.frames))
                checks[name] = check_frames(known, files, partial(bar.advance, task))
    return checks


def _show(table: Table, plain: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plain, indent=1))
    else:
        print_table(table)


def _list(known: list[Dataset]) -> Table:
    table = Table(caption="and folder: any images/ and labels/")
    table.add_column("name", no_wrap=True, min_width=max(len(one.name) for one in known))
    for column in ("classes", "splits", "train size", "small and thin"):
        table.add_column(column, justify="right" if column == "classes" else "left")
    for one in known:
        table.add_row(
            one.name, str(len(one.classes)), ", ".join(one.splits), _size(one), ", ".join(one.small_thin)
        )
    return table


def _classes(known: Dataset) -> Table:
    table = Table(
        title=f"{known.name}: {', '.join(known.splits)}; train size {_size(known)}",
        caption="* small and thin, ! target of sampling",
    )
    table.add_column("trainId", justify="right")
    table.add_column("class")
    table.add_column("colour")
    for i, (name, rgb) in enumerate(zip(known.classes, known.palette, strict=True)):
        marks = " *" * (name in known.small_thin) + " !" * (name in known.target_classes)
        colour = Text.assemble(("    ", "on #" + bytes(rgb).hex()), f" {' '.join(map(str, rgb))}")
        table.add_row(str(i), name + marks, colour)
    return table


def _histogram(known: Dataset, checks: dict[str, Check]) -> Table:
    absent = [name for name in known.splits if name not in checks]
    table = Table(
        title=f"{known.name}: share of pixels in %",
        caption=f"not looked at, or not there: {', '.join(absent)}" if absent else None,
    )
    table.add_column("class")
    for name in checks:
        table.add_column(name, justify="right")
    shares = [check.shares for check in checks.values()]
    for i, name in enumerate(known.classes):
        table.add_row(name, *(f"{100 * share[i]:.3f}" for share in shares))
    table.add_section()
    table.add_row(
        "ignored pixels, of all", *(f"{100 * check.ignored_share:.3f}" for check in checks.values())
    )
    table.add_row("frames", *(str(check.frames) for check in checks.values()))
    table.add_row("images' size", *(_sizes(check) for check in checks.values()))
    table.add_row("problems", *(str(len(check.problems)) for check in checks.values()))
    return table


def _size(known: Dataset) -> str:
    return "x".join(map(str, known.train_size)) if known.train_size else "largest square"


def _sizes(check: Check) -> str:
    sizes = [f"{width}x{height}" for height, width in check.sizes]
    return sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"


def _in_short(known: Dataset) -> dict[str, Any]:
    return {
        "name": known.name,
        "classes": len(known.classes),
        "splits": list(known.splits),
        "train_size": known.train_size,
        "small_thin": known.small_thin,
        "target_classes": known.target_classes or known.classes,
    }


def _in_full(known: Dataset) -> dict[str, Any]:
    return {
        **_in_short(known),
        "classes": [
            {"name": name, "rgb": rgb} for name, rgb in zip(known.classes, known.palette, strict=True)
        ],
        "splits": {
            name: {"images": where.images, "labels": where.labels, "lists": where.lists}
            for name, where in known.splits.items()
        },
    }


def _report(known: Dataset, root: str, checks: dict[str, Check]) -> dict[str, Any]:
    return {
        "dataset": known.name,
        "root": root,
        "splits": {
            name: {
                "frames": check.frames,
                "problems": check.problems,
                "sizes": {f"{w}x{h}": count for (h, w), count in check.sizes.most_common()},
                "pixels": dict(zip(known.classes, check.pixels.tolist(), strict=True)),
                "ignored": check.ignored,
            }
            for name, check in checks.items()
        },
    }
