"""What `split_merge` refuses, and that it names the place."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.catalogue import build
from fullres.models.full_resolution.split_merge import split_merge
from fullres.models.full_resolution.steps import UnsupportedModule
from tests.models.full_resolution.strided_networks import Net, conv


def inside(module):
    """As `neck.1` of a network that is otherwise fine."""
    return nn.Sequential(OrderedDict(stem=conv(3, 4, 3, 2), neck=nn.Sequential(nn.ReLU(), module)))


def calling(function):
    class Custom(nn.Module):
        def forward(self, x):
            return function(x)

    return Custom()


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


MODULES = {
    "Upsample": lambda: nn.Upsample(scale_factor=3),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(1),
    "Linear": lambda: nn.Linear(640 // 2, 4),
    "Flatten": lambda: nn.Flatten(),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 4, 2, 2),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "Unfold": lambda: nn.Unfold(3),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(1),
    "ConstantPad2d": lambda: nn.ConstantPad2d(1, 2.0),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "Softmax": lambda: nn.Softmax(2),
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_is_not_the_same_at_every_position_is_named(kind):
    with pytest.raises(UnsupportedModule, match=rf"module 'neck\.1' \({kind}\) has no full-resolution form"):
        split_merge(inside(MODULES[kind]()))


FUNCTIONS = {
    "function upsample_nearest2d": lambda x: F.interpolate(x, scale_factor=3),
    "function mean": lambda x: x.mean((2, 3)),
    "function max": lambda x: x - x.max(),
    "function softmax": lambda x: F.softmax(x, -1),
    "function view": lambda x: x.flatten(1),
    "function slice": lambda x: x[:, :, 1:-1],
    "function slice ": lambda x: x[:, :, 3::2],
    "function cat": lambda x: torch.cat([x, x], 2),
    "function mul": lambda x: x * torch.arange(x.shape[3]),
    "function relu": lambda x: F.relu(F.pad(x, (1, 1, 1, 1))),
    "function cumsum": lambda x: x.cumsum(3),
    "function rand_like": lambda x: x + torch.rand_like(x),
    "function empty_like": lambda x: F.dropout(x),
    "function empty_like ": lambda x: F.rrelu(x, training=True),
    "function flip": lambda x: x.flip(-1),
    "function roll": lambda x: x.roll(1, 3),
    "function to_copy": lambda x: x.half(),
    "function fill": lambda x: x[:, :1].fill_(0),
    "function add": lambda x: x + x.argmax(1, keepdim=True),
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_function_is_named_together_with_the_module_that_calls_it(what):
    said = rf"{what.strip()}[a-z_]* in module 'neck\.1' has no full-resolution form"
    with pytest.raises(UnsupportedModule, match=said):
        split_merge(inside(calling(FUNCTIONS[what])))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (
            lambda: conv(4, 4, 3, padding_mode="reflect"),
            "padding_mode is 'reflect', only 'zeros' is possible",
        ),
        (
            lambda: conv(4, 4, 3, 1, 0),
            "kernel 3 with padding 0 and dilation 1 does not keep the size; padding 1 would",
        ),
        (
            lambda: conv(4, 4, 3, 1, 1, dilation=2),
            "kernel 3 with padding 1 and dilation 2 .* padding 2 would",
        ),
        (lambda: nn.MaxPool2d(3, 1), "kernel 3 with padding 0"),
        (lambda: torch.nn.utils.spectral_norm(conv(4, 4)), "it has forward hooks, which are not traced"),
        (lambda: hooked(conv(4, 4)), "it has forward hooks, which are not traced"),
        (lambda: conv(4, 4, 1, 2, 1), "kernel 1 with padding 1 reads padding alone at the border"),
    ],
)
def test_settings_without_a_full_resolution_form_are_named_with_their_module(module, why):
    with pytest.raises(UnsupportedModule, match=rf"'neck\.1' .*{why}"):
        split_merge(inside(module()))


def two_inputs():
    class Stereo(nn.Module):
        def forward(self, left, right):
            return left + right

    return Stereo()


def joins_strides(net, x):
    x = net.a(x)
    return net.b(x) + x


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (
            lambda: Net(joins_strides, a=conv(3, 4, 3, 2), b=conv(4, 4, 3, 2)),
            "Net cannot be traced with 2 images of 3 channels, 384 x 640: ",
        ),
        (two_inputs, "Stereo takes more than one input: right"),
        (lambda: calling(lambda x: x if x[0, 0, 0, 0] > 0 else -x), "function select has no"),
        (lambda: calling(lambda x: x if torch.equal(x, x + 1) else -x), "Custom cannot be traced"),
        (lambda: calling(lambda x: x * 2 if x.shape[2] > 400 else -x), "does other things to images of"),
        (lambda: calling(lambda x: x / x.shape[3]), "does other things to images of"),
        (lambda: calling(lambda x: "no"), "Custom must return tensors, not .*str"),
        (lambda: calling(lambda x: None), "Custom must return tensors, not NoneType"),
        (lambda: calling(lambda x: F.pad(x, (1, 1, 1, 1))), "the output of Custom .* padded"),
        (lambda: calling(lambda x: x.argmax(1, keepdim=True)), "the output of Custom .* it reads int64"),
        (lambda: calling(lambda x: x > 0), "the output of Custom is not N x C x H x W features"),
        (lambda: calling(lambda x: x.sum(1)), "the output of Custom is not N x C x H x W features"),
        (
            lambda: nn.Sequential(conv(3, 4, 3, 2), nn.Upsample(scale_factor=2), conv(4, 4)),
            r"module '2' \(Conv2d\) .* it reads what was resized: module '1' \(Upsample\)",
        ),
        (lambda: hooked(conv(3, 4)), "Conv2d has no full-resolution form: it has forward hooks"),
        (lambda: nn.Identity(), "Identity returns its input"),
        (
            lambda: Net(lambda net, x: (net.a(x), net.b(x)), a=conv(3, 4, 3, 2), b=conv(3, 4, 3, 3)),
            r"output stride \(2, 2\) does not divide \(3, 3\)",
        ),
    ],
)
def test_networks_without_a_full_resolution_form_are_refused(network, why):
    with pytest.raises(UnsupportedModule, match=why):
        split_merge(network())


def test_what_has_full_resolution_already():
    network = build("smp18", 4, 1 / 16)
    for whole in (network, network.full_resolution()):
        with pytest.raises(UnsupportedModule, match=f"{type(whole).__name__} has its full resolution"):
            split_merge(whole)
