"""Grad-CAM against plain restatements of its formula."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.parts import concatenate
from fullres.ops.normalisation import normalise
from fullres.pipeline.review.explain import Explainer, LayerError
from tests.networks import CLASSES, narrow, random_image, scores_at_once

torch.set_num_threads(1)

FAMILIES = (
    "smp18", "fcn32s18", "fcn8s18", "pspnet50", "dilatedfcn50", "upernet50", "ann50", "ccnet50", "dmnet50",
    "deeplabv3plus50", "deeplabv3plus-xception", "deeplabv3plus-mobilenet", "hrnet18", "ocrnet18",
    "seethroughnet48", "spgnet18", "spgnet18x2", "unet",
)  # fmt: skip
ONE_FEATURE = ("fcn8s18", "pspnet50", "upernet50", "ann50", "ccnet50", "dmnet50", "deeplabv3plus-xception",
               "deeplabv3plus-mobilenet", "spgnet18x2", "unet")  # fmt: skip


class Tiny(nn.Module):
    """Features at output stride 2, and scores that depend on them nonlinearly."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh())
        self.head = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, x):
        return F.interpolate(self.head(self.body(x)), x.shape[-2:], mode="bilinear")


class TwoResolutions(nn.Module):
    """Logits of the image and of its half, added: as the body's features side by side would give them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def both(self, x):
        return [self.body(F.interpolate(x, scale_factor=0.5, mode="bilinear")), self.body(x)]

    def score(self, half, full):
        return self.head(F.interpolate(half, full.shape[-2:], mode="bilinear")) + self.head(full)

    def forward(self, x):
        half, full = self.both(x)
        return F.interpolate(self.head(half), x.shape[-2:], mode="bilinear") + self.head(full)


class OnePlace(nn.Module):
    """Class 1 everywhere, for what is bright somewhere."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        nn.init.ones_(self.body[0].weight)
        nn.init.zeros_(self.body[0].bias)

    def forward(self, x):
        bright = self.body(x).mean((-2, -1), keepdim=True).expand(-1, -1, *x.shape[-2:])
        return torch.cat([torch.zeros_like(bright), bright], 1)


def prepared(image):
    return normalise(torch.from_numpy(image)[None], torch.float32)


def stretched(cam, size):
    """h x w, not negative, to the image's size and a maximum of 1."""
    cam = F.interpolate(torch.as_tensor(cam)[None, None].float(), size, mode="bilinear")[0, 0]
    return (cam / cam.max()).numpy()


def plain(features, score, c, size):
    """Grad-CAM of one class from features C x h x w and a function to logits classes x H x W."""
    features = features.detach().requires_grad_()
    logits = score(features[None])[0]
    y = torch.zeros(())
    for i in range(size[0]):
        for j in range(size[1]):
            if logits[:, i, j].argmax() == c:
                y = y + logits[c, i, j]
    (gradient,) = torch.autograd.grad(y, features)
    cam = torch.zeros(features.shape[-2:])
    for a, g in zip(features.detach(), gradient, strict=True):
        cam += g.mean() * a
    return stretched(cam.clamp(min=0), size)


def commonest(network, image):
    with torch.no_grad():
        labels = network(prepared(image))[0].argmax(0)
    return labels.flatten().mode().values.item(), labels


def test_the_formula_on_one_layer():
    torch.manual_seed(1)
    network, image = Tiny(), random_image(11, 14)
    c, labels = commonest(network, image)
    found = Explainer(network, "body").explain(image, [c])[0]
    features = network.body(prepared(image))[0]
    size = image.shape[:2]
    expected = plain(features, lambda a: F.interpolate(network.head(a), size, mode="bilinear"), c, size)
    assert 0 < expected.mean() < 1
    np.testing.assert_allclose(found.map, expected, atol=1e-5)
    assert found.pixels == (labels == c).sum()


def test_branches_count_as_one_feature_side_by_side():
    network, image = narrow("hrnet18"), random_image(64, 47)
    c, _ = commonest(network, image)
    found = Explainer(network, "backbone.stage4").explain(image, [c])[0]
    joined = concatenate(network.backbone(prepared(image)))[0]
    size = image.shape[:2]
    expected = plain(joined, lambda a: F.interpolate(network.last_layer(a), size, mode="bilinear"), c, size)
    np.testing.assert_allclose(found.map, expected, atol=1e-4)


def test_runs_at_two_resolutions_count_as_one_feature_side_by_side():
    torch.manual_seed(0)
    network, image = TwoResolutions(), random_image(10, 12)
    c, _ = commonest(network, image)
    found = Explainer(network, "body").explain(image, [c])[0]
    half, full = network.both(prepared(image))
    joined = torch.cat([F.interpolate(half, full.shape[-2:], mode="bilinear"), full], 1)[0]
    expected = plain(joined, lambda a: network.score(a[:, :4], a[:, 4:]), c, image.shape[:2])
    np.testing.assert_allclose(found.map, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["smp18", "smp50"])
def test_smp_shows_its_own_scores_on_every_fourth_pixel(name):
    """Its classifier is linear in layer4's features: the map is the score without its bias."""
    network, image = narrow(name), random_image(61, 93)
    scores = scores_at_once(network, image)[:, ::4, ::4]
    c = int(np.bincount(scores.argmax(0).ravel()).argmax())
    evidence = scores[c] - network.classifier.bias[c].item()
    found = Explainer(network, "backbone.layer4").explain(image, [c])[0]
    np.testing.assert_allclose(found.map, stretched(evidence.clip(0), image.shape[:2]), atol=1e-4)


@pytest.mark.parametrize("name", ONE_FEATURE)
def test_equals_gradients_of_the_whole_network(name):
    """The textbook's way: gradients recorded everywhere, the last features taken out by a hook."""
    network, image = narrow(name), random_image(65, 49)
    found = Explainer(network, CATALOGUE[name].evidence).explain(image, range(CLASSES))
    kept = []
    network.get_submodule(CATALOGUE[name].evidence).register_forward_hook(lambda *call: kept.append(call[2]))
    logits = network(prepared(image))[0]
    (features,) = kept
    for c, (map_, pixels) in enumerate(found):
        labelled = logits.argmax(0) == c
        assert pixels == labelled.sum()
        (gradient,) = torch.autograd.grad((logits[c] * labelled).sum(), features, retain_graph=True)
        cam = (gradient.mean((-2, -1), keepdim=True) * features)[0].sum(0).detach().clamp(min=0)
        expected = stretched(cam, (65, 49)) if cam.any() else np.zeros((65, 49))
        np.testing.assert_allclose(map_, expected, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_maps_of_the_image(name):
    network, image = narrow(name), random_image(65, 97)
    backbone = CATALOGUE[name].evidence.rpartition(".")[0]
    stages = [f"{backbone}.{child}" for child, _ in network.get_submodule(backbone).named_children()]
    lit = []
    for layer in (CATALOGUE[name].evidence, stages[-3]):
        for map_, pixels in Explainer(network, layer).explain(image, range(CLASSES)):
            assert map_.shape == (65, 97)
            assert map_.dtype == np.float32
            assert map_.min() >= 0
            assert map_.max() in (0, pytest.approx(1))
            assert pixels or not map_.any()
            lit.append(map_.any())
    assert any(lit)


def test_lights_up_at_the_one_place_that_counts():
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:9, 21:26] = 255
    nowhere, everywhere = Explainer(OnePlace(), "body.1").explain(image, [0, 1])
    np.testing.assert_array_equal(everywhere.map, (image[..., 0] == 255).astype(np.float32))
    assert everywhere.pixels == 600
    assert nowhere.pixels == 0
    assert not nowhere.map.any()


def test_the_network_stays_as_it_was():
    network, image = narrow("fcn8s18"), random_image(40, 40)
    network.train()
    network.backbone.layer1.eval()
    network(prepared(image)).lattices[0].logits.sum().backward()
    network.classifier8.requires_grad_(False)
    before, grads = deepcopy(network), [p.grad.clone() for p in network.parameters()]
    Explainer(network, "backbone.layer4").explain(image, range(CLASSES))
    named = network.named_parameters()
    for (name, now), old, grad in zip(named, before.parameters(), grads, strict=True):
        assert torch.equal(now, old), name
        assert torch.equal(now.grad, grad), name
        assert now.requires_grad == old.requires_grad, name
    for (name, now), old in zip(network.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(now, old), name
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]


@pytest.mark.parametrize(
    ("name", "layer", "known"),
    [
        ("smp18", "backbone.layer5", "backbone.layer3, backbone.layer4, and"),
        ("pspnet50", "auxiliary", "backbone.layer4, ppm, ppm.features.0,"),
        (
            "deeplabv3plus-mobilenet",
            "backbone.features",
            "backbone.features.17, aspp,",
        ),  # a list that never runs
        ("unet", "body.down", "body.down.3, body.down.4, body.up.0,"),
    ],
)
def test_a_layer_that_gives_no_features(name, layer, known):
    with pytest.raises(LayerError) as error:
        Explainer(narrow(name), layer)
    assert str(error.value).startswith(f"no layer '{layer}' with features; there are ")
    assert known in str(error.value)
