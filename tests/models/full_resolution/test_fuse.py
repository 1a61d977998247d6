"""Fusing sums and ReLUs into convolutions changes no result, whatever the network looks like."""

import pytest
import torch
from torch import nn

from fullres.models.full_resolution.fold import fold_batch_norm, fuse
from fullres.models.full_resolution.split_merge import split_merge
from fullres.ops.convolution import Convolution
from tests.models.full_resolution.test_split_merge import NETWORKS, make, picture


def packed(tree):
    for module in tree.modules():
        if isinstance(module, Convolution):
            module.pack()
    return tree


def outputs(tree, image):
    return [
        {name: (piece.tensor, piece.offsets) for name, piece in pieces.items()}
        for pieces in tree.run_phases(image, tree.all_phases())
    ]


def assert_same(tree, other, image, tolerance):
    with torch.inference_mode():
        expected, actual = outputs(tree, image), outputs(other, image)
    assert len(expected) == len(actual)
    for ours, theirs in zip(expected, actual, strict=True):
        for (a, where), (b, place) in zip(ours.values(), theirs.values(), strict=True):
            assert list(where) == list(place)
            scale = max(1.0, float(a.abs().max()))
            torch.testing.assert_close(b, a, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_gives_the_same_fused(name):
    image = picture(23, 18, batch=2)
    tree = split_merge(make(name))
    assert_same(tree, fuse(fold_batch_norm(tree)), image, 1e-12)
    tree, image = tree.float(), image.float()
    assert_same(tree, packed(fuse(fold_batch_norm(tree))), image, 1e-5)


class Residual(nn.Module):
    """Shortcuts of every kind: of the convolution's own input, of two convolutions, of one tensor twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 32, 3, padding=1) for i in (3, 32, 32))

    def forward(self, x):
        x = self.a(x)
        x = self.b(x) + x
        y = torch.relu(x)
        y = self.c(y) + self.b(y)
        y = torch.relu(y + y)
        return y + x


def test_a_convolution_reads_its_own_shortcut():
    torch.manual_seed(0)
    tree = split_merge(Residual().eval())
    fused = packed(fuse(tree))
    assert len(fused.levels[0].steps) < len(tree.levels[0].steps)
    assert_same(tree, fused, torch.randn(1, 3, 9, 11), 1e-5)


def test_resnet_blocks_become_convolutions_alone():
    from fullres.models.catalogue import build

    tree = fuse(fold_batch_norm(build("smp18", 3, 1 / 16).eval().full_resolution()))
    assert {step.op for level in tree.levels for step in level.steps} == {"convolution"}
    assert sum(len(level.steps) for level in tree.levels) == 1 + 16 + 3 + 1
