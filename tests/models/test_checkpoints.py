"""The forms in which people have state dicts, and what is no such thing. Nothing of a file is executed."""

import argparse
import collections
import copy
import struct
import sys
import types
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fullres.models.checkpoints import WeightsError, read_checkpoint

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([0.5])}


def prefixed(prefix):
    return {prefix + name: t for name, t in STATE.items()}


def saved(path, content, **how):
    torch.save(content, path, **how)
    return path


def assert_read(path):
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert {t.dtype for t in tensors.values()} == {torch.float32}


FORMS = {
    "plain": STATE,
    **{key: {key: STATE, "epoch": 3} for key in (
        *("state_dict", "model_state_dict", "model", "net", "network"),
        *("ema", "state_dict_ema", "model_ema", "ema_state_dict"),
    )},
    "nested twice": {"model": {"state_dict": STATE, "name": "net"}},
    **{prefix: prefixed(prefix) for prefix in (
        *("module.", "model.", "net.", "_orig_mod.", "module.model.", "model._orig_mod."),
        *("_orig_mod.module.", "module.net."),
    )},
    "compiled parts": {name.replace("conv.", "conv._orig_mod."): t for name, t in STATE.items()},
    "lightning": {
        "state_dict": prefixed("model."), "pytorch-lightning_version": "2.0", "epoch": 1, "callbacks": {},
        "hyper_parameters": {"arguments": argparse.Namespace(lr=0.1, out=Path("x"))},
    },
    "parameters": {name: nn.Parameter(t) for name, t in STATE.items()},
    "half": {"state_dict": {name: t.half() for name, t in STATE.items()}},
    "bfloat16": {name: t.bfloat16() for name, t in STATE.items()},
    "average": {"n_averaged": torch.tensor(3), **prefixed("module.")},
    "loss": {**prefixed("model."), "loss.criterion.weight": torch.ones(1), "criterion.weight": torch.ones(1)},
    "numpy": {"state_dict": STATE, "best": np.float64(0.5), "curve": np.ones(3), "steps": np.int64(4)},
    "others": {
        "state_dict": STATE, "a": collections.defaultdict(list, {"x": [1]}),
        "b": partial(int, 1), "c": {1, 2},
    },
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".ckpt", ".bin"])
def test_suffixes(tmp_path, suffix):
    assert_read(saved(tmp_path / f"w{suffix}", {"state_dict": STATE}))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form, old):
    assert_read(saved(tmp_path / "w.pth", FORMS[form], _use_new_zipfile_serialization=not old))


def test_safetensors_of_others(tmp_path):
    save_file({f"model.{name}": t.half() for name, t in STATE.items()}, tmp_path / "w.safetensors")
    assert_read(tmp_path / "w.safetensors")


def test_the_trained_weights_come_before_their_average(tmp_path):
    average = {name: t + 1 for name, t in STATE.items()}
    path = saved(tmp_path / "w.pth", {"ema": average, "optimizer": {}, "model": STATE})
    assert_read(path)
    read = read_checkpoint(path)
    assert (read.chosen, read.beside) == ("'model' of 'model', 'ema'", ("optimizer",))


@pytest.fixture
def foreign():
    """A package that is installed where a file is written, and not where it is read."""
    module = types.ModuleType("foreign_engine")

    class HistoryBuffer:
        def __init__(self):
            self.history = np.ones(3)

        def mean(self):
            return 1

    class ConfigDict(dict):
        pass

    for each in (HistoryBuffer, ConfigDict):
        each.__module__, each.__qualname__ = "foreign_engine", each.__name__
        setattr(module, each.__name__, each)
    sys.modules["foreign_engine"] = module
    yield module
    sys.modules.pop("foreign_engine", None)


@pytest.mark.parametrize("old", [False, True])
def test_values_of_classes_that_are_not_installed(tmp_path, foreign, old):
    tree = foreign.ConfigDict(a=1)
    tree["self"] = foreign.HistoryBuffer()
    content = {"meta": {"iter": np.int64(7), "seed": 1}, "state_dict": STATE, "message_hub": {
        "scalars": collections.OrderedDict(loss=foreign.HistoryBuffer()), "tree": tree,
        "method": foreign.HistoryBuffer().mean,
    }}  # fmt: skip
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=not old)
    del sys.modules["foreign_engine"]
    assert_read(path)
    read = read_checkpoint(path)
    assert read.meta["seed"] == 1
    assert read.beside == ("meta", "message_hub")
    assert "foreign_engine" not in sys.modules


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_executed(tmp_path, old):
    import os
    import subprocess

    mark = tmp_path / "written"
    for function, *arguments in (
        (open, str(mark), "w"),
        (eval, f"open({str(mark)!r}, 'w')"),
        (exec, f"open({str(mark)!r}, 'w')"),
        (os.mkdir, str(mark)),
        (subprocess.check_call, ["touch", str(mark)]),
        (__import__, "antigravity"),
    ):
        content = {"state_dict": STATE, "more": Evil(function, *arguments)}
        path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=not old)
        with pytest.raises(
            WeightsError, match=r"w\.pth: not a torch checkpoint of data alone \(it names "
        ) as e:
            read_checkpoint(path)
        assert len(str(e.value).splitlines()) == 1
        assert not mark.exists()


@pytest.mark.parametrize("length", [2, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_headers_that_claim_to_be_huge(tmp_path, length):
    """Of a safetensors file, whose first bytes say how long its header is."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    with pytest.raises(WeightsError, match=r"w\.safetensors: not a safetensors file \(.*\)$") as error:
        read_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_pickle_that_grows_when_it_is_unpacked(tmp_path):
    path = saved(tmp_path / "w.pth", STATE)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content + bytes(1 << 29) if name.endswith("/data.pkl") else content)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(WeightsError, match=r"w\.pth: its pickle has \d+ bytes, at most \d+ are read$"):
        read_checkpoint(path)


def test_getattr_and_its_kin_are_stand_ins(tmp_path):
    """They make methods, which checkpoints hold; here they make nothing."""
    found = []
    content = {"state_dict": STATE, "x": Evil(getattr, found, "append")}
    assert_read(saved(tmp_path / "w.pth", content))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}, lambda m: {"a": [m]}])
def test_a_pickled_network(tmp_path, wrap):
    path = saved(tmp_path / "w.pt", wrap(nn.Sequential(nn.Conv2d(1, 1, 1))))
    with pytest.raises(
        WeightsError, match=r"w\.pt: a whole pickled network \(torch\.nn\.modules\.\S+\), not"
    ) as e:
        read_checkpoint(path)
    assert len(str(e.value).splitlines()) == 1


def test_a_pickled_object_of_a_foreign_class(tmp_path, foreign):
    path = saved(tmp_path / "w.pt", foreign.HistoryBuffer())
    with pytest.raises(
        WeightsError, match=r"w\.pt: a pickled foreign_engine\.HistoryBuffer, not its state dict"
    ):
        read_checkpoint(path)


def test_torchscript(tmp_path):
    torch.jit.script(nn.Conv2d(1, 1, 1)).save(tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: a TorchScript program") as caught:
        read_checkpoint(tmp_path / "w.pt")
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(2).to_sparse(), "cpu sparse_coo float32"),
        (torch.zeros(2, dtype=torch.complex64), "cpu strided complex64"),
        (torch.zeros(2, device="meta"), "meta strided float32"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quantised"),
    ],
)
def test_tensors_of_other_kinds(tmp_path, tensor, kind):
    path = saved(tmp_path / "w.pth", {**STATE, "x": tensor})
    with pytest.raises(WeightsError, match=rf"w\.pth: x is {kind}; plain numbers are read$"):
        read_checkpoint(path)


def test_a_read_leaves_torch_as_it_was(tmp_path):
    before = copy.copy(torch.serialization.get_safe_globals())
    assert_read(saved(tmp_path / "w.pth", FORMS["numpy"]))
    assert torch.serialization.get_safe_globals() == before
