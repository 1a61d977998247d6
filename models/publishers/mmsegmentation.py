"""mmsegmentation (1.2.2): its names of tensors, and what its checkpoints say of their settings.

Its networks have the parameters of others and compute something else: they are built with
`catalogue.build(..., like="mmseg")`. A convolution and its batch norm are `conv` and `bn` of one module
there, here two layers of a row, as `parts.conv_bn` has them. Biases that authors have in front of batch
norms, and mmsegmentation has not, are zeros.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fullres.models.backbones.mobilenet import STAGES
from fullres.models.publishers.names import Rows, UnknownNames, has

MMSEG = "mmsegmentation"


def other_settings(meta: Mapping[str, Any]) -> str | None:
    """What the configuration in a checkpoint of mmsegmentation says that no `like` is, if anything: the
    tensors have the same shapes, and would compute something else."""
    text = _configuration(meta)
    settings = ("dilations=(1,1,1,2)", "dilations=(1,6,12,18)")
    there = [s for s in settings if s in text or s.replace("(", "[").replace(")", "]") in text]
    mixed = "align_corners=True" in text and "align_corners=False" in text
    return next(iter(there), "align_corners of some layers" if mixed else None)


def aligned(meta: Mapping[str, Any]) -> bool | None:
    """Whether the configuration in a checkpoint of mmsegmentation has align_corners; None: it has nothing."""
    text = _configuration(meta)
    return "align_corners=True" in text if "align_corners=" in text else None


def _configuration(meta: Mapping[str, Any]) -> str:
    """Without white space and commas behind the last of a list."""
    said = [meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)]
    return re.sub(r"\s", "", "".join(said)).replace(",)", ")").replace(",]", "]")


# A row is a pattern of how a name starts there, and what stands here instead.

_RESNET: Rows = (
    (r"backbone\.stem\.0\.", "backbone.conv1."),
    (r"backbone\.stem\.1\.", "backbone.bn1."),
    (r"backbone\.stem\.3\.", "backbone.conv2."),
    (r"backbone\.stem\.4\.", "backbone.bn2."),
    (r"backbone\.stem\.6\.", "backbone.conv3."),
    (r"backbone\.stem\.7\.", "backbone.bn3."),
    (r"backbone\.(layer[1-4]\.\d+\.(?:conv|bn|downsample))", r"backbone.\1"),
)

_HRNET: Rows = ((r"backbone\.((?:conv|bn)[12]|layer1|transition\d|stage\d)\.", r"backbone.\1."),)


def _pair(theirs: str, ours: str, first: int = 0) -> Rows:
    """A convolution with batch norm: there `conv` and `bn` of a module, here layers of a row."""
    return ((rf"{theirs}\.conv\.", f"{ours}.{first}."), (rf"{theirs}\.bn\.", f"{ours}.{first + 1}."))


def _separable(theirs: str, ours: str) -> Rows:
    return (*_pair(rf"{theirs}\.depthwise_conv", ours), *_pair(rf"{theirs}\.pointwise_conv", ours, 3))


def _mobilenet() -> Rows:
    rows = [*_pair(r"backbone\.conv1", "backbone.features.0")]
    block = 0
    for stage, (expansion, _, count, _) in enumerate(STAGES, 1):
        for i in range(count):
            block += 1
            theirs, ours = rf"backbone\.layer{stage}\.{i}\.conv", f"backbone.features.{block}.conv"
            last = 2 if expansion > 1 else 1  # the 1x1 down: layers of the block's own row
            for j in range(last):
                rows += _pair(rf"{theirs}\.{j}", f"{ours}.{j}")
            rows += [
                (rf"{theirs}\.{last}\.conv\.", f"{ours}.{last}."),
                (rf"{theirs}\.{last}\.bn\.", f"{ours}.{last + 1}."),
            ]
    return rows


def _auxiliary() -> Rows:
    """One head, or a list of them."""
    rows: list[tuple[str, str]] = []
    for theirs, ours in ((r"auxiliary_head", "auxiliary.0"), (r"auxiliary_head\.(\d+)", r"auxiliary.\1")):
        rows += [*_pair(rf"{theirs}\.convs\.0", ours), (rf"{theirs}\.conv_seg\.", f"{ours}.4.")]
    return rows


_HEAD = r"decode_head\."
_CLASSIFIER: Rows = ((_HEAD + r"conv_seg\.", "classifier.1."),)
_POOLS: Rows = _pair(_HEAD + r"psp_modules\.(\d)\.1", r"ppm.features.\1", 1)


def _asymmetric(theirs: str, ours: str) -> Rows:
    """ANN's attention and what mixes its result with its input."""
    stage = _HEAD + rf"{theirs}\.stages\.0\."
    return (
        *_pair(stage + "key_project", f"{ours}.attention.key"),
        *_pair(stage + "query_project", f"{ours}.attention.query"),
        (stage + r"value_project\.", f"{ours}.attention.value."),
        (stage + r"out_project\.", f"{ours}.attention.out."),
        *_pair(_HEAD + rf"{theirs}\.bottleneck", f"{ours}.mix"),
    )


def _attention(theirs: str, ours: str) -> Rows:
    """OCRNet's transforms, here a convolution and a row of batch norm and ReLU each."""
    rows: list[tuple[str, str]] = []
    block = _HEAD + r"1\.object_context_block\." + theirs
    for their, first in ((r"\.0", 0), (r"\.1", 2), ("", 0)):
        rows += [
            (rf"{block}{their}\.conv\.", f"{ours}.{first}."),
            (rf"{block}{their}\.bn\.", f"{ours}.{first + 1}.0."),
        ]
    return rows


_BLOCK = "ocr_distri_head.object_context_block"

# By family: a start of a name that no other family above it has, and the head's names.
_HEADS: dict[str, tuple[str, Rows]] = {
    "ocrnet": (
        "decode_head.1.object_context_block.",
        (
            *_pair(_HEAD + r"0\.convs\.0", "aux_head"),
            (_HEAD + r"0\.conv_seg\.", "aux_head.3."),
            (_HEAD + r"1\.conv_seg\.", "cls_head."),
            *_pair(_HEAD + r"1\.bottleneck", "conv3x3_ocr"),
            *_attention("query_project", f"{_BLOCK}.f_pixel"),
            *_attention("key_project", f"{_BLOCK}.f_object"),
            *_attention("value_project", f"{_BLOCK}.f_down"),
            *_attention("out_project", f"{_BLOCK}.f_up"),
            *_attention("bottleneck", "ocr_distri_head.conv_bn_dropout"),
        ),
    ),
    "upernet": (
        "decode_head.lateral_convs.",
        (
            *_CLASSIFIER,
            *_POOLS,
            *_pair(_HEAD + "bottleneck", "top"),
            *_pair(_HEAD + r"lateral_convs\.(\d)", r"lateral.\1"),
            *_pair(_HEAD + r"fpn_convs\.(\d)", r"smooth.\1"),
            *_pair(_HEAD + "fpn_bottleneck", "fuse"),
        ),
    ),
    "pspnet": (
        "decode_head.psp_modules.",
        (*_POOLS, *_pair(_HEAD + "bottleneck", "cls"), (_HEAD + r"conv_seg\.", "cls.4.")),
    ),
    "ann": (
        "decode_head.fusion.",
        (
            *_CLASSIFIER,
            *_asymmetric("fusion", "fusion"),
            *_asymmetric("context", "context"),
            *_pair(_HEAD + "bottleneck", "reduce", 1),
        ),
    ),
    "dmnet": (
        "decode_head.dcm_modules.",
        (
            *_CLASSIFIER,
            (_HEAD + r"dcm_modules\.(\d)\.filter_gen_conv\.", r"scales.\1.filters."),
            *_pair(_HEAD + r"dcm_modules\.(\d)\.input_redu_conv", r"scales.\1.reduce"),
            (_HEAD + r"dcm_modules\.(\d)\.norm\.", r"scales.\1.norm."),
            *_pair(_HEAD + "bottleneck", "join"),
        ),
    ),
    "deeplabv3plus": (
        "decode_head.sep_bottleneck.",
        (
            *_CLASSIFIER,
            *_pair(_HEAD + r"image_pool\.1", "aspp.image", 1),
            *_pair(_HEAD + r"aspp_modules\.0", "aspp.pixel"),
            *(
                row
                for i in (1, 2, 3)
                for row in _separable(_HEAD + rf"aspp_modules\.{i}", f"aspp.atrous.{i - 1}")
            ),
            *_pair(_HEAD + "bottleneck", "projection"),
            *_pair(_HEAD + "c1_bottleneck", "low_level"),
            *_separable(_HEAD + r"sep_bottleneck\.(\d)", r"decoder.\1"),
        ),
    ),
    "ccnet": (
        "decode_head.cca.",
        (
            *_CLASSIFIER,
            (_HEAD + r"cca\.(query|key|value)_conv\.", r"attention.\1."),
            (_HEAD + r"cca\.gamma\.scale$", "attention.gamma"),
            *_pair(_HEAD + r"convs\.0", "before"),
            *_pair(_HEAD + r"convs\.1", "behind"),
            *_pair(_HEAD + "conv_cat", "join"),
        ),
    ),
    "dilatedfcn": (
        "decode_head.conv_cat.",
        (
            *_pair(_HEAD + r"convs\.(\d)", r"before.\1"),
            *_pair(_HEAD + "conv_cat", "cls"),
            (_HEAD + r"conv_seg\.", "cls.4."),
        ),
    ),
    "hrnet": (
        "backbone.stage4.",
        (*_pair(_HEAD + r"convs\.0", "last_layer"), (_HEAD + r"conv_seg\.", "last_layer.3.")),
    ),
}

# Biases that they have not, and a tensor with as many values.
_NO_BIAS = {"hrnet": ("last_layer.0",), "ocrnet": ("aux_head.0", "conv3x3_ocr.0")}


def renamed_mmseg(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Under the project's names, and of which family of the catalogue the network is. Raises
    UnknownNames."""
    family = next((name for name, (start, _) in _HEADS.items() if has(state, start)), None)
    if family is None:
        raise UnknownNames(MMSEG, sorted(name for name in state if name.startswith("decode_head.")))
    rows = [(re.compile(a), b) for a, b in (*_backbone(state), *_auxiliary(), *_HEADS[family][1])]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        row = next(((pattern, ours) for pattern, ours in rows if pattern.match(name)), None)
        if row is None:
            unknown.append(name)
        else:
            renamed[row[0].sub(row[1], name, count=1)] = tensor
    if unknown:
        raise UnknownNames(MMSEG, sorted(unknown))
    if family == "ann":
        renamed = _one_transform(renamed)
    if family == "ccnet" and "attention.gamma" in renamed:
        renamed["attention.gamma"] = renamed["attention.gamma"].reshape(1)
    for layer in _NO_BIAS.get(family, ()):
        if (weight := renamed.get(f"{layer}.weight")) is not None and weight.dim() == 4:
            renamed[f"{layer}.bias"] = torch.zeros_like(weight[:, 0, 0, 0])
    return renamed, family


def _backbone(state: Mapping[str, Tensor]) -> Rows:
    if has(state, "backbone.stage2."):
        return _HRNET
    return _mobilenet() if has(state, "backbone.layer7.") else _RESNET


def _one_transform(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ANN's self attention has one transform for queries and keys, which mmsegmentation writes down twice.
    Where the two differ they stay, and fit no network."""
    query, key = "context.attention.query.", "context.attention.key."
    twice = [name for name in state if name.startswith(query)]
    same = (key + name.removeprefix(query) for name in twice)
    equal = {
        name
        for name, other in zip(twice, same, strict=True)
        if other in state and torch.equal(state[name], state[other])
    }
    return {name: t for name, t in state.items() if name not in equal}
