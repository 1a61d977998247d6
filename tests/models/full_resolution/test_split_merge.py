import gc
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.split_merge import Piece, split_merge
from fullres.models.full_resolution.steps import IMAGE
from fullres.ops.pooling import lattice_length, phases_of
from fullres.pipeline.predict.cost import demands
from tests.models.full_resolution.a_trous import a_trous
from tests.models.full_resolution.strided_networks import NETWORKS, Net, assert_equal, conv, make, picture

torch.set_num_threads(1)

every_network = pytest.mark.parametrize("name", NETWORKS)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@every_network
@pytest.mark.parametrize("inference", [True, False])
def test_any_network_is_itself_without_subsampling(name, inference):
    # With and without gradients: inference overwrites features that nobody reads again.
    network = make(name)
    tree = split_merge(network)

    @settings(max_examples=5, deadline=None)
    @given(sizes)
    def check(size):
        image = picture(*size)
        before = image.clone()
        with torch.set_grad_enabled(not inference):
            assert_equal(tree(image), a_trous(network, image))
        assert torch.equal(image, before)

    check()


@pytest.mark.parametrize("name", [name for name, (_, fits) in NETWORKS.items() if fits])
def test_at_multiples_of_the_stride_stands_the_networks_own_output(name):
    network = make(name)
    tree = split_merge(network)
    rows, columns = tree.stride
    image = picture(24 // rows * rows + rows, 36 // columns * columns, batch=2)
    with torch.no_grad():
        full, own = tree(image)[:, :, ::rows, ::columns], network(image.clone())
    assert tree.channels == [own.shape[1]]
    assert_equal(full, own[:, :, : full.shape[2], : full.shape[3]])


@every_network
def test_features_are_freed_at_once(name):
    # Those in cycles would stay until a garbage collection, at a moment that nobody can tell before.
    tree, image = split_merge(make(name)), picture(37, 29)
    tree(image)
    gc.disable()
    gc.freeze()  # what is there by now takes a second to go through
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        tree(image)
        gc.collect()
        assert not [thing for thing in gc.garbage if isinstance(thing, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


# --- elementwise functions ---


def in_place(x, change):
    """Both names of a tensor that is overwritten."""
    x = x + 0
    other = x
    x = change(x)
    return x + other * 2


def divided(x):
    x /= 3
    return x


def subtracted(x):
    x -= 0.5
    return x


ELEMENTWISE = {
    "-x": lambda x, y: -x,
    "torch.neg": lambda x, y: torch.neg(x),
    "neg": lambda x, y: x.neg(),
    "x / 2": lambda x, y: x / 2,
    "2 / x": lambda x, y: 2 / (y + 2),
    "x / y": lambda x, y: x / (y + 2),
    "torch.div": lambda x, y: torch.div(x, y + 2, rounding_mode=None),
    "div": lambda x, y: x.div(3),
    "torch.clamp": lambda x, y: torch.clamp(x, -0.1, 0.2),
    "clamp above": lambda x, y: torch.clamp(x, None, 0.1),
    "clamp below": lambda x, y: x.clamp(min=0.1, max=None),
    "clamp by features": lambda x, y: torch.clamp(x, max=y),
    "relu_": lambda x, y: in_place(x, torch.relu_),
    "F.relu_": lambda x, y: in_place(x, F.relu_),
    "neg_": lambda x, y: in_place(x, lambda x: x.neg_()),
    "clamp_": lambda x, y: in_place(x, lambda x: x.clamp_(max=0.1)),
    "/=": lambda x, y: in_place(x, divided),
    "-=": lambda x, y: in_place(x, subtracted),
}


@pytest.mark.parametrize("function", ELEMENTWISE)
def test_elementwise_functions(function):
    def call(net, image):
        return net.c(ELEMENTWISE[function](net.a(image), torch.sigmoid(net.b(image))))

    torch.manual_seed(0)
    network = Net(call, a=conv(3, 4, 3, 2), b=conv(3, 4, 3, 2), c=conv(4, 2, 3, 2)).double()
    image = picture(13, 18)
    with torch.no_grad():
        assert_equal(split_merge(network)(image), a_trous(network, image))


def test_a_module_may_have_any_name():
    def call(net, x):
        return net.b(net.image(x)) + net.skip(x)

    network = Net(call, image=conv(3, 4), b=conv(4, 2, 3, 2), skip=conv(3, 2, 1, 2)).double()
    image = picture(13, 18)
    with torch.no_grad():
        assert_equal(split_merge(network)(image), a_trous(network, image))


def test_parametrised_weights():
    layer = nn.utils.parametrizations.spectral_norm(conv(3, 4, 3, 2))
    network = nn.Sequential(layer, nn.utils.parametrizations.weight_norm(conv(4, 2))).double().eval()
    image = picture(13, 18)
    with torch.no_grad():
        assert_equal(split_merge(network)(image), a_trous(network, image))


def siblings_together(tree, image):
    """All nodes of each level as one batch. The image's size is a multiple of the tree's stride."""
    size = tuple(image.shape[-2:])
    pieces = {IMAGE: Piece(image, (Span(0, size[0]), Span(0, size[1])), [(0, 0)], (1, 1))}
    parents, stride = [(0, 0)], (1, 1)
    for i, level in enumerate(tree.levels):
        parents = [
            (y + k * stride[0], x + m * stride[1]) for k, m in phases_of(level.window) for y, x in parents
        ]
        stride = level.stride
        region = (Span(0, size[0] // stride[0]), Span(0, size[1] // stride[1]))
        pieces |= tree.run_level(i, pieces, parents, region, size)
    (leaves,) = (pieces[name] for name in tree.outputs)
    merged = torch.full((1, leaves.tensor.shape[1], *size), torch.nan, dtype=image.dtype)
    for (y, x), leaf in zip(leaves.offsets, leaves.tensor, strict=True):
        merged[0, :, y :: stride[0], x :: stride[1]] = leaf
    return merged


@every_network
def test_siblings_can_be_one_batch(name):
    tree = split_merge(make(name))
    image = picture(2 * tree.stride[0], 3 * tree.stride[1])
    with torch.no_grad():
        assert_equal(siblings_together(tree, image), tree(image))


def one_tile(tree, image, merged, tile):
    """Computes `tile` (rows and columns, in pixels) from no more of the image than `demands` asks for."""
    size = tuple(image.shape[-2:])
    (name,) = tree.outputs
    wanted = [demands(tree, axis, {name: tile[axis]}) for axis in (0, 1)]
    window = tuple(wanted[a][IMAGE].clip(size[a]) for a in (0, 1))
    (top, bottom), (left, right) = window
    seen = Piece(image[:, :, top:bottom, left:right], window, [(0, 0)], (1, 1))
    nodes, stride = [((0, 0), {IMAGE: seen})], (1, 1)
    for i, level in enumerate(tree.levels):
        children = []
        for (y, x), pieces in nodes:
            for k, m in phases_of(level.window):
                offset = (y + k * stride[0], x + m * stride[1])
                region = []
                for a in (0, 1):
                    span = wanted[a][level.exports[0]]
                    length = lattice_length(size[a], offset[a], level.stride[a])
                    region.append(
                        Span(span.start // level.stride[a], span.stop // level.stride[a]).clip(length)
                    )
                if region[0].length and region[1].length:
                    children.append(
                        (offset, pieces | tree.run_level(i, pieces, [offset], tuple(region), size))
                    )
        nodes, stride = children, level.stride
    for (y, x), pieces in nodes:
        piece = pieces[name]
        rows, columns = (
            slice(o + s * span.start, o + s * (span.stop - 1) + 1, s)
            for o, s, span in zip((y, x), stride, piece.region, strict=True)
        )
        merged[:, :, rows, columns] = piece.tensor


@every_network
def test_tiles_of_any_cut_fit_together(name):
    tree = split_merge(make(name))

    @settings(max_examples=3, deadline=None)
    @given(sizes, st.lists(st.integers(1, 39), max_size=2), st.lists(st.integers(1, 39), max_size=1))
    def check(size, row_cuts, column_cuts):
        image = picture(*size)
        with torch.no_grad():
            whole = tree(image)
            merged = torch.full_like(whole, torch.nan)
            borders = [
                sorted({0, n, *(c for c in cuts if c < n)})
                for n, cuts in zip(size, (row_cuts, column_cuts), strict=True)
            ]
            for rows, columns in itertools.product(*(itertools.pairwise(b) for b in borders)):
                one_tile(tree, image, merged, (Span(*rows), Span(*columns)))
        assert_equal(merged, whole)

    check()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["vgg", "resnet", "densenet", "finer skip", "stride 3", "even kernel"]), sizes, st.data()
)
def test_any_region_of_a_level_equals_that_part_of_the_whole(name, size, data):
    tree = split_merge(make(name))
    tree = tree.with_trunk(data.draw(st.sampled_from([0, *tree.trunks()])))
    image = picture(*size)
    pieces = {IMAGE: Piece(image, (Span(0, size[0]), Span(0, size[1])), [(0, 0)], (1, 1))}
    offset = (0, 0)
    with torch.no_grad():
        for i, level in enumerate(tree.levels):
            lengths = [lattice_length(size[a], offset[a], level.stride[a]) for a in (0, 1)]
            whole = tree.run_level(i, pieces, [offset], tuple(Span(0, n) for n in lengths), size)
            region = []
            for n in lengths:
                start = data.draw(st.integers(0, n - 1))
                region.append(Span(start, data.draw(st.integers(start + 1, n))))
            part = tree.run_level(i, pieces, [offset], tuple(region), size)
            for export in level.exports:
                assert part[export].region == tuple(region)
                assert_equal(part[export].tensor, whole[export].crop(tuple(region)))
            pieces |= whole


@every_network
def test_with_a_trunk_it_is_the_same(name):
    tree = split_merge(make(name))

    @settings(max_examples=2, deadline=None)
    @given(sizes)
    def check(size):
        image = picture(*size)
        with torch.no_grad():
            whole = tree(image)
            for trunk in tree.trunks():
                joined = tree.with_trunk(trunk)
                assert joined.levels[0].stride == tree.levels[trunk].stride
                assert len(joined.levels) <= len(tree.levels) - trunk + 1
                assert_equal(joined(image), whole)

    check()


def test_a_trunk_ends_behind_the_first_block():
    tree = split_merge(make("resnet"))
    assert tree.trunks() == [1, 2, 3, 4]
    stem, rest, *_ = tree.with_trunk(2).levels
    assert stem.is_trunk
    assert not rest.is_trunk
    assert (stem.stride, rest.stride) == ((8, 8), (8, 8))
    assert (stem.window, rest.window) == ((8, 8), (1, 1))
    assert rest.reads == stem.exports


def test_no_trunk_holds_what_is_read_further_down():
    def call(net, image):
        first = net.a(image)
        return net.c(net.b(first)) + net.skip(first)

    layers = {name: conv(4, 4, 3, 2) for name in "bc"}
    tree = split_merge(Net(call, a=conv(3, 4, 3, 2), skip=conv(4, 4, 1, 4), **layers))
    assert len(tree.levels) == 3
    assert tree.trunks() == [2]  # one that ends at stride 4 would have to keep the first layer's output


# --- several outputs ---


def pyramid():
    def call(net, x):
        fine = net.a(x)
        coarse = net.b(F.relu(fine))
        return fine, net.head(coarse), coarse

    return Net(call, a=conv(3, 4, 3, 2), b=conv(4, 5, 3, 2), head=conv(5, 2, 1))


def test_each_of_several_outputs_is_at_full_resolution():
    torch.manual_seed(0)
    network = pyramid().double()
    tree, image = split_merge(network), picture(13, 18)
    expected = a_trous(network, image)
    assert tree.channels == [4, 2, 5]
    merged = [torch.full_like(e, torch.nan) for e in expected]
    for pieces in tree.run_phases(image, tree.all_phases()):
        for out, name in zip(merged, tree.outputs, strict=True):
            sy, sx = pieces[name].stride
            for (y, x), leaf in pieces[name].leaves(len(image)):
                out[:, :, y::sy, x::sx] = leaf
    for out, e in zip(merged, expected, strict=True):
        assert_equal(out, e)
    with pytest.raises(ValueError, match="3 outputs; only one can be merged"):
        tree(image)


# --- what the tree is ---


def test_levels_are_the_networks_output_strides():
    tree = split_merge(make("resnet"))
    # The maximum of 3x3 needs conv1 at every second pixel, which an SMP's split pooling does not.
    assert [level.stride for level in tree.levels] == [(2, 2), (4, 4), (8, 8), (16, 16), (32, 32)]
    assert [level.window for level in tree.levels] == [(2, 2)] * 5
    assert [level.stride for level in split_merge(make("rows and columns")).levels] == [(2, 1), (2, 2)]
    assert [level.stride for level in split_merge(make("no stride")).levels] == [(1, 1)]


def test_two_splits_in_a_row_are_one_level():
    tree = split_merge(
        nn.Sequential(conv(3, 4, 7, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(1, 2), conv(4, 4))
    )
    assert [(level.stride, level.window) for level in tree.levels] == [((4, 4), (4, 4))]


def test_what_no_output_needs_is_left_out():
    def call(net, x):
        net.unused(x)
        return net.a(x)

    tree = split_merge(Net(call, a=conv(3, 4, 3, 2), unused=conv(3, 999, 3, 2)))
    assert [step.name for level in tree.levels for step in level.steps] == ["a"]


def test_parameters_are_shared_and_move_together():
    network = make("mobilenet")
    tree = split_merge(network)
    assert {id(p) for p in tree.parameters()} == {id(p) for p in network.parameters()}
    assert tree.float()(torch.randn(1, 3, 9, 9)).dtype == torch.float32
    assert next(network.parameters()).dtype == torch.float32


class Picklable(nn.Module):
    """Unlike `Net`, which holds a local function."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(conv(3, 4, 3, 2), nn.PReLU(4), nn.AvgPool2d(2), conv(4, 4, 3, 2))

    def forward(self, x):
        x = F.relu(self.layers(x))
        return torch.cat([F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2).sigmoid()], 1) * 2


def test_a_tree_goes_to_another_process():
    tree = split_merge(Picklable().double())
    image = picture(21, 18)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(tree))(image), tree(image))


def test_gradients_are_those_of_the_network_without_subsampling():
    network = make("densenet")
    image = picture(11, 14).requires_grad_()
    weights = torch.randn_like(a_trous(network, image))
    inputs = [image, *network.parameters()]
    expected = torch.autograd.grad((a_trous(network, image) * weights).sum(), inputs)
    for a, b in zip(
        torch.autograd.grad((split_merge(network)(image) * weights).sum(), inputs), expected, strict=True
    ):
        assert_equal(a, b)


# --- refusals ---


def test_the_number_of_leaves_is_the_product_of_the_strides():
    tree = split_merge(make("vgg"))
    assert tree.stride == (8, 8)
    assert math.prod(len(phases) for phases in tree.all_phases()) == 64
