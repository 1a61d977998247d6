"""Networks that are not what their modules' classes say: exact, or refused by name."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.split_merge import split_merge
from fullres.models.full_resolution.steps import UnsupportedModule
from fullres.ops.normalisation import normalise
from fullres.pipeline.predict.execute import Predictor, predict_image
from fullres.pipeline.predict.plan import plan_image
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows, predict_windows
from tests.networks import assert_same_scores, random_image, scores_at_once, with_statistics

SIZE = (31, 45)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def registered(conv):
    parametrize.register_parametrization(conv, "weight", Doubled())
    return conv


PARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": registered,
}


def three(first, norm=None, classes=5):
    torch.manual_seed(0)
    layers = [first, *([norm] if norm else []), nn.ReLU(), nn.Conv2d(8, classes, 3, 2, 1)]
    return with_statistics(nn.Sequential(*layers))


def predicted(tree, image, scores=True):
    plan = plan_image(tree, SIZE, workers=2, memory_budget=1 << 30, precision="fp32", scores=scores)
    return predict_image(Predictor(tree, torch.device("cpu"), "fp32"), plan, image, scores=scores)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", PARAMETRISED)
def test_parametrised_convolutions(kind, norm, bias):
    """Whatever computes a convolution's weight: workers have what the network has."""
    torch.manual_seed(1)
    conv = PARAMETRISED[kind](nn.Conv2d(3, 8, 3, 2, 1, bias=bias))
    network = three(conv, nn.BatchNorm2d(8) if norm else None)
    tree, image = split_merge(network), random_image(*SIZE)
    assert not any(parametrize.is_parametrized(m) for m in inference_form(tree).modules())
    assert_same_scores(predicted(tree, image), scores_at_once(tree, image))


def test_batch_norm_without_running_statistics_is_named():
    network = three(nn.Conv2d(3, 8, 3, 2, 1)).append(nn.BatchNorm2d(5, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedModule, match=r"module '3' \(BatchNorm2d\).*without running statistics"):
        split_merge(network)


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU, lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2),
             nn.Identity, nn.Dropout],
    ids=["Conv2d", "ReLU", "MaxPool2d", "AvgPool2d", "Identity", "Dropout"],
)  # fmt: skip
def test_a_replaced_forward_is_what_runs(make):
    torch.manual_seed(0)
    module = make()
    ordinary = module.forward
    module.forward = lambda x: 3 * ordinary(x)
    network = nn.Sequential(module, nn.Conv2d(8 if isinstance(module, nn.Conv2d) else 3, 5, 1)).eval()
    tree, image = split_merge(network), random_image(*SIZE)
    with torch.no_grad():
        x = normalise(torch.from_numpy(image)[None], torch.float32)
        rows, columns = tree.stride
        whole = tree(x)[0].numpy()
        own = network(x)[0].numpy()
    np.testing.assert_allclose(whole[:, ::rows, ::columns][:, : own.shape[1], : own.shape[2]], own, atol=1e-5)
    assert_same_scores(predicted(tree, image), whole)


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_hooks_are_refused(register):
    handle = getattr(nn.modules.module, register)(lambda *arguments: None)
    try:
        with pytest.raises(UnsupportedModule, match="global forward hooks"):
            split_merge(three(nn.Conv2d(3, 8, 3, 2, 1)))
    finally:
        handle.remove()


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.first(x)
        return self.second(x)


def test_autocast_inside_is_refused():
    with pytest.raises(UnsupportedModule, match=r"module 'first' \(Conv2d\) runs under autocast"):
        split_merge(Half().eval())


@pytest.mark.parametrize("classes", [257, 300])
def test_more_classes_than_class_ids_are_refused(classes):
    network = three(nn.Conv2d(3, 8, 3, 2, 1), classes=classes)
    tree, image = split_merge(network), random_image(*SIZE)
    with pytest.raises(ValueError, match=f"the network has {classes} classes: .* at most 256"):
        predicted(tree, image, scores=False)
    assert predicted(tree, image).shape == (classes, *SIZE)
    plan = plan_windows(SIZE, WindowSpec(), lambda *size: 1)
    windows = WindowPredictor(Upsampled(network), torch.device("cpu"), "fp32")
    with pytest.raises(ValueError, match=f"the network has {classes} classes: .* at most 256"):
        predict_windows(windows, plan, image)
    assert predict_windows(windows, plan, image, scores=True).shape == (classes, *SIZE)


def test_256_classes_are_not():
    network = three(nn.Conv2d(3, 8, 3, 2, 1), classes=256)
    tree, image = split_merge(network), random_image(*SIZE)
    np.testing.assert_array_equal(predicted(tree, image, scores=False), predicted(tree, image).argmax(0))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.one, self.other = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.first(x).relu()
        return self.one(x), self.other(x)


def test_several_outputs_are_not_the_first():
    tree = split_merge(Two().eval())
    with pytest.raises(ValueError, match="the network has 2 outputs; only one can be merged"):
        predicted(tree, random_image(*SIZE))


def test_training_mode_changes_nothing():
    """Statistics stay as they are: the tree refuses, workers have their own copy in evaluation mode."""
    network = three(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
    image = random_image(*SIZE)
    expected = predicted(split_merge(network), image)
    network.train()
    before = copy.deepcopy(network.state_dict())
    tree = split_merge(network)
    with pytest.raises(ValueError, match=r"module '1' \(BatchNorm2d\) is in training mode.*call eval\(\)"):
        tree(torch.zeros(1, 3, *SIZE))
    np.testing.assert_array_equal(predicted(tree, image), expected)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training


class Upsampled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return nn.functional.interpolate(self.network(x), x.shape[-2:])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_windows_leave_the_network_as_it_is(precision):
    network = Upsampled(three(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))).double().train()
    before = copy.deepcopy(network.state_dict())
    windows = WindowPredictor(network, torch.device("cpu"), precision)
    predict_windows(windows, plan_windows(SIZE, WindowSpec(), lambda *size: 1), random_image(*SIZE))
    assert network.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
