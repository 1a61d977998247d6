"""Exported graphs and weights hold what the network computes; what has no graph is refused by name."""

import builtins
import copy

import pytest
import torch

from fullres.models.catalogue import CATALOGUE, build
from fullres.models.weights import WeightsError, WeightsInfo, load_backbone, load_network, published_state
from fullres.pipeline.export import ExportError, export_graph, export_weights
from tests.models.base import settled
from tests.models.checkpoints import random_state
from tests.networks import CLASSES, narrow

WIDTH = 0.125
SIZES = [(1, 65, 97), (3, 79, 64)]  # batch, height, width


def network_of(name):
    """Narrow, and no activation is larger than attention's softmax can bear in fp32."""
    return settled(lambda: build(name, CLASSES, WIDTH))


def image(count, height, width):
    generator = torch.Generator().manual_seed(height)
    return torch.randn(count, 3, height, width, generator=generator)


def assert_same(logits, network, images):
    """As far from exact as the network itself may be in fp32: to 1e-5 of the largest, or what rounding makes
    of it, which attention can amplify."""
    with torch.no_grad():
        own, exact = network(images), copy.deepcopy(network).double()(images.double())
    assert logits.shape == own.shape
    assert logits.dtype == torch.float32
    rounding = float((own - exact).abs().max())
    assert float((logits - own).detach().abs().max()) <= 1e-5 * float(exact.abs().max()) + 4 * rounding


def by_torch(path):
    return torch.export.load(path).module()


def by_onnx(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


LOADED = {".pt2": by_torch, ".onnx": by_onnx}


def check_graph(name, path, size=None, shapes=None):
    network = network_of(name)
    export_graph(network, name, path, size)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    run = LOADED[path.suffix](path)
    for shape in shapes or ([(1, *size)] if size else SIZES):
        images = image(*shape)
        assert_same(run(images), network, images)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [pytest.param("pspnet50", ".pt2", marks=pytest.mark.slow), ("fcn8s18", ".onnx")],
)
def test_graph_of_any_batch_and_size(name, suffix, tmp_path):
    check_graph(name, tmp_path / f"network{suffix}")


@pytest.mark.parametrize(
    ("name", "suffix", "size"), [("smp50", ".pt2", (33, 41)), ("unet", ".onnx", (65, 97))]
)
def test_graph_of_one_odd_size(name, suffix, size, tmp_path):
    check_graph(name, tmp_path / f"network{suffix}", size)


def one_of_each_family():
    segmenting = [name for name in reversed(CATALOGUE) if CATALOGUE[name].segments]
    families = {type(build(name, 2, 1 / 16)): name for name in segmenting}
    return sorted(families.values())


NOT_ALL_SIZES = {
    ".pt2": {"unet", "ccnet50", "seethroughnet48"},
    ".onnx": {"unet", "ccnet50", "seethroughnet48", "pspnet50", "upernet50", "ann50", "dmnet50"},
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", [*one_of_each_family(), "deeplabv3plus-xception", "deeplabv3plus-mobilenet"])
def test_every_family(name, suffix, tmp_path):
    """For all sizes, or where that is refused for one."""
    path = tmp_path / f"network{suffix}"
    if name in NOT_ALL_SIZES[suffix]:
        with pytest.raises(ExportError, match=rf"^{name} has no .*graph for all sizes.*--size"):
            export_graph(network_of(name), name, path)
        check_graph(name, path, size=(65, 97))
    else:
        check_graph(name, path)


@pytest.mark.parametrize(("name", "suffix"), [("unet", ".pt2"), ("unet", ".onnx")])
def test_no_graph_for_all_sizes(name, suffix, tmp_path):
    with pytest.raises(ExportError, match=rf"^{name} has no .*graph for all sizes.*--size"):
        export_graph(narrow(name), name, tmp_path / f"network{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_leaves_the_network_as_it_is(tmp_path):
    network, images = network_of("smp18"), image(1, 33, 41)
    with torch.no_grad():
        before = network(images)
        export_graph(network, "smp18", tmp_path / "network.pt2")
        assert torch.equal(network(images), before)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match=rf"needs the package {package}: pip install 'fullres\[export\]'"):
        export_graph(narrow("unet"), "unet", tmp_path / "network.onnx", (64, 64))
    assert list(tmp_path.iterdir()) == []


WITH_BACKBONE = [
    "smp18", "fcn8s34", "pspnet50", "deeplabv3plus50", "deeplabv3plus-mobilenet", "hrnet18", "ocrnet18",
    "seethroughnet48", "spgnet18x2",
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", WITH_BACKBONE)
def test_a_backbone_is_read_back(name, suffix, tmp_path):
    network, path = narrow(name, WIDTH), tmp_path / f"backbone{suffix}"
    export_weights(network, WeightsInfo(name, WIDTH, CLASSES), path, backbone=True)
    where = CATALOGUE[name].encoders[0]
    other = build(name, CLASSES, WIDTH).get_submodule(where)
    load_backbone(other, path)
    assert_equal(other.state_dict(), network.get_submodule(where).state_dict())


@pytest.mark.parametrize(
    ("name", "published", "classifier"),
    [
        ("smp18", "torchvision_resnet18", ("fc.",)),
        ("fcn32s50", "torchvision_resnet50", ("fc.",)),
        ("spgnet101x2", "torchvision_resnet101", ("fc.",)),
        ("pspnet50", "semseg_resnet50_v1c", ("fc.",)),
        ("deeplabv3plus-mobilenet", "torchvision_mobilenet_v2", ("features.18.", "classifier.")),
    ],
)
def test_a_backbone_has_the_published_keys_and_shapes(name, published, classifier, tmp_path):
    expected = {key: t.shape for key, t in random_state(published).items() if not key.startswith(classifier)}
    with torch.device("meta"):
        network = build(name, CLASSES)
    network = network.to_empty(device="cpu")
    path = tmp_path / "backbone.pth"
    export_weights(network, WeightsInfo(name, 1.0, CLASSES), path, backbone=True)
    found = torch.load(path, weights_only=True)
    path.unlink()
    assert {key: t.shape for key, t in found.items()} == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus-xception"])
def test_no_backbone_of_its_own(name, tmp_path):
    with pytest.raises(WeightsError, match=f"^{name} has no backbone that is published"):
        export_weights(narrow(name), WeightsInfo(name, 1 / 16, 5), tmp_path / "b.pth", backbone=True)
    assert list(tmp_path.iterdir()) == []


def test_a_downsamplers_weights_say_what_they_are(tmp_path):
    """Nobody publishes one: its names alone would not tell."""
    info = WeightsInfo("downsampler8", 1 / 16, CLASSES)
    with pytest.raises(WeightsError, match=r"w\.pth: downsampler8 is written as \.safetensors alone$"):
        export_weights(narrow("downsampler8"), info, tmp_path / "w.pth")
    export_weights(narrow("downsampler8"), info, tmp_path / "w.safetensors")
    other, read = load_network("downsampler8", tmp_path / "w.safetensors")
    assert read == info
    assert_equal(other.state_dict(), narrow("downsampler8").state_dict())


@pytest.mark.parametrize("name", one_of_each_family())
def test_a_whole_state_dict_is_read_back(name, tmp_path):
    network, path = narrow(name), tmp_path / "network.pth"
    export_weights(network, WeightsInfo(name, 1 / 16, CLASSES), path)
    other, info = load_network(name, path)
    assert (info.num_classes, info.width) == (CLASSES, 1 / 16)
    assert_equal(other.state_dict(), network.state_dict())


def test_a_whole_pspnet_has_its_authors_names():
    published = {key.removeprefix("module.") for key in random_state("semseg_pspnet50")}
    with torch.device("meta"):
        state = published_state("pspnet50", build("pspnet50", 19))
    assert state.keys() == {key for key in published if not key.startswith("aux.")}


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []
