"""`fullres train CONFIG.toml`: train a network in one process."""

import tomllib
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fullres.jobs.common import console, fail
from fullres.models.weights import WeightsError
from fullres.pipeline.datasets.pairs import FilesError
from fullres.pipeline.images import ImageError
from fullres.pipeline.training import StepReport, TrainingConfig, fit


def read_config(path: Path) -> TrainingConfig:
    """A validated configuration. Otherwise ends with the field's name, its value and what is allowed."""
    try:
        return TrainingConfig(**tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        fail(f"{path} is not TOML: {error}")
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        fail(f"{path}: {'; '.join(lines)}")


def train(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG.toml", exists=True, dir_okay=False)],
    drop_head: Annotated[
        bool,
        typer.Option(
            "--drop-head", help="Start from weights of other classes: leave out what depends on their count."
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")] = None,
) -> None:
    """Train the network of a configuration file; started again, it goes on from its last checkpoint."""
    config = read_config(config_path)
    if drop_head and config.model.weights is None:
        fail("--drop-head: no weights to start from: the configuration names none under model")
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("training", total=config.steps)

            def show(report: StepReport) -> None:
                bar.update(task, completed=report.step, description=f"loss {report.loss:.3f}")
                if not console.is_terminal and report.step % 200 == 0:
                    console.print(f"step {report.step}/{report.steps} loss {report.loss:.3f}")

            weights = fit(config, device, show, drop_head)
    except (WeightsError, FilesError, ImageError, ValueError) as error:
        fail(error)
    print(weights)
