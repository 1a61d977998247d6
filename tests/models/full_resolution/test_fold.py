import copy

import pytest
import torch
from torch import nn

from fullres.models.full_resolution.fold import fold_batch_norm
from fullres.models.full_resolution.split_merge import split_merge
from tests.networks import narrow, vgg, with_statistics

torch.set_num_threads(1)


def difference(tree, folded, size=(45, 51)):
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = tree(image)
        return ((folded(image) - expected).abs().max() / expected.abs().max()).item()


def batch_norms(tree):
    return [
        step.name for level in tree.levels for step in level.steps if isinstance(step.call, nn.BatchNorm2d)
    ]


@pytest.mark.parametrize("name", ["smp18", "smp50", "vgg"])
def test_same_scores_without_any_batch_norm(name):
    network = (vgg() if name == "vgg" else narrow(name)).double()
    tree = network if name == "vgg" else network.full_resolution()
    before = copy.deepcopy(network.state_dict())
    folded = fold_batch_norm(tree)
    assert batch_norms(tree)
    assert not batch_norms(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert difference(tree, folded) < 1e-12
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert all(
        conv.bias is None
        for conv in network.modules()
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2)
    )


def test_parameters_are_its_own():
    network = narrow("smp18").double()
    folded = fold_batch_norm(network.full_resolution())
    mine = {p.data_ptr() for p in network.parameters()} | {b.data_ptr() for b in network.buffers()}
    assert not mine & {p.data_ptr() for p in folded.parameters()}
    image = torch.randn(1, 3, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        before = folded(image)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(folded(image), before)


class Shared(nn.Module):
    """One convolution called twice, with another batch norm each time; then one read by two."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.early = nn.BatchNorm2d(3)
        self.pooled = nn.BatchNorm2d(4, affine=False)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        x = self.stem(self.early(x)).relu()
        x = self.norms[0](self.conv(x)).relu()
        x = self.norms[1](self.conv(x)).relu()
        both = self.conv(x)
        x = self.norms[2](both) + both
        return self.pooled(self.pool(x))


def test_shared_convolutions_and_batch_norms_elsewhere():
    torch.manual_seed(0)
    tree = split_merge(with_statistics(Shared())).double()
    folded = fold_batch_norm(tree)
    # a batch norm of the image, one of a pool, one whose convolution is read elsewhere too
    assert batch_norms(folded) == ["early", "norms.2", "pooled"]
    assert difference(tree, folded) < 1e-12


def test_convolution_with_a_bias_and_batch_norm_without_parameters():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    tree = split_merge(with_statistics(network)).double()
    folded = fold_batch_norm(tree)
    assert not batch_norms(folded)
    assert difference(tree, folded) < 1e-12
