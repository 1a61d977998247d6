import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.models.catalogue import build, parameter_count
from fullres.models.smp import SMP, subsampling_resnet
from fullres.ops.pooling import phases_of, split
from tests.models.full_resolution.dilated import dilated
from tests.models.full_resolution.dilated import split as split_to_the_letter

torch.set_num_threads(1)

DEPTHS = (18, 34, 50)
ODD_SIZES = [(1, 1), (1, 7), (5, 3), (37, 53), (64, 33), (97, 31)]


def with_statistics(network, seed=0):
    """In evaluation mode, every batch norm with statistics and parameters of its own, so that one in the
    wrong place, or zero padding before it instead of behind it, shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.0),
                (module.bias, -0.5, 0.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def narrow(depth, classes=5):
    torch.manual_seed(depth)
    return with_statistics(build(f"smp{depth}", classes, width=1 / 16))


def largest_difference(a, b):
    """Relative to the largest value."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module", params=DEPTHS, ids=[f"smp{d}" for d in DEPTHS])
def network(request):
    return narrow(request.param).double()


@pytest.mark.parametrize("size", ODD_SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_scores_are_the_dilated_networks_at_fixed_odd_sizes(network, size):
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert largest_difference(network(image), dilated(network, image)) < 1e-12


@pytest.mark.parametrize("depth", DEPTHS)
def test_scores_are_the_dilated_networks_at_any_size(depth):
    network = narrow(depth).double()

    @settings(max_examples={18: 4, 34: 2, 50: 2}[depth], deadline=None)
    @given(st.tuples(st.integers(1, 97), st.integers(1, 97)))
    def check(size):
        image = torch.randn(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            assert largest_difference(network(image), dilated(network, image)) < 1e-12

    check()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("size", [(1, 7), (33, 38)])
def test_scores_are_those_of_the_papers_split_and_merge_layers(depth, size):
    network = narrow(depth).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert largest_difference(network(image), split_to_the_letter(network, image)) < 1e-12


@pytest.mark.parametrize("depth", DEPTHS)
def test_single_precision_and_batches_of_images(depth):
    network = narrow(depth)
    images = torch.randn(2, 3, 35, 21)
    with torch.no_grad():
        expected = dilated(network.double(), images.double())
        assert largest_difference(network.float()(images).double(), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 34, 101])
def test_full_width(depth):
    torch.manual_seed(depth)
    network = with_statistics(build(f"smp{depth}", 19))
    image = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        assert largest_difference(network(image), dilated(network, image)) < 1e-5


@pytest.mark.parametrize("size", [(64, 32), (33, 40)])
def test_the_first_leaf_is_the_ordinary_strided_network(network, size):
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        strided = network.classifier(network.backbone(image)[3])
        assert largest_difference(network(image)[:, :, ::32, ::32], strided) < 1e-12


def test_there_are_1024_leaves(network):
    tree = network.full_resolution()
    assert tree.stride == (32, 32)
    assert math.prod(rows * columns for rows, columns in (level.window for level in tree.levels)) == 1024


def loss(scores, target):
    """A sum over pixels, so that leaves add up to the image."""
    return ((scores - target) ** 2).sum()


def shrink(network, image, counts):
    """The lattices that training draws, with batch norm as in evaluation."""
    network.eval().training = True
    network.phases = tuple(counts)
    try:
        return network(image).lattices
    finally:
        network.eval()


def test_gradients_of_all_phases_are_those_of_the_dilated_network():
    network = narrow(18).double()
    image = torch.randn(1, 3, 35, 33, dtype=torch.float64)
    target = torch.randn(1, 5, 35, 33, dtype=torch.float64)
    loss(dilated(network, image), target).backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    every = [rows * columns for rows, columns in (level.window for level in network.full_resolution().levels)]
    pieces = shrink(network, image, every)
    assert len(pieces) == 1024
    losses = []
    for piece in pieces:
        (y, x), (sy, sx) = piece.offset, piece.stride
        losses.append(loss(piece.logits, target[:, :, y::sy, x::sx]))
    torch.stack(losses).sum().backward()  # one backward pass: each would go through what pieces share
    for name, parameter in network.named_parameters():
        assert largest_difference(parameter.grad, expected[name]) < 1e-10, name


def test_shrink_returns_the_scores_at_its_lattices():
    network = narrow(34).double()
    images = torch.randn(2, 3, 61, 45, dtype=torch.float64)
    with torch.no_grad():
        whole = dilated(network, images)
        pieces = shrink(network, images, [2, 1, 2, 3])
        assert len(pieces) == 12
        assert len({piece.offset for piece in pieces}) == 12
        for piece in pieces:
            (y, x), (sy, sx) = piece.offset, piece.stride
            assert largest_difference(piece.logits, whole[:, :, y::sy, x::sx]) < 1e-10


def test_shrink_draws_by_torchs_seed():
    network, image = narrow(18), torch.randn(1, 3, 64, 64)

    def offsets(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return [piece.offset for piece in shrink(network, image, [1, 1, 1, 1])]

    drawn = [offsets(seed) for seed in range(8)]
    assert [offsets(seed) for seed in range(8)] == drawn
    assert len({tuple(d) for d in drawn}) > 4


def test_phases_drawn_together_cover_every_pixel_once():
    network, image = narrow(18), torch.zeros(1, 3, 45, 37)
    hits = torch.zeros(45, 37)
    with torch.no_grad():
        for piece in shrink(network, image, [16, 4, 4, 4]):
            (y, x), (sy, sx) = piece.offset, piece.stride
            hits[y::sy, x::sx] += 1
    assert torch.equal(hits, torch.ones(45, 37))


def test_merged_scores_split_into_the_leaves():
    network, image = narrow(18).double(), torch.randn(1, 3, 41, 66, dtype=torch.float64)
    tree = network.full_resolution()
    with torch.no_grad():
        leaves = {
            offset: leaf
            for out in tree.run_phases(image, tree.all_phases())
            for piece in out.values()
            for offset, leaf in piece.leaves(1)
        }
        for phase, part in zip(phases_of(32), split(network(image), 32), strict=True):
            assert torch.equal(part, leaves[phase])


def count(name):
    with torch.device("meta"):
        return parameter_count(build(name, 19))


@pytest.mark.parametrize("family", ["fcn32s", "smp"])
@pytest.mark.parametrize(("depth", "printed"), [(18, "11.186"), (34, "21.29"), (101, "42.54")])
def test_parameters_of_tables_1_and_2(family, depth, printed):
    digits = len(printed.split(".")[1])
    assert f"{count(f'{family}{depth}') / 1e6:.{digits}f}" == printed


@pytest.mark.parametrize(("depth", "printed"), [(18, "11.193"), (34, "21.30"), (101, "42.56")])
def test_parameters_of_fcn8s(depth, printed):
    # 11,193,593 and 42,568,313 are printed as 11.193M and 42.56M: these rows are cut, not rounded.
    assert f"{count(f'fcn8s{depth}') / 1e6:.6f}".startswith(printed)


def test_parameters_of_resnet_18_exactly():
    assert count("smp18") == count("fcn32s18") == 11_186_259
    assert count("fcn8s18") == 11_186_259 + (128 + 1) * 19 + (256 + 1) * 19


@pytest.mark.parametrize("depth", [18, 50])
def test_smp_and_fcn32s_share_one_state_dict(depth):
    smp, fcn = build(f"smp{depth}", 7, 1 / 16), build(f"fcn32s{depth}", 7, 1 / 16)
    assert list(smp.state_dict()) == list(fcn.state_dict())
    fcn.load_state_dict(smp.state_dict())
    smp.load_state_dict(fcn.state_dict())


def test_its_tree_shares_its_parameters():
    network = narrow(18)
    tree = network.full_resolution()
    assert {id(p) for p in tree.parameters()} == {id(p) for p in network.parameters()}
    image = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        before = tree(image)
        network.classifier.bias += 1
        torch.testing.assert_close(tree(image), before + 1)


def test_unknown_depth_and_width_too_small():
    with pytest.raises(ValueError, match="ResNet depth is 19: one of 18, 34, 50, 101, 152"):
        SMP(subsampling_resnet(19), 5)
    with pytest.raises(ValueError, match=r"width is 0\.01: at least 1/64"):
        subsampling_resnet(18, 0.01)
