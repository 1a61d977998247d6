"""What several jobs share: option types, errors in one line, the connection to a Ray cluster."""

import enum
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from torch import nn

from fullres.models.catalogue import CATALOGUE, Publisher
from fullres.models.weights import WeightsError, WeightsInfo, load_network
from fullres.ops.errors import FullresError
from fullres.pipeline.datasets import Dataset, dataset
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.predict.execute import native_precision
from fullres.pipeline.predict.published import Published, is_remote, local_weights
from fullres.pipeline.predict.schedule import Precision
from fullres.pipeline.predict.shipped import needed_weights

console = Console(stderr=True, emoji=False)  # names with colons are no pictures

USER_ERRORS = (FullresError, OSError)

_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to run on ('auto', 'host:port'). A cluster of this machine's own by default."
    ),
]

WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="A file (.safetensors, .pth), a name of `fullres weights`, https:// or hf://; the "
        "shipped ones by default."
    ),
]


class PrecisionChoice(enum.StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def choose_precision(choice: PrecisionChoice, device: str) -> Precision:
    """What the option stands for on a device."""
    if choice is PrecisionChoice.auto:
        return native_precision(torch.device(device))
    return "fp32" if choice is PrecisionChoice.fp32 else "bf16"


def fail(message: object) -> NoReturn:
    """One clear line on standard error, exit status 2."""
    complain("error", message)
    raise typer.Exit(2)


def complain(kind: str, message: object) -> None:
    """One line on standard error, `kind: message`. Brackets in a user's names are no markup."""
    console.print(f"[red]{kind}:[/] {escape(str(message))}", soft_wrap=True, highlight=False)


def print_table(table: Table, width: int = 0) -> None:
    """On standard output, at least so wide: names and figures are whole, also in a pipe."""
    out = Console(emoji=False)
    out.width = max(out.width, width)
    out.print(table)


def check_writable(path: Path) -> None:
    """Raise OSError now where a file could not be written after long work. Its folder is made."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Users' mistakes end the job with one line instead of a traceback."""
    try:
        yield
    except USER_ERRORS as error:
        fail(error)


def parse_bytes(text: str) -> int:
    """'4GiB', '512 MiB', '1.5GB' or a number of bytes. Raises typer.BadParameter."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS or match[1].count(".") > 1 or match[1] == ".":
        raise typer.BadParameter(
            f"'{text}' is no amount of memory: write 512MiB, 4GiB, 2GB or a number of bytes"
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_workers(text: str) -> int | None:
    """A count, or None for 'auto'. Raises typer.BadParameter."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"'{text}' is no number of workers: write 1 or more, or auto")
    return int(text)


def parse_counts(option: str, text: str, least: int = 1) -> list[int]:
    """Numbers with commas between, e.g. 1,2,4."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() and int(number) >= least for number in numbers):
        fail(f"{option} is '{text}': whole numbers from {least}, with commas between")
    return [int(number) for number in numbers]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width, of `--size`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(int(match[1]), int(match[2])) < 1:
        fail(f"--size is '{text}': width x height in pixels, e.g. 2048x1024")
    return int(match[2]), int(match[1])


def check_model(name: str) -> None:
    """End the job where the catalogue has no such network."""
    if name not in CATALOGUE:
        fail(f"--model is '{name}': one of {', '.join(CATALOGUE)}")


class Asked(NamedTuple):
    """What options name: a network, the file of its weights if it is not that which comes with the project,
    the data set whose classes it labels if the file says it, and whose network it is if the file says it."""

    model: str
    weights: Path | None
    dataset: str | None
    like: Publisher | None = None


def load(asked: Asked) -> tuple[nn.Module, Dataset, Path]:
    """The network with its weights and the data set whose classes it labels. Raises what USER_ERRORS
    lists."""
    model, weights, dataset_name, like = asked
    check_model(model)
    if not CATALOGUE[model].segments:
        fail(f"--model is '{model}': it says where to sample an image, for --adaptive, and labels nothing")
    if dataset_name not in (None, "folder"):
        known_dataset(dataset_name)
    if weights is None:
        weights = needed_weights(model, dataset_name)
    network, info = load_network(model, weights, like)
    return network, _classes(info, weights, dataset_name), weights


def asked_for(model: str | None, weights: str | None, dataset_name: str | None) -> Asked:
    """Weights that are no path are fetched; those of the table say by themselves what they are of. Raises
    what USER_ERRORS lists."""
    if weights is None or not is_remote(weights):
        return Asked(model or "smp18", None if weights is None else Path(weights), dataset_name)
    path, row = fetched(weights)
    if row is None:
        return Asked(model or "smp18", path, dataset_name)
    if model not in (None, row.model):
        fail(f"--model is '{model}': {weights} is of {row.model}")
    return Asked(row.model, path, dataset_name or row.dataset, row.like)


def fetched(weights: str) -> tuple[Path, Published | None]:
    """What `local_weights` returns, with a bar that shows how much is there. Raises as it does."""
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with RichProgress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        return local_weights(weights, lambda done, total: bar.update(task, completed=done, total=total))


def own_network(factory: str) -> nn.Module:
    """What `package.module:factory` returns. It is looked for in the current folder too. Raises what the
    factory raises."""
    module, _, name = factory.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        fail(f"--network is '{factory}': package.module:factory, a function without arguments")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        make = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        fail(f"--network is '{factory}': {error}")
    network = make()
    if not isinstance(network, nn.Module):
        fail(f"--network: {factory} returns a {type(network).__name__}, not a network")
    return network.eval()


def known_dataset(name: str, classes: int | None = None, where: str = "--dataset") -> Dataset:
    """The data set that the option `where` names; "folder" has as many classes as `--classes` says."""
    if name == "folder":
        if classes is None:
            fail("--classes: say how many classes the folder's label maps have")
        return folder(classes)
    if classes is not None:
        fail(f"--classes is {classes}: only a folder has as many classes as you say, not {name}")
    try:
        return dataset(name)
    except ValueError as error:
        fail(f"{where}: {error}")


def parse_target_classes(text: str | None, known: Dataset) -> tuple[str, ...]:
    """The names that `--target-classes` lists, with commas between; the data set's own where it is not given,
    none for "all". Ends the job at a name that is no class."""
    if text is None:
        return known.target_classes
    names = () if text == "all" else tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known.classes:
            among = ", ".join(known.classes)
            fail(f"--target-classes: '{name}' is no class of {known.name}: {among}, or all of them: all")
    return names


def check_split(split: str, known: Dataset) -> None:
    """End the job where the data set has no such split."""
    if split not in known.splits:
        fail(f"--split is '{split}': {known.name} has {', '.join(known.splits)}")


def _classes(info: WeightsInfo, weights: Path, name: str | None) -> Dataset:
    name = name or info.dataset
    if name is None:
        fail(f"--dataset: weights {weights} do not say which classes they label; name the data set")
    known = known_dataset(name, info.num_classes if name == "folder" else None)
    if len(known.classes) != info.num_classes:
        raise WeightsError(
            f"weights {weights}: {info.num_classes} classes, but {known.name} has {len(known.classes)}; such "
            "weights are a start for training: fullres train CONFIG.toml --drop-head"
        )
    return known
