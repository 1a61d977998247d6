"""Whole networks from files: the project's own and published ones, loaded for prediction and for training."""

import pytest
import torch
from torch import nn

from fullres.models.catalogue import CATALOGUE, build
from fullres.models.weights import WeightsError, WeightsInfo, load_network, load_pretrained, save_weights
from tests.models.checkpoints import published_hrnet, published_pspnet, random_state

torch.set_num_threads(1)

# One of each family and kind of backbone. What depends on the class count, by prefix of the names.
HEADS = {
    "smp18": ("classifier.",),
    "fcn8s18": ("classifier.", "classifier8.", "classifier16."),
    "pspnet50": ("cls.4.",),
    "dilatedfcn50": ("cls.4.",),
    "upernet50": ("classifier.1.",),
    "ann50": ("classifier.1.",),
    "ccnet50": ("classifier.1.",),
    "dmnet50": ("classifier.1.",),
    "deeplabv3plus50": ("classifier.1.",),
    "deeplabv3plus-xception": ("classifier.1.",),
    "deeplabv3plus-mobilenet": ("classifier.1.",),
    "hrnet18": ("last_layer.3.",),
    "ocrnet48": ("cls_head.", "aux_head.3."),
    "hmsa48": ("cls_head.", "aux_head.3."),
    "seethroughnet48": (
        "cls_head.",
        *(f"decoder.heads.{i}.3." for i in range(4)),
        *(f"decoder.masks.{i}.0.weight" for i in range(3)),
    ),
    "spgnet18": ("classifier.",),
    "spgnet18x2": ("classifier.", "guides.0.predict.", "guides.0.attend.weight"),
    "unet": ("classifier.",),
}
OTHERS = [name for name in CATALOGUE if name not in HEADS]


def trained(name, classes=5, width=1 / 16):
    """A network without equal tensors."""
    torch.manual_seed(0)
    network = build(name, classes, width)
    for tensor in network.state_dict().values():
        nn.init.uniform_(tensor) if tensor.is_floating_point() else tensor.fill_(7)
    return network


def differing(network, other):
    own, others = network.state_dict(), other.state_dict()
    assert own.keys() == others.keys()
    return [name for name in own if not torch.equal(own[name], others[name])]


@pytest.mark.parametrize("name", [*HEADS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_round_trip_of_every_network(name, tmp_path, checkpoint):
    """With what the file says of itself, and with nothing but names and shapes."""
    network = trained(name)
    said = WeightsInfo(name, 1 / 16, 5, "camvid")
    save_weights(network, tmp_path / "w.safetensors", said)
    loaded, info = load_network(name, tmp_path / "w.safetensors")
    counters = [n for n in network.state_dict() if n.endswith("num_batches_tracked")]
    assert (differing(loaded, network), info, loaded.training) == (counters, said, False)
    loaded, info = load_network(name, checkpoint(network.state_dict()))
    assert (differing(loaded, network), info) == ([], WeightsInfo(None, 1 / 16, 5))


@pytest.mark.parametrize("width", [1 / 12, 0.3])
@pytest.mark.parametrize("name", ["pspnet50", "deeplabv3plus-mobilenet", "ocrnet48", "seethroughnet48"])
def test_widths_that_layers_round_in_different_ways(name, width, checkpoint):
    with torch.device("meta"):
        network = build(name, 7, width)
    network = network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()  # whatever was in memory may be no number
    loaded, info = load_network(name, checkpoint(network.state_dict()))
    assert info.num_classes == 7
    shapes = {n: t.shape for n, t in network.state_dict().items()}
    assert {n: t.shape for n, t in loaded.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("model", "published", "wrap"),
    [
        ("pspnet50", "semseg_pspnet50", lambda state: {"epoch": 200, "state_dict": state}),
        ("hrnet48", "hrnet_w48_cityscapes", lambda state: state),
        (
            "ocrnet48",
            "hrnet_ocr_w48_cityscapes",
            lambda state: {**state, "loss.criterion.weight": torch.rand(19)},
        ),
    ],
)
def test_published_checkpoints_fill_every_parameter(model, published, wrap, checkpoint):
    state = random_state(published)
    prefix = "module." if model == "pspnet50" else "model."
    path = checkpoint(wrap({f"{prefix}{key}": t for key, t in state.items()}))
    network, info = load_network(model, path)
    assert info == WeightsInfo(None, 1.0, 19)
    assert getattr(network, "align_corners", False) == (model != "hrnet48")
    own, renamed = network.state_dict(), []
    for key, tensor in state.items():
        name = key if key in own else f"backbone.{key}"
        if name in own:
            assert torch.equal(own.pop(name), tensor)
        elif not key.startswith("aux."):
            renamed.append(tensor)
    # The stem's, in the order of its layers.
    assert all(torch.equal(a, b) for a, b in zip(own.values(), renamed, strict=True))


@pytest.mark.parametrize(
    ("model", "publish"),
    [("pspnet50", published_pspnet), ("hrnet48", published_hrnet), ("ocrnet18", published_hrnet)],
)
def test_published_checkpoints_of_other_widths_and_classes(model, publish, checkpoint):
    network = trained(model, 5, 1 / 12)
    path = checkpoint(publish(network))
    loaded, info = load_network(model, path)
    assert differing(loaded, network) == []
    assert info.num_classes == 5
    other = build(model, 5, 1 / 12)
    load_pretrained(other, model, path)
    assert differing(other, network) == []


def test_one_missing_tensor_and_one_too_many(checkpoint):
    state = published_hrnet(trained("hrnet48"))
    del state["model.stage4.2.fuse_layers.3.2.0.1.bias"], state["model.last_layer.3.bias"]
    state["model.cls_head.weight"] = torch.rand(5, 4, 1, 1)
    path = checkpoint(state)
    with pytest.raises(WeightsError) as caught:
        load_network("hrnet48", path)
    assert str(caught.value) == (
        f"weights {path} do not fit the network. "
        "missing: backbone.stage4.2.fuse_layers.3.2.0.1.bias, last_layer.3.bias; unexpected: cls_head.weight"
    )


@pytest.mark.parametrize(
    ("published", "model", "lacks"),
    [
        ("hrnet_w48_cityscapes", "ocrnet48", "aux_head.3.weight or cls_head.weight"),
        ("hrnet_ocr_w48_cityscapes", "hrnet48", "last_layer.3.weight"),
        ("semseg_resnet50_v1c", "pspnet50", "cls.4.weight"),
        ("torchvision_resnet18", "smp18", "classifier.weight"),
        ("torchvision_mobilenet_v2", "deeplabv3plus-mobilenet", "classifier.1.weight"),
    ],
)
def test_only_the_backbone_fits(published, model, lacks, checkpoint):
    path = checkpoint(random_state(published))
    expected = (
        f"weights {path}: not of {model}: no convolution {lacks} "
        "(a backbone's checkpoint starts a training, it labels nothing)"
    )
    with pytest.raises(WeightsError) as caught:
        load_network(model, path)
    assert str(caught.value) == expected
    with pytest.raises(WeightsError) as caught:
        load_pretrained(build(model, 5, 1 / 16), model, path, drop_head=True)
    assert str(caught.value) == expected


def test_a_publishers_network_of_another_name(checkpoint):
    path = checkpoint(random_state("semseg_pspnet50"))
    with pytest.raises(WeightsError, match=r"w\.pth: hszhao/semseg's pspnet, not of upernet50$"):
        load_network("upernet50", path)


@pytest.mark.parametrize(
    ("model", "source", "lacks"),
    [
        ("hrnet48", "spgnet18", "last_layer.3.weight"),
        ("spgnet18x2", "hrnet18", "guides.0.predict.weight or classifier.weight"),
    ],
)
def test_nothing_fits(model, source, lacks, checkpoint):
    path = checkpoint(trained(source).state_dict())
    with pytest.raises(WeightsError) as caught:
        load_network(model, path)
    assert str(caught.value) == f"weights {path}: not of {model}: no convolution {lacks}"


@pytest.mark.parametrize(("model", "source"), [("hrnet18", "hrnet48"), ("pspnet50", "pspnet101")])
def test_a_relative_of_other_size(model, source, checkpoint):
    path = checkpoint(trained(source, 5, 1 / 8).state_dict())
    with pytest.raises(
        WeightsError, match=r"w\.pth do not fit the network\. (unexpected|shapes): backbone\."
    ):
        load_network(model, path)


@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".safetensors") for name in HEADS), ("fcn8s18", ".pth"), ("unet", ".pth")]
)
def test_a_start_from_another_class_count(name, suffix, tmp_path):
    source, network, fresh = trained(name), build(name, 11, 1 / 16), build(name, 11, 1 / 16)
    fresh.load_state_dict(network.state_dict())
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_weights(source, path, WeightsInfo(name, 1 / 16, 5))
    with pytest.raises(WeightsError) as caught:
        load_pretrained(network, name, path)
    assert str(caught.value) == (
        f"weights {path}: 5 classes, the network has 11; "
        "a start that drops the head takes all but what depends on their count"
    )
    assert differing(network, fresh) == []

    load_pretrained(network, name, path, drop_head=True)
    counters = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
    head = [key for key in network.state_dict() if key.startswith(HEADS[name])]
    assert [key for key in differing(network, source) if key not in counters] == head
    assert not set(head) & set(differing(network, fresh))


def test_a_head_is_dropped_where_classes_are_as_many(checkpoint):
    source, network = trained("smp18"), build("smp18", 5, 1 / 16)
    head = network.classifier.weight.clone()
    path = checkpoint(source.state_dict())
    load_pretrained(network, "smp18", path, drop_head=True)
    assert torch.equal(network.classifier.weight, head)
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
    load_pretrained(network, "smp18", path)
    assert differing(network, source) == []


def test_auxiliary_heads_serve_training_alone(tmp_path):
    """Files of a training may hold them."""
    network = trained("pspnet50")
    network.auxiliary = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 5, 1))])
    save_weights(network, tmp_path / "w.safetensors", WeightsInfo("pspnet50", 1 / 16, 5))
    loaded, _ = load_network("pspnet50", tmp_path / "w.safetensors")
    assert torch.equal(loaded.cls[4].weight, network.cls[4].weight)


def test_what_is_no_head_must_fit_a_start(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(trained("smp18", width=1 / 8), path, WeightsInfo("smp18", 1 / 8, 5))
    network = build("smp18", 11, 1 / 16)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"w\.safetensors: of width 0\.125, the network has 0\.0625"):
        load_pretrained(network, "smp18", path, drop_head=True)
    with pytest.raises(WeightsError, match="of model smp18, not of fcn32s18"):
        load_pretrained(build("fcn32s18", 5, 1 / 8), "fcn32s18", path)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
