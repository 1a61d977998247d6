import json
import math

import pytest
import torch
from safetensors.torch import save_file

from fullres.models.catalogue import build
from fullres.models.weights import (
    WeightsError,
    WeightsInfo,
    load_backbone,
    load_network,
    load_state,
    read_state,
    save_weights,
)
from tests.models.checkpoints import random_state

torch.set_num_threads(1)

WIDTH, CLASSES = 1 / 16, 5


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("smp18", CLASSES, WIDTH).eval()


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(network, path, WeightsInfo("smp18", WIDTH, CLASSES, "camvid"))
    return path


def assert_same_parameters(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_round_trip(network, saved):
    loaded, info = load_network("smp18", saved)
    assert_same_parameters(loaded, network)
    assert not loaded.training
    assert info == WeightsInfo("smp18", WIDTH, CLASSES, "camvid")


def test_half_precision_on_disk_is_single_precision_in_memory(network, tmp_path, saved):
    path = tmp_path / "half.safetensors"
    save_weights(network, path, WeightsInfo("smp18", WIDTH, CLASSES), torch.float16)
    loaded, _ = load_network("smp18", path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for own, original in zip(loaded.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, original.half().float())
    assert path.stat().st_size < 0.6 * saved.stat().st_size


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{name}": t for name, t in state.items()},
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {f"model.{name}": t for name, t in state.items()},
        lambda state: {f"module.model.{name}": t for name, t in state.items()},
    ],
    ids=["plain", "state_dict", "model", "module.", "both", "model.", "module.model."],
)
def test_what_training_frameworks_wrap_around_a_state_dict_is_taken_off(network, tmp_path, wrap, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(wrap(network.state_dict()), path)
    loaded, info = load_network("smp18", path)
    assert_same_parameters(loaded, network)
    assert (info.model, info.width, info.num_classes) == (None, WIDTH, CLASSES)


def test_weights_of_the_same_layout_serve_fcn32s_if_they_do_not_say_otherwise(network, saved, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded, _ = load_network("fcn32s18", tmp_path / "w.pth")
    assert_same_parameters(loaded, network)
    with pytest.raises(WeightsError, match="of model smp18, not of fcn32s18"):
        load_network("fcn32s18", saved)


def test_every_missing_unexpected_and_misshapen_key_is_listed_and_nothing_changed(network):
    before = {name: t.clone() for name, t in network.state_dict().items()}
    state = {name: t + 1 for name, t in before.items()}
    del state["backbone.conv1.weight"], state["backbone.layer1.0.bn1.running_var"]
    state["head.weight"] = state["extra"] = torch.zeros(1)
    state["classifier.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError) as caught:
        load_state(network, state, "weights w.pth")
    assert str(caught.value) == (
        "weights w.pth do not fit the network. "
        "missing: backbone.conv1.weight, backbone.layer1.0.bn1.running_var; "
        "unexpected: extra, head.weight; "
        "shapes: classifier.bias is (7,), the network has (5,)"
    )
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_counters_that_inference_never_reads_may_be_absent(network):
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    other = build("smp18", CLASSES, WIDTH)
    load_state(other, state, "weights")
    assert torch.equal(other.classifier.weight, network.classifier.weight)


def test_wrong_class_count(network):
    with pytest.raises(
        WeightsError, match=r"classifier\.weight is \(5, 32, 1, 1\), the network has \(19, 32, 1, 1\)"
    ):
        load_state(build("smp18", 19, WIDTH), network.state_dict(), "weights")


@pytest.mark.parametrize(
    ("model", "key"), [("smp34", "missing: .*layer1.2"), ("fcn8s18", "missing: classifier16.bias")]
)
def test_weights_of_another_network(network, tmp_path, model, key):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=key):
        load_network(model, tmp_path / "w.pth")


def test_unknown_model_lists_the_known_ones(saved):
    with pytest.raises(ValueError, match=r"model is 'smp19': one of smp18, smp34, .*fcn8s152"):
        load_network("smp19", saved)
    with pytest.raises(ValueError, match="model is 'smp19': one of smp18"):
        build("smp19", 5)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_file(network, saved, tmp_path, suffix, share):
    if suffix == ".pth":
        saved = tmp_path / "w.pth"
        torch.save(network.state_dict(), saved)
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=f"weights .*w{suffix}: not a") as caught:
        load_network("smp18", saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_of_something_else(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(WeightsError, match="not a"):
        read_state(path)


@pytest.mark.parametrize("content", [b"hi", b"h\n", b"e", b"\x80\x02Q.", b"0", b"a", b"\xff" * 9, b"q\x01"])
def test_short_files_of_something_else(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights .*w\.pth: not a torch checkpoint \(") as caught:
        read_state(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no such file"):
        read_state(tmp_path)


def test_foreign_suffix(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"'\.onnx' is not read; \.safetensors, \.pth, \.pt, \.tar, "):
        read_state(tmp_path / "w.onnx")


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not a torch checkpoint"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2), {"state_dict": {"a": 1}}])
def test_a_checkpoint_without_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict of tensors"):
        read_state(tmp_path / "w.pth")


def test_a_classifiers_checkpoint_is_no_segmentation_network(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(random_state("torchvision_resnet18"), path)
    with pytest.raises(WeightsError, match="a backbone's checkpoint starts a training, it labels nothing"):
        load_network("smp18", path)


def test_a_backbone_does_not_load_from_a_whole_network(saved, network):
    with pytest.raises(WeightsError, match=r"missing: bn1\.bias"):
        load_backbone(network.backbone, saved)


def info(**other):
    return json.dumps(vars(WeightsInfo("smp18", WIDTH, CLASSES)) | other)


@pytest.mark.parametrize(
    "metadata",
    [
        "{", '{"model": "smp18"}', '{"model": "smp18", "classes": 5}', "3",
        info(width=-1), info(width="a"), info(width=math.inf), info(num_classes=0), info(num_classes=2.5),
    ],
)  # fmt: skip
def test_metadata_that_is_not_ours(network, tmp_path, metadata):
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors", {"fullres": metadata})
    with pytest.raises(WeightsError, match=r"w\.safetensors: its metadata are not of this version"):
        load_network("smp18", tmp_path / "w.safetensors")


def spoil(network, value, kind):
    """One value of a parameter or of a buffer."""
    tensors = dict(network.named_parameters()) if kind == "parameter" else dict(network.named_buffers())
    name = [n for n, t in tensors.items() if t.is_floating_point()][-1]
    with torch.no_grad():
        tensors[name].view(-1)[-1] = value
    return name


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_neither_saved_nor_loaded(network, saved, tmp_path, value, kind):
    name = spoil(network, value, kind)
    before = saved.read_bytes()
    with pytest.raises(WeightsError, match=rf"^{name} holds values that are no finite numbers in float32"):
        save_weights(network, saved, WeightsInfo("smp18", WIDTH, CLASSES))
    assert saved.read_bytes() == before
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors"):
        torch.save(network.state_dict(), path) if path.suffix == ".pth" else save_file(
            network.state_dict(), path
        )
        with pytest.raises(WeightsError, match=rf"{path.name}: {name} holds values that are no finite"):
            load_network("smp18", path)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_half_precision_cannot_hold_is_not_saved(network, saved, kind):
    name, before = spoil(network, 70_000.0, kind), saved.read_bytes()
    with pytest.raises(WeightsError, match=rf"^{name} holds values that are no finite numbers in float16"):
        save_weights(network, saved, WeightsInfo("smp18", WIDTH, CLASSES), torch.float16)
    assert saved.read_bytes() == before
    save_weights(network, saved, WeightsInfo("smp18", WIDTH, CLASSES))


def test_a_flipped_bit_of_a_checkpoint_is_never_another_weight(network, tmp_path):
    """Of the archive's content and of its directory; what lies between entries changes nothing."""
    path = tmp_path / "x.pth"
    torch.save(network.state_dict(), path)
    whole, read = path.read_bytes(), 0
    for at in range(11, len(whole), len(whole) // 60):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        try:
            state, _ = read_state(path)
        except WeightsError:
            continue
        read += 1
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert read < 20
