"""`fullres convert CHECKPOINT --model NAME --out FILE`: a checkpoint as a weights file of the project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

from fullres.jobs.common import check_model, check_writable, clear_errors, console, fail, known_dataset
from fullres.models.catalogue import CATALOGUE, Publisher, normalisation
from fullres.models.checkpoints import Checkpoint, WeightsError, read_checkpoint
from fullres.models.publishers import HRNETS, Recognised
from fullres.models.publishers.mmsegmentation import MMSEG, aligned
from fullres.models.weights import WeightsInfo, load_network, own_info, recognised, save_weights
from fullres.ops.normalisation import IMAGENET
from fullres.pipeline.data.files import atomic
from fullres.pipeline.datasets import DATASETS


def convert(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Of whatever framework.")],
    model: Annotated[str, typer.Option(help="The network; `fullres models` lists them.")],
    out: Annotated[Path, typer.Option(help="The weights file, .safetensors.")],
    like: Annotated[
        str | None, typer.Option(help="Whose network it is (mmseg, ...), where the file does not tell.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data set whose classes it labels, where the file does not say.")
    ] = None,
) -> None:
    """Write anybody's checkpoint as weights of the project; say what was recognised, left out, assumed."""
    check_model(model)
    if out.suffix != ".safetensors":
        fail(f"--out is '{out}': .safetensors is written")
    if like is not None and like not in CATALOGUE[model].publishers:
        fail(f"--like is '{like}': {model} has {', '.join(CATALOGUE[model].publishers) or 'none'}")
    with clear_errors():
        check_writable(out)
        read = read_checkpoint(checkpoint)
        own = own_info(checkpoint, read)
        known = cast(Publisher | None, like)
        found = Recognised(read.tensors) if own is not None else recognised(checkpoint, read, known)
        theirs = own.like if own is not None else found.like
        if like not in (None, theirs) and (own is not None or found.publisher is not None):
            whose = found.publisher or theirs or "its authors'"
            fail(f"--like is '{like}': {checkpoint} says it is {whose}")
        network, info = load_network(model, checkpoint, known)
        labels = dataset or info.dataset or _dataset(read.meta, info.num_classes)
        if labels is not None:
            classes = len(known_dataset(labels, info.num_classes if labels == "folder" else None).classes)
            if classes != info.num_classes:
                raise WeightsError(
                    f"weights {checkpoint}: {info.num_classes} classes, but {labels} has {classes}"
                )
        said = WeightsInfo(model, info.width, info.num_classes, labels, info.like)
        with atomic(out) as temporary:
            save_weights(network, temporary, said)
    whose = found.publisher or ("this project" if own else "nobody known by its names")
    _say("recognised", f"{whose}: {model}, {info.num_classes} classes, width {info.width:g}")
    _say("data set", labels or "not said: name it where the weights are used, --dataset")
    _say("left out", ", ".join(_left_out(read, found)) or "nothing")
    for line in _assumed(read, found, own, said, model, dataset):
        _say("assumed", line)
    print(out)


def _say(kind: str, line: str) -> None:
    console.print(f"{kind}: {escape(line)}", soft_wrap=True, highlight=False)


def _dataset(meta: Mapping[str, Any], num_classes: int) -> str | None:
    """The one whose classes have the names, in the order, that a checkpoint lists."""
    inner = meta.get("dataset_meta")
    listed = inner.get("classes") if isinstance(inner, Mapping) else meta.get("CLASSES")
    if not isinstance(listed, list | tuple) or len(listed) != num_classes:
        return None
    names = tuple(str(name).lower() for name in listed)
    known = (name for name, each in DATASETS.items() if tuple(c.lower() for c in each.classes) == names)
    return next(known, None)


def _left_out(read: Checkpoint, found: Recognised) -> list[str]:
    """By kind, with how many tensors."""
    counters = {name for name in found.state if name.endswith("num_batches_tracked")}
    auxiliary = {name for name in found.state if name.startswith("auxiliary.")} - counters
    kinds = {"tensors of auxiliary heads": auxiliary, "counters num_batches_tracked": counters}
    counted = [f"{len(names)} {kind}" for kind, names in kinds.items() if names]
    return counted + [entry for entry in read.beside if entry != "meta"]


def _assumed(
    read: Checkpoint,
    found: Recognised,
    own: WeightsInfo | None,
    said: WeightsInfo,
    model: str,
    dataset: str | None,
) -> list[str]:
    lines = []
    if read.chosen is not None:
        lines.append(f"the state dict is {read.chosen}")
    if found.publisher == MMSEG and aligned(read.meta) is None:
        lines.append("the settings of its usual configurations: the file has none that could differ")
    if found.publisher == HRNETS and found.like is None and "hrnet-aligned" in CATALOGUE[model].publishers:
        lines.append("no align_corners; HRNetV2 of the authors' OCR branch has it: --like hrnet-aligned")
    if (how := normalisation(said.like)) != IMAGENET:
        lines.append(f"images are read as {how.order}, less {how.mean}, by {how.std}")
    if own is None and found.publisher is None:
        whose = f"like {said.like}'s, as --like says" if said.like else "its authors' network"
        lines.append(f"{whose}: the names do not tell")
    if dataset is not None:
        lines.append(f"its classes are those of {dataset}, as --dataset says")
    return lines
