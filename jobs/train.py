"""`fullres train CONFIG.toml`: train a network, in one process or by the workers of a Ray cluster."""

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
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

from fullres.jobs.common import USER_ERRORS, AddressOption, console, fail, fetched
from fullres.jobs.dry_run import describe
from fullres.pipeline.predict.execute import native_precision
from fullres.pipeline.predict.published import is_remote
from fullres.pipeline.train.config import (
    Augmentation,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    extended,
)
from fullres.pipeline.train.layout import ParallelConfig
from fullres.pipeline.train.loop import begun, fit
from fullres.pipeline.train.report import StepReport

_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig, "data": DataConfig, "augmentation": Augmentation, "parallel": ParallelConfig,
}  # fmt: skip


def read_config(path: Path, changes: list[str]) -> TrainingConfig:
    """A validated configuration: the file's values over those of its `base`, and `changes` ("data.workers=4")
    over both. Otherwise ends with the field's name, its value and what is allowed."""
    values = _toml(path)
    if "base" in values:
        base = path.parent / str(values.pop("base"))
        if not base.is_file():
            fail(f"{path}: base is '{base}': no such file")
        below = _toml(base)
        if "base" in below:
            fail(f"{path}: base is '{base}', which has a base of its own: one file extends one other")
        values = extended(below, values)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            fail(f"--set is '{change}': field=value, e.g. data.workers=4")
        try:
            said = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            said = value  # text without its quotes
        for part in reversed(name.strip().split(".")):
            said = {part: said}
        values = extended(values, said)
    try:
        return TrainingConfig(**values)
    except ValidationError as error:
        fail(f"{path}: {'; '.join(map(_in_words, error.errors()))}")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"{path} is not TOML: {error}")


def _in_words(error: Any) -> str:
    """One of pydantic's errors. Values are named where they are the field's own, not a whole section."""
    field = ".".join(map(str, error["loc"]))
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # it names field and value, and stands in a section
        return f"{field}.{said}" if field else said
    if error["type"] == "missing":
        return f"{field} is needed"
    if error["type"] == "extra_forbidden":
        fields = _SECTIONS.get(str(error["loc"][0]), TrainingConfig).model_fields
        near = get_close_matches(str(error["loc"][-1]), fields, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        return f"{field}: no such field{meant}; there are {', '.join(fields)}"
    return f"{field} = {error['input']!r}: {said}"


def train(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG.toml", exists=True, dir_okay=False)],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="In place of the file's value: data.workers=4."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the whole configuration and what it would train, and end."),
    ] = False,
    drop_head: Annotated[
        bool,
        typer.Option(
            "--drop-head", help="Start from weights of other classes: leave out what depends on their count."
        ),
    ] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not go on from the last checkpoint: begin afresh.")
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|LEAST-MOST",
            help="Train on Ray with so many processes that share each batch, one a GPU or one a CPU; 2-8: "
            "with as many as the cluster has room for, while nodes leave and join.",
        ),
    ] = None,
    address: AddressOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's by default.")] = None,
) -> None:
    """Train the network of a configuration file; started again, it goes on from its last checkpoint."""
    config = read_config(config_path, changes or [])
    if drop_head and config.model.weights is None:
        fail("--drop-head: no weights to start from: the configuration names none under model")
    most, least = _worker_range(workers)
    on_ray = most is not None or config.parallel.workers is not None
    if address is not None and not on_ray:
        fail(f"--address is '{address}': say how many --workers there are to be")
    if threads is not None:
        if on_ray:
            fail(f"--threads is {threads}: a worker on a CPU has one")
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if address is None and config.precision == "bf16" and native_precision(device) == "fp32":
        console.print(
            f"precision is 'bf16': this {device.type} has no instructions for it and takes several times"
            " longer than in fp32 (--set precision=fp32)"
        )
    try:
        laid_out = config.model_copy(update={"parallel": config.parallel.of(most, least)})
        if dry_run:
            describe(config, laid_out if on_ray else None)
        else:
            start = config.model.weights
            if start is not None and is_remote(str(start)) and (from_scratch or not begun(config)):
                fetched(str(start))  # here it has a bar, and an error comes before any work
            with _progress(config) as show:
                if on_ray:
                    weights = _on_workers(laid_out, address, show, drop_head, from_scratch)
                else:
                    weights = fit(config, device, show, drop_head, from_scratch)
            print(weights)
    except (*USER_ERRORS, ValueError) as error:
        fail(error)


def _worker_range(text: str | None) -> tuple[int | None, int | None]:
    """The most and the least of `--workers`; the least is None where there is one number alone."""
    if text is None:
        return None, None
    numbers = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text)
    if numbers is None or (numbers[2] and int(numbers[1]) > int(numbers[2])):
        fail(f"--workers is '{text}': a number, or the least and the most, e.g. 2-8")
    return (int(numbers[2]), int(numbers[1])) if numbers[2] else (int(numbers[1]), None)


def _on_workers(
    config: TrainingConfig, address: str | None, show: Any, drop_head: bool, from_scratch: bool
) -> str:
    # Ray and DeepSpeed are imported where they are needed: they take seconds.
    from fullres.cluster import training
    from fullres.cluster.connection import ray_cluster

    with ray_cluster(address, config.worker_counts()[0]):
        return training.fit(config, None, show, drop_head, from_scratch)


@contextmanager
def _progress(config: TrainingConfig) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=config.steps, visible=False)  # until it has begun

        def show(report: StepReport) -> None:
            bar.update(task, completed=report.step, description=_in_short(report), visible=True)
            if not console.is_terminal and report.step % 200 == 0:
                console.print(f"step {report.step}/{report.steps} {_in_short(report)}")

        yield show


def _in_short(report: StepReport) -> str:
    parts = [
        f"loss {report.loss:.3f}",
        f"rate {report.learning_rate:.2g}",
        f"{report.images_per_second:.1f} images/s",
        f"{report.waiting:.0%} waiting",
        f"{report.memory / 1024:.1f} GiB",
    ]
    if report.mean_iou is not None:
        parts.append(f"mean IoU {report.mean_iou:.1%}")
    return "  ".join(parts)
