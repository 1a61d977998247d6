"""Trained networks in files for elsewhere: weights under published names, and graphs of the evaluation form.

- A graph is the network as `torch.export` writes it down: normalised images N x 3 x H x W to logits N x
  classes x H x W, fp32, without the project's code. ONNX is made from the same graph.
- It holds for any batch and any size from `LEAST_SIDE` on where torch can write the network down so, else for
  one image of one size. Which networks those are is not listed here: torch refuses the others, but for the
  pooling below.
- SMP's graph has dilation in the place of its splits, which computes the same: a tree of 1,024 leaves would
  be a graph of a hundred thousand operations, for one size, and takes minutes to write down.
"""

import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram, default_decompositions

from fullres.models.catalogue import CATALOGUE, build
from fullres.models.checkpoints import damaged_entry
from fullres.models.smp import SMP
from fullres.models.weights import (
    WeightsError,
    WeightsInfo,
    load_network,
    load_state,
    published_backbone,
    published_state,
    read_state,
    save_weights,
)
from fullres.ops.errors import FullresError
from fullres.pipeline.data.files import atomic
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.train.checkpoint import name_of, saved
from fullres.pipeline.train.config import DataConfig, ModelConfig
from fullres.pipeline.train.network import without_training_parts

WEIGHTS, GRAPHS = (".safetensors", ".pth"), (".pt2", ".onnx")
LEAST_SIDE = 64  # of images that graphs for all sizes take
_EXAMPLE = (2, 3, 97, 129)  # no two lengths of any feature are equal, or torch would take them for one
_aten = torch.ops.aten


class ExportError(FullresError, ValueError):
    """What can't be exported, and why. One line."""


def trained_network(run: Path, model: str | None = None) -> tuple[nn.Module, WeightsInfo]:
    """The network that a training left in its folder, or that of a weights file; in evaluation mode, fp32, on
    the CPU. The info's `model` is its name.

    Of a folder that is the best network if there is one, else the last, else that of the newest checkpoint.
    `model` is needed where a file does not say which network it is. Raises ExportError, WeightsError,
    OSError.
    """
    if not run.is_dir():
        return _of_weights(run, model)
    for name in ("best.safetensors", "weights.safetensors"):
        if (run / name).exists():
            return _of_weights(run / name, model)
    if not (steps := saved(Storage(str(run)))):
        raise ExportError(
            f"{run}: no output of a training: none of best.safetensors, weights.safetensors, checkpoints"
        )
    last = run / name_of(steps[-1])
    network, info = _of_checkpoint(last)
    if model not in (None, info.model):
        raise WeightsError(f"{last}: of model {info.model}, not of {model}")
    return network, info


def _of_weights(path: Path, model: str | None) -> tuple[nn.Module, WeightsInfo]:
    if model is None:
        _, said = read_state(path)
        if said is None or said.model is None:
            raise ExportError(f"--model: weights {path} do not say which network they are; name it")
        model = said.model
    network, info = load_network(model, path)
    return network, WeightsInfo(model, info.width, info.num_classes, info.dataset, info.like)


def _of_checkpoint(path: Path) -> tuple[nn.Module, WeightsInfo]:
    """Without the auxiliary heads that served its training."""
    if (entry := damaged_entry(path)) is not None:
        raise WeightsError(f"{path} is damaged ({entry})")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        config = json.loads(state["config"])
        data, of_model = DataConfig(**config["data"]), ModelConfig(**config["model"])
    except (EOFError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is no checkpoint of a training") from error
    known = data.known()
    info = WeightsInfo(of_model.name, of_model.width, len(known.classes), known.name, of_model.like)
    network = build(of_model.name, info.num_classes, info.width, info.like)
    load_state(network, without_training_parts(state["network"]), str(path))
    return network.eval(), info


def export_weights(network: nn.Module, info: WeightsInfo, out: Path, backbone: bool = False) -> None:
    """Write weights: `.safetensors`, the project's own file, or `.pth`, a state dict under published names.
    With `backbone` the encoder alone, under its published names in both. Raises WeightsError, OSError."""
    assert info.model is not None
    state: dict[str, Tensor] = {}
    if backbone:
        state = published_backbone(info.model, network)
    elif out.suffix == ".pth":
        # Under its authors' names the former would be read as theirs, and names alone tell no downsampler.
        if info.like is not None or not CATALOGUE[info.model].segments:
            like = "" if info.like is None else f" like {info.like}"
            raise WeightsError(f"{out}: {info.model}{like} is written as .safetensors alone")
        state = published_state(info.model, network)
    with atomic(out) as temporary:
        if out.suffix == ".pth":
            torch.save(state, temporary)
        elif backbone:
            tensors = {name: t.contiguous() for name, t in state.items()}
            temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
        else:
            save_weights(network, temporary, info)


def export_graph(network: nn.Module, model: str, out: Path, size: tuple[int, int] | None = None) -> None:
    """Write the evaluation form: `.pt2` for `torch.export.load`, or `.onnx`, with everything in one file.

    `size`: height and width of the one image that the graph takes; without it the graph takes any batch of
    images of any size from `LEAST_SIDE` on. Raises ExportError for a network that has no such graph, and
    where a package for ONNX is missing, OSError.
    """
    if out.suffix == ".onnx":
        _check_onnx()
    with _quiet():
        program = _program(_evaluation_form(network), model, size)
        if out.suffix == ".pt2":
            with atomic(out) as temporary, temporary.open("wb") as file:
                torch.export.save(program, file)
            return
        onnx = _onnx(program, model, size)
        with atomic(out) as temporary:
            onnx.save(temporary, external_data=False)


def _evaluation_form(network: nn.Module) -> nn.Module:
    return deepcopy(network).without_splits().eval() if isinstance(network, SMP) else network


def _dimensions(size: tuple[int, int] | None) -> Any:
    """What `torch.export` takes as dynamic_shapes."""
    if size is not None:
        return None
    sides = {axis: Dim(name, min=LEAST_SIDE) for axis, name in ((2, "height"), (3, "width"))}
    return ({0: Dim("batch"), **sides},)


def _program(network: nn.Module, model: str, size: tuple[int, int] | None) -> ExportedProgram:
    image = torch.zeros(_EXAMPLE if size is None else (1, 3, *size))
    try:
        with torch.no_grad():
            return torch.export.export(network, (image,), dynamic_shapes=_dimensions(size))
    except UserError as error:
        if size is not None:
            raise
        raise ExportError(
            f"{model} has no graph for all sizes (torch.export would bind it to some of them); "
            "give --size for a graph of one size"
        ) from error


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX needs the package {error.name}: pip install 'fullres[export]'") from error


def _onnx(program: ExportedProgram, model: str, size: tuple[int, int] | None) -> torch.onnx.ONNXProgram:
    if size is None and any(_bins(node) for node in program.graph.nodes):
        # torch converts it, but for the example's size: other sizes are wrong without an error.
        raise ExportError(
            f"{model} has no ONNX graph for all sizes: ONNX has no adaptive pooling; give --size for a graph "
            "of one size, or write .pt2"
        )
    # torch's converter has attention for four axes only.
    attention = _aten.scaled_dot_product_attention.default
    program = program.run_decompositions({attention: default_decompositions()[attention]})
    try:
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["image"], output_names=["logits"],
            dynamic_shapes=_dimensions(size),
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        one = "" if size is not None else " for all sizes; give --size for a graph of one size, or write .pt2"
        raise ExportError(f"{model} has no ONNX graph{one}: torch converts not all of it") from error
    assert made is not None
    return made


def _bins(node: torch.fx.Node) -> bool:
    """Whether it pools to more than one bin, whatever the size of what it reads."""
    pools = (_aten.adaptive_avg_pool2d.default, _aten.adaptive_max_pool2d.default)
    return node.target in pools and list(node.args[1]) != [1, 1]  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notices on its own deprecations and on packages that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
