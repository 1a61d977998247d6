"""Checkpoints of mmsegmentation 1.2.2: every tensor has its place, and the network computes what it did.

`mmsegmentation.npz` is written by `tests/peers/mmseg.py narrow`; `make parity` compares whole networks.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from fullres.models.catalogue import CATALOGUE, build
from fullres.models.publishers import own_names, recognise
from fullres.models.publishers.names import UnknownNames
from fullres.models.weights import (
    WeightsError,
    WeightsInfo,
    load_network,
    load_pretrained,
    save_weights,
)
from tests.models.checkpoints import random_state
from tests.peers.seeded import seeded_image, seeded_state

torch.set_num_threads(1)

REFERENCE = Path(__file__).with_name("mmsegmentation.npz")
SIZE = (59, 83)
NARROW = [
    *("pspnet50", "dilatedfcn50", "upernet50", "ann50", "ccnet50", "dmnet50", "deeplabv3plus50"),
    *("deeplabv3plus-mobilenet", "hrnet18", "ocrnet18"),
]
PUBLISHED = {
    "pspnet_r50-d8": "pspnet50",
    "pspnet_r101-d8": "pspnet101",
    "ann_r50-d8": "ann50",
    "dmnet_r50-d8": "dmnet50",
    "fcn_r50-d8": "dilatedfcn50",
    "upernet_r50": "upernet50",
    "upernet_r101": "upernet101",
    "deeplabv3plus_r50-d8": "deeplabv3plus50",
    "deeplabv3plus_r101-d8": "deeplabv3plus101",
    "deeplabv3plus_mobilenet-v2-d8": "deeplabv3plus-mobilenet",
    "ocrnet_hr18": "ocrnet18",
    "ocrnet_hr48": "ocrnet48",
    "fcn_hr18": "hrnet18",
    "fcn_hr48": "hrnet48",
}


def narrow_state(name):
    lines = str(np.load(REFERENCE)[f"{name}.keys"]).splitlines()
    shapes = {key: shape for key, _, shape in (line.partition("\t") for line in lines)}
    return seeded_state({key: [int(n) for n in shape.split("x") if n] for key, shape in shapes.items()})


def logits_of(network):
    with torch.no_grad():
        return network.double()(seeded_image(*SIZE).double()).numpy().reshape(-1)[::83]


def difference(logits, name, what="logits"):
    reference = np.load(REFERENCE)
    return np.abs(logits - reference[f"{name}.{what}"]).max() / reference[f"{name}.largest"]


@pytest.mark.parametrize("name", NARROW)
def test_outputs_are_mmsegmentations(name, checkpoint):
    """At an odd size, in which the branches of HRNet don't fit one another."""
    path = checkpoint({"meta": {"iter": 1}, "state_dict": narrow_state(name)})
    network, info = load_network(name, path)
    assert (info.model, info.num_classes, info.like) == (None, 5, "mmseg")
    assert difference(logits_of(network), name) < 1e-12


@pytest.mark.parametrize("name", [name for name in NARROW if name.endswith("50")])
def test_outputs_with_align_corners_are_mmsegmentations(name, checkpoint):
    """Of its configurations for 769x769, which a checkpoint of its trainings holds."""
    text = "model = dict(decode_head=dict(align_corners=True))"
    path = checkpoint({"meta": {"config": text}, "state_dict": narrow_state(name)})
    network, info = load_network(name, path)
    assert info.like == "mmseg-aligned"
    assert difference(logits_of(network), name, "aligned") < 1e-12


@pytest.mark.parametrize("name", NARROW)
def test_saved_again_it_is_the_same_network(name, tmp_path, checkpoint):
    network, info = load_network(name, checkpoint(narrow_state(name)))
    path = tmp_path / "w.safetensors"
    save_weights(network, path, WeightsInfo(name, info.width, 5, like=info.like))
    loaded, again = load_network(name, path)
    assert again == WeightsInfo(name, info.width, 5, None, "mmseg")
    assert difference(logits_of(loaded), name) < 1e-12
    path.unlink()


def test_the_authors_networks_compute_something_else(checkpoint):
    """Same tensors, other settings: none of them is for show."""
    state = recognise(narrow_state("hrnet18")).state
    authors = build("hrnet18", 5)
    authors.load_state_dict(state)
    assert difference(logits_of(authors.eval()), "hrnet18") > 1e-3
    network, _ = load_network("upernet50", checkpoint(narrow_state("upernet50")))
    before = logits_of(network)
    network.align_corners = network.ppm.align_corners = True
    assert np.abs(logits_of(network) - before).max() > 1e-3 * np.abs(before).max()
    network, _ = load_network("pspnet50", checkpoint(narrow_state("pspnet50")))
    before = logits_of(network)
    first = network.backbone.layer4[0].conv2
    assert (first.dilation, network.backbone.layer4[1].conv2.dilation) == ((2, 2), (4, 4))
    first.dilation = first.padding = (4, 4)
    assert np.abs(logits_of(network) - before).max() > 1e-3 * np.abs(before).max()


def test_the_first_block_of_a_stage_is_dilated_in_mobilenet():
    features = build("deeplabv3plus-mobilenet", 2, like="mmseg").backbone.features
    dilations = [block.conv[-3][0].dilation[0] for block in list(features)[1:]]
    assert dilations == [1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 4, 1, 1, 4]


@pytest.mark.parametrize(("published", "model"), PUBLISHED.items())
def test_every_tensor_is_used_once_and_every_parameter_filled(published, model):
    state = random_state(f"mmseg/{published}")
    twice = "decode_head.context.stages.0.query_project."
    for name in [name for name in state if name.startswith(twice)]:  # one module there, under two names
        state[name] = state[name.replace("query", "key")].clone()
    found = recognise(state)
    assert (found.like, found.family) == ("mmseg", CATALOGUE[model].family)
    with torch.device("meta"):
        own = build(model, 19, like="mmseg").state_dict()
    named = own_names(found.state, own)
    assert named.keys() == own.keys()
    assert [name for name in own if named[name].shape != own[name].shape] == []
    # Each is one of theirs, none twice; what is new are biases without a value.
    theirs = {id(t) for t in state.values()}
    assert len({id(t) for t in named.values()}) == len(named)
    new = {name: t for name, t in named.items() if id(t) not in theirs}
    assert all(name.endswith(".0.bias") and not t.any() for name, t in new.items())
    assert len(new) == {"ocrnet": 2, "hrnet": 1}.get(found.family, 0)
    used = {id(t) for t in named.values()}
    left = {name for name, t in state.items() if id(t) not in used}
    assert all(name.startswith(("auxiliary_head.", "decode_head.context.stages.0.query_")) for name in left)


@pytest.mark.parametrize("outer", ["auxiliary_head", "auxiliary_head.0", "auxiliary_head.3"])
def test_auxiliary_heads_have_their_place_too(outer):
    state = narrow_state("pspnet50")
    inner = {key.removeprefix("auxiliary_head"): t for key, t in state.items() if key.startswith("auxiliary")}
    state = {key: t for key, t in state.items() if not key.startswith("auxiliary_head")}
    found = recognise(state | {f"{outer}{key}": t for key, t in inner.items()}).state
    at = f"auxiliary.{outer.partition('.')[2] or 0}"
    assert {key for key in found if key.startswith("auxiliary.")} == {
        f"{at}.0.weight", f"{at}.4.weight", f"{at}.4.bias",
        *(f"{at}.1.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        f"{at}.1.num_batches_tracked",
    }  # fmt: skip


def test_names_of_no_network_are_listed(checkpoint):
    state = narrow_state("pspnet50")
    state["decode_head.bottleneck.gn.weight"] = state["neck.0.conv.weight"] = torch.zeros(1)
    with pytest.raises(UnknownNames, match=r"decode_head\.bottleneck\.gn\.weight, neck\.0\.conv\.weight$"):
        recognise(state)
    path = checkpoint(state)
    with pytest.raises(WeightsError) as caught:
        load_network("pspnet50", path)
    assert str(caught.value) == (
        f"weights {path}: mmsegmentation's, with names that no network here has: "
        "decode_head.bottleneck.gn.weight, neck.0.conv.weight"
    )
    with pytest.raises(WeightsError, match=r"no network here has: decode_head\.linear_pred\.weight$"):
        load_network("pspnet50", checkpoint({"decode_head.linear_pred.weight": torch.zeros(1, 1, 1, 1)}))


def test_another_network_of_the_publisher(checkpoint):
    path = checkpoint(narrow_state("pspnet50"))
    with pytest.raises(WeightsError, match=r"w\.pth: mmsegmentation's pspnet, not of upernet50$"):
        load_network("upernet50", path)
    with pytest.raises(WeightsError, match=r"do not fit the network\. missing: .* more"):
        load_network("pspnet101", path)
    path = checkpoint(narrow_state("deeplabv3plus50"))
    with pytest.raises(WeightsError, match=r"deeplabv3plus like mmseg, not of deeplabv3plus-x"):
        load_network("deeplabv3plus-xception", path)


def test_two_transforms_of_one_input_fit_no_ann(checkpoint):
    state = narrow_state("ann50")
    state["decode_head.context.stages.0.query_project.conv.weight"] += 1
    with pytest.raises(WeightsError, match=r"unexpected: context\.attention\.query\.0\.weight$"):
        load_network("ann50", checkpoint(state))


@pytest.mark.parametrize(("name", "classes"), [("pspnet50", 5), ("ocrnet18", 3)])
def test_a_training_starts_from_them(name, classes, checkpoint):
    state = narrow_state(name)
    path = checkpoint(state)
    width = 1.0 if name == "ocrnet18" else 1 / 8
    network = build(name, classes, width, like="mmseg")
    load_pretrained(network, name, path, drop_head=classes != 5, like="mmseg")
    assert torch.equal(network.backbone.layer1[0].conv1.weight, state["backbone.layer1.0.conv1.weight"])
    with pytest.raises(WeightsError, match=r"w\.pth: like is 'mmseg', of the network none: "):
        load_pretrained(build(name, classes, width), name, path)


def test_publishers_that_a_network_has(checkpoint):
    with pytest.raises(ValueError, match=r"like is 'mmseg': unet has none$"):
        build("unet", 5, like="mmseg")
    with pytest.raises(
        ValueError,
        match=r"like is 'nvidia': ccnet50 has mmseg, mmseg-aligned, ccnet, or none, which is the c",
    ):
        load_network("ccnet50", checkpoint({}), like="nvidia")
    assert [name for name, entry in CATALOGUE.items() if entry.publishers and not entry.family] == []


def test_a_file_that_does_not_say_whose_network_it_is(checkpoint):
    """Of HRNet every tensor has the same shape."""
    state = recognise(narrow_state("hrnet18")).state
    path = checkpoint(state)
    network, info = load_network("hrnet18", path, like="mmseg")
    assert info.like == "mmseg"
    assert difference(logits_of(network), "hrnet18") < 1e-12
    assert load_network("hrnet18", path)[1].like is None


@pytest.mark.parametrize(
    "said",
    [
        "align_corners=True, b=dict(align_corners=False)",
        "dilations=(\n    1,\n    1,\n    1,\n    2,\n)",
        "dilations=[1, 6, 12, 18]",
    ],
)
@pytest.mark.parametrize("key", ["cfg", "config"])
def test_settings_that_shapes_do_not_tell_are_read_in_the_configuration(said, key, checkpoint):
    state = narrow_state("pspnet50")
    path = checkpoint({"meta": {key: f"model = dict(decode_head=dict({said}))"}, "state_dict": state})
    with pytest.raises(WeightsError, match=r"w\.pth: mmsegmentation's pspnet with .*, which is not built$"):
        load_network("pspnet50", path)
    for corners, like in ((False, "mmseg"), (True, "mmseg-aligned")):
        text = f"align_corners={corners}, dilations=(1, 1, 2, 4)"
        path = checkpoint({"meta": {key: text}, "state_dict": state})
        assert load_network("pspnet50", path)[1].like == like
        other = {"mmseg": "mmseg-aligned", "mmseg-aligned": "mmseg"}[like]
        with pytest.raises(WeightsError, match=rf"w\.pth: like is '{like}', not '{other}'$"):
            load_network("pspnet50", path, like=other)


def test_align_corners_may_be_said_where_the_file_does_not(checkpoint):
    path = checkpoint(narrow_state("pspnet50"))
    network, info = load_network("pspnet50", path, like="mmseg-aligned")
    assert info.like == "mmseg-aligned"
    assert network.align_corners
    assert network.ppm.align_corners
    assert difference(logits_of(network), "pspnet50") > 1e-3
    hrnet = checkpoint({"meta": {"cfg": "align_corners=True"}, "state_dict": narrow_state("hrnet18")})
    with pytest.raises(WeightsError, match=r"mmsegmentation's hrnet like mmseg-aligned, not of hrnet18$"):
        load_network("hrnet18", hrnet)
