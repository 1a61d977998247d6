"""What `split_merge` refuses, and that it names the place."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.full_resolution.split_merge import split_merge
from fullres.models.full_resolution.trace import UnsupportedModule
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
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(1),
    "Linear": lambda: nn.Linear(4, 4),
    "Flatten": lambda: nn.Flatten(),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 4, 2, 2),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4),
    "LPPool2d": lambda: nn.LPPool2d(2, 2),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "Softmax": lambda: nn.Softmax(2),
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_is_not_the_same_at_every_position_is_named(kind):
    with pytest.raises(UnsupportedModule, match=rf"module 'neck\.1' \({kind}\) has no full-resolution form"):
        split_merge(inside(MODULES[kind]()))


FUNCTIONS = {
    "function interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "function adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "function softmax": lambda x: F.softmax(x, -1),
    "call_method mean": lambda x: x.mean((2, 3)),
    "call_method flatten": lambda x: x.flatten(1),
    "function matmul": lambda x: x @ x,
    "function getitem": lambda x: x[:, :, ::2],
    "function cat": lambda x: torch.cat([x, x], 2),
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_function_is_named_together_with_the_module_that_calls_it(what):
    with pytest.raises(UnsupportedModule, match=rf"{what} in module 'neck\.1' has no full-resolution form"):
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
        (lambda: nn.MaxPool2d(2, 2, return_indices=True), "it returns indices"),
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


def tensor_constant():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x):
            return x * self.scale

    return Scaled()


def joins_strides(net, x):
    x = net.a(x)
    return net.b(x) + x


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (
            lambda: Net(joins_strides, a=conv(3, 4, 3, 2), b=conv(4, 4, 3, 2)),
            r"strides \[\(2, 2\), \(4, 4\)\]",
        ),
        (two_inputs, "Stereo takes more than one input: right"),
        (lambda: calling(lambda x: x if x.sum() > 0 else -x), "Custom cannot be traced"),
        (lambda: calling(lambda x: {"out": F.relu(x)}), "must return a tensor or a tuple of tensors"),
        (lambda: hooked(conv(3, 4)), "Conv2d has no full-resolution form: it has forward hooks"),
        (lambda: nn.Identity(), "Identity returns its input"),
        (tensor_constant, "get_attr scale has no full-resolution form: it reads no features"),
        (
            lambda: Net(lambda net, x: net.a(x) + net.b(x), a=conv(3, 4, 3, 2), b=conv(3, 1, 3, 2)),
            "function add .* joins features of 4, 1 channels|function add .* channels",
        ),
        (
            lambda: Net(lambda net, x: (net.a(x), net.b(x)), a=conv(3, 4, 3, 2), b=conv(3, 4, 3, 3)),
            r"output stride \(2, 2\) does not divide \(3, 3\)",
        ),
    ],
)
def test_networks_without_a_full_resolution_form_are_refused(network, why):
    with pytest.raises(UnsupportedModule, match=why):
        split_merge(network())
