"""`fullres train CONFIG.toml`: train a network in one process."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import BaseModel, ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fullres.jobs.common import USER_ERRORS, console, fail
from fullres.pipeline.train.loop import DataConfig, StepReport, TrainingConfig, fit
from fullres.pipeline.train.network import ModelConfig


def read_config(path: Path) -> TrainingConfig:
    """A validated configuration. Otherwise ends with the field's name, its value and what is allowed."""
    try:
        return TrainingConfig(**tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"{path} is not TOML: {error}")
    except ValidationError as error:
        fail(f"{path}: {'; '.join(map(_in_words, error.errors()))}")


def _in_words(error: Any) -> str:
    """One of pydantic's errors. Values are named where they are the field's own, not a whole section."""
    field = ".".join(map(str, error["loc"]))
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # it names field and value, and stands in a section
        return f"{field}.{said}" if field else said
    if error["type"] == "missing":
        return f"{field} is needed"
    if error["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {"model": ModelConfig, "data": DataConfig}
        section = sections.get(str(error["loc"][0]), TrainingConfig)
        return f"{field}: no such field; there are {', '.join(section.model_fields)}"
    return f"{field} = {error['input']!r}: {said}"


def train(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG.toml", exists=True, dir_okay=False)],
    drop_head: Annotated[
        bool,
        typer.Option(
            "--drop-head", help="Start from weights of other classes: leave out what depends on their count."
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's by default.")] = None,
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
            task = bar.add_task("training", total=config.steps, visible=False)  # until it has begun

            def show(report: StepReport) -> None:
                bar.update(task, completed=report.step, description=f"loss {report.loss:.3f}", visible=True)
                if not console.is_terminal and report.step % 200 == 0:
                    console.print(f"step {report.step}/{report.steps} loss {report.loss:.3f}")

            weights = fit(config, device, show, drop_head)
    except (*USER_ERRORS, ValueError) as error:
        fail(error)
    print(weights)
