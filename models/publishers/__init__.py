"""Whose checkpoint a state dict is, and its tensors under this project's names.

- A publisher is recognised by the names alone. Each has a table: what names start with there, and here. What
  no row takes is an error that lists it, but for auxiliary heads and what belongs to the loss.
- hszhao/semseg's PSPNet and the HRNet authors' networks are those that the catalogue builds by itself.
- NVIDIA's OCRNet and HMSA have a module between a batch norm and its row, and names for HMSA's layers.
- The CCNet authors' in-place batch norm multiplies by the absolute value of its weight and 1e-5 more: that is
  what the weight becomes here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from fullres.models.catalogue import Publisher
from fullres.models.publishers.mmsegmentation import MMSEG, renamed_mmseg
from fullres.models.publishers.names import Rows, UnknownNames, has, with_starts

SEMSEG, HRNETS = "hszhao/semseg", "HRNet-Semantic-Segmentation"
NVIDIA, CCNET = "NVIDIA/semantic-segmentation", "speedinghzl/CCNet"


@dataclass(frozen=True)
class Recognised:
    """state: under the project's names, those of a backbone with or without `backbone.`. publisher: in words.
    like: what `catalogue.build` is asked for. family: of the catalogue's networks (`Entry.family`), None
    where the names do not tell."""

    state: dict[str, Tensor]
    publisher: str | None = None
    like: Publisher | None = None
    family: str | None = None


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """A state dict of anybody's. One that nobody is known by comes back as it is. Raises UnknownNames."""
    if has(state, "decode_head."):
        renamed, family = renamed_mmseg(state)
        return Recognised(renamed, MMSEG, "mmseg", family)
    if has(state, "layer0."):
        return Recognised(with_starts(state, _SEMSEG), SEMSEG, family="pspnet")
    if has(state, "ocr.cls_head."):
        return _nvidia(state)
    if has(state, "head.bottleneck.") and any(
        has(state, start) for start in ("head.cca.", "head.pc.", "dsn.")
    ):
        return _ccnet(state)
    if has(state, "stage4.") and (has(state, "last_layer.") or has(state, "ocr_distri_head.")):
        return Recognised(dict(state), HRNETS)
    return Recognised(dict(state))


def backbone_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a ResNet by itself, with mmsegmentation's names of a deep stem (`resnet50_v1c`) or anybody's."""
    layers = [(a.replace("layer0.", "stem."), b.removeprefix("backbone.")) for a, b in _SEMSEG]
    return with_starts(state, layers)


def own_names(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The names `own` of a network for those of a backbone by itself. Auxiliary heads are left out where it
    has none: they serve training alone."""
    named = {}
    for name, tensor in state.items():
        name = f"backbone.{name}" if f"backbone.{name}" in own else name
        if name in own or not name.startswith("auxiliary."):
            named[name] = tensor
    return named


def semseg_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A PSPNet's state dict as semseg writes it, but for names that start with `backbone.`."""
    return with_starts(state, [(ours, theirs) for theirs, ours in _SEMSEG])


# Its stem is a row of layers, convolution, batch norm, ReLU, three times.
_SEMSEG: Rows = (
    ("layer0.0.", "backbone.conv1."),
    ("layer0.1.", "backbone.bn1."),
    ("layer0.3.", "backbone.conv2."),
    ("layer0.4.", "backbone.bn2."),
    ("layer0.6.", "backbone.conv3."),
    ("layer0.7.", "backbone.bn3."),
    ("aux.", "auxiliary.0."),
)


_NVIDIA: Rows = (
    ("ocr.conv3x3_ocr.1.0.", "conv3x3_ocr.1."),
    ("ocr.aux_head.1.0.", "aux_head.1."),
    ("ocr.aux_head.2.", "aux_head.3."),
    ("ocr.", ""),
    ("scale_attn.conv0.", "scale_attn.0."),
    ("scale_attn.bn0.", "scale_attn.1."),
    ("scale_attn.conv1.", "scale_attn.3."),
    ("scale_attn.bn1.", "scale_attn.4."),
    ("scale_attn.conv2.", "scale_attn.6."),
)


def _nvidia(state: Mapping[str, Tensor]) -> Recognised:
    renamed = with_starts(state, _NVIDIA)
    if has(state, "scale_attn."):
        return Recognised(renamed, NVIDIA, family="hmsa")
    return Recognised(renamed, NVIDIA, "nvidia", "ocrnet")


# Of 2018 with 1a, pc and 1b in the head.
_CCNET: Rows = (
    *((f"head.{name}.", "before.") for name in ("conva", "conv1a")),
    *(
        (f"head.{name}.{part}_conv.", f"attention.{part}.")
        for name in ("cca", "pc")
        for part in ("query", "key", "value")
    ),
    *((f"head.{name}.", "attention.") for name in ("cca", "pc")),
    *((f"head.{name}.", "behind.") for name in ("convb", "conv1b")),
    ("head.bottleneck.3.", "classifier.1."),
    ("head.bottleneck.", "join."),
    ("dsn.3.", "auxiliary.0.4."),
    ("dsn.", "auxiliary.0."),
)


def _ccnet(state: Mapping[str, Tensor]) -> Recognised:
    # Their batch norm counts nothing. Another one would have no such factor, and perhaps another activation.
    theirs = ("conv", "bn", "layer", "head.conv", "head.cca.", "head.pc.", "head.bottleneck.", "dsn.")
    unknown = [name for name in state if not name.startswith(theirs) or name.endswith("num_batches_tracked")]
    if unknown:
        raise UnknownNames(CCNET, sorted(unknown))
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    factors = {name: state[name].abs() + 1e-5 for norm in norms if (name := f"{norm}weight") in state}
    return Recognised(with_starts({**state, **factors}, _CCNET), CCNET, "ccnet", "ccnet")
