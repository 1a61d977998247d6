"""Files with tensors in them, whoever wrote them: names and tensors, and what else they say.

Nothing of a file is executed. torch reads its pickles without unpickling code; names that it does not know
(HistoryBuffer of mmengine, numpy's scalars, `argparse.Namespace`) are replaced by inert stand-ins, which take
whatever the pickle gives them and do nothing with it. What can't be data is refused by name.
"""

import pickle
import pickletools
import re
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fullres.ops.errors import FullresError

TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")

# Where training frameworks put a state dict, the trained one before its moving average.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network")
_AVERAGES = ("ema", "state_dict_ema", "model_ema", "ema_state_dict")
_PREFIXES = ("module.", "model.", "net.", "network.")
_NOT_OF_THE_NETWORK = ("loss.", "criterion.", "n_averaged")

# What the standard library has that is data, and functions that data is made by.
_DATA_MODULES = (
    *("argparse", "collections", "copyreg", "_codecs", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "operator", "pathlib", "re", "types", "typing", "uuid"),
)
_DATA_BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list"),
    *("object", "range", "set", "slice", "str", "tuple", "type"),
)

_PICKLE = 1 << 28  # bytes: names and shapes alone, far below it in any network

_DICTS = ("dict", "Dict", "CfgNode")  # of collections, addict, easydict, mmengine, yacs


class WeightsError(FullresError, ValueError):
    """A weights file that can't be read or is not of this network. One line."""


@dataclass(frozen=True)
class Checkpoint:
    """tensors: strided, on the CPU, half precision as fp32. meta: of `.safetensors` its metadata, else what
    the file calls so, as far as it is plain values. chosen: the entry that was taken and those that were not,
    where there are several state dicts. beside: the other entries."""

    tensors: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    chosen: str | None = None
    beside: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """All tensors of a file by name, without what frameworks put in front of the names. Raises WeightsError.

    `.safetensors`, or torch's `.pth`, `.pt`, `.pth.tar`, `.ckpt`, `.bin`: a state dict, or one inside of
    dicts of training frameworks.
    """
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in TORCH_SUFFIXES:
        raise WeightsError(
            f"weights {path}: '{path.suffix}' is not read; .safetensors, .pth, .pt, .tar, .ckpt and .bin are"
        )
    content, chosen, beside = _load_torch(path), None, []
    meta = content.get("meta") if isinstance(content, dict) else None
    while isinstance(content, dict) and not any(isinstance(t, Tensor) for t in content.values()):
        there = [key for key in (*_NESTED, *_AVERAGES) if isinstance(content.get(key), dict)]
        if not there:
            break
        if len(there) > 1:
            chosen = f"'{there[0]}' of {', '.join(repr(key) for key in there)}"
        beside += [key for key in content if key not in there]
        content = content[there[0]]
    tensors = _tensors(path, content)
    return Checkpoint(tensors, meta if isinstance(meta, dict) else {}, chosen, tuple(map(str, beside)))


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights {path}: not a safetensors file ({error})") from error
    if "fullres" in metadata:
        return Checkpoint({name: _single(t) for name, t in state.items()}, metadata)
    return Checkpoint(_tensors(path, state), metadata)


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Of a state dict, in which other values than tensors may stand. Raises WeightsError without any."""
    if isinstance(content, _Inert):
        raise WeightsError(
            f"weights {path}: a pickled {content.name}, not its state dict, which is what is read"
        )
    found = content.items() if isinstance(content, dict) else ()
    state = {name: t for name, t in found if isinstance(t, Tensor) and isinstance(name, str)}
    state = {name.replace("_orig_mod.", ""): t for name, t in state.items()}  # torch.compile's
    state = {name: t for name, t in state.items() if not name.startswith(_NOT_OF_THE_NETWORK)}
    if not state:
        raise WeightsError(f"weights {path}: holds no state dict of tensors")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): t for name, t in state.items()}
    for name, t in state.items():
        if t.layout != torch.strided or t.is_quantized or t.is_complex() or t.is_meta:
            kind = "quantised" if t.is_quantized else f"{t.device} {str(t.layout)[6:]} {str(t.dtype)[6:]}"
            raise WeightsError(f"weights {path}: {name} is {kind}; plain numbers are read")
    return {name: _single(t) for name, t in state.items()}


def _single(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


class _Inert:
    """Stands for a class or function that a pickle names. Takes everything, does nothing."""

    name = "object"

    def __new__(cls, *_args: Any, **_keywords: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _InertDict:
    """Stands for a kind of dict: torch's reader puts items into plain ones alone."""

    def __new__(cls, *_args: Any, **_keywords: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _load_torch(path: Path) -> Any:
    """What a torch file holds, with stand-ins for all that is neither a tensor nor a plain value."""
    if (entry := damaged_entry(path)) is not None:
        raise WeightsError(f"weights {path}: damaged: {entry}")
    try:
        names = _globals(path)
        if (refused := next((name for name in sorted(names) if not _may_be_data(name)), None)) is not None:
            raise WeightsError(f"weights {path}: {_refusal(refused)}")
        # torch's own come before them.
        inert = [
            (type("Inert", (_InertDict if name.endswith(_DICTS) else _Inert,), {"name": name}), name)
            for name in sorted(names)
        ]
        with torch.serialization.safe_globals(inert):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"weights {path}: not a torch checkpoint ({_said(error)})") from error
    except Exception as error:  # anything: bytes that are no pickle are taken for instructions
        raise WeightsError(f"weights {path}: not a torch checkpoint ({type(error).__name__})") from error


def _globals(path: Path) -> set[str]:
    """The classes and functions that a torch file's pickles name, `module.name`. Before 2020 the pickle is
    the fourth of the file, behind a number, a version and facts of the machine."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise WeightsError(
                    f"weights {path}: a TorchScript program, not a state dict, which is what is read"
                )
            if (size := max((archive.getinfo(entry).file_size for entry in entries), default=0)) > _PICKLE:
                raise WeightsError(f"weights {path}: its pickle has {size} bytes, at most {_PICKLE} are read")
            return {name for entry in entries for name in _globals_of(archive.read(entry))}
    with path.open("rb") as file:
        return {name for _ in range(4) for name in _globals_of(file)}


def _globals_of(file: Any) -> set[str]:
    """Of one pickle. As `pickle` does, names of Python 2 are taken for those of 3."""
    found = set()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            found.add(f"{module}.{name}")
    return found


def _may_be_data(name: str) -> bool:
    """Whether a stand-in may take the place of a class or function. Outside of the standard library any
    name may: nothing is imported."""
    package, _, rest = name.partition(".")
    if package == "builtins":
        return rest in _DATA_BUILTINS
    return not name.startswith("torch.nn.modules.") and (
        package not in sys.stdlib_module_names or package in _DATA_MODULES
    )


def _refusal(name: str) -> str:
    if name.startswith("torch.nn.modules."):
        return f"a whole pickled network ({name}), not its state dict, which is what is read"
    return f"not a torch checkpoint of data alone (it names {name})"


def _said(error: Exception) -> str:
    """torch's reason in a line, without its advice and its terminal codes."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    line = (text.partition("WeightsUnpickler error: ")[2] or text).strip().partition("\n")[0]
    return re.split(r"\. Please|; please", line)[0][:200] or "empty"


def damaged_entry(file: Path | IO[bytes]) -> str | None:
    """The first entry of a torch checkpoint that its checksum does not fit: torch's reader doesn't look. None
    for a sound one, and for what is no zip archive."""
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        return str(error)


def listed(names: list[str], most: int = 8) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
