import itertools
import math
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.models.geometry import Span
from fullres.models.resnet import ResNet
from fullres.models.split_merge import Piece, split_merge
from fullres.models.trace import IMAGE, UnsupportedModule
from fullres.ops.pooling import lattice_length, phases_of
from fullres.pipeline.cost import demands
from tests.models.a_trous import a_trous

torch.set_num_threads(1)


class Net(nn.Module):
    """A network from its layers and a function that calls them."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, image):
        return self.call(self, image)


def conv(i, o, kernel=3, stride=1, padding=None, **more):
    return nn.Conv2d(i, o, kernel, stride, kernel // 2 if padding is None else padding, **more)


def vgg():
    layers, channels = [], 3
    for width in (4, 6, 8):
        layers += [conv(channels, width), nn.ReLU(inplace=True), conv(width, width), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2, 2))
        channels = width
    return nn.Sequential(*layers, conv(8, 5, 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 up, depthwise 3x3, 1x1 down without activation."""

    def __init__(self, i, o, stride, expand):
        super().__init__()
        hidden = i * expand
        up = [conv(i, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        self.use_residual = stride == 1 and i == o
        self.conv = nn.Sequential(
            *(up if expand > 1 else []),
            conv(hidden, hidden, 3, stride, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            conv(hidden, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )

    def forward(self, x):
        return x + self.conv(x) if self.use_residual else self.conv(x)


def mobilenet():
    blocks = [(4, 4, 1, 1), (4, 6, 2, 2), (6, 6, 1, 2), (6, 8, 2, 2), (8, 8, 1, 2)]
    stem = nn.Sequential(conv(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
    return nn.Sequential(stem, *(InvertedResidual(*b) for b in blocks), nn.Dropout(0.2), conv(8, 5, 1))


def alexnet():
    return nn.Sequential(
        conv(3, 4, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        conv(4, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), conv(6, 5),
    )  # fmt: skip


class DenseLayer(nn.Module):
    """DenseNet's: normalise and activate first, then join new features to all old ones."""

    def __init__(self, i, growth):
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(i), nn.ReLU(inplace=True), conv(i, growth)

    def forward(self, x):
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


def densenet():
    return nn.Sequential(
        conv(3, 4, 7, 2), nn.MaxPool2d(3, 2, 1), DenseLayer(4, 2), DenseLayer(6, 2),
        nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1), nn.AvgPool2d(2, 2), DenseLayer(4, 3),
    )  # fmt: skip


def functional():
    def call(net, x):
        x = F.relu(net.a(x), inplace=True)
        y = F.max_pool2d(x, 2)
        y += net.b(x)
        y = F.avg_pool2d(F.leaky_relu(y, 0.2), kernel_size=3, stride=2, padding=1, count_include_pad=False)
        return 1 - 0.5 * torch.cat((y, y.relu()), dim=1) * 2

    return Net(call, a=conv(3, 4), b=conv(4, 4, 3, 2))


def finer_skip():
    """The finer features are read by a 3x3 convolution too, so they exist at the fine stride."""

    def call(net, x):
        fine = torch.tanh(net.a(x))
        return net.skip(fine) + net.c(torch.tanh(net.b(fine)))

    return Net(call, a=conv(3, 4), b=conv(4, 4, 3, 2), c=conv(4, 5), skip=conv(4, 5, 1, 2))


def mixed_levels():
    """A sum at stride 2 of features that exist at stride 1 and of others that nobody needs there."""

    def call(net, x):
        a = net.a(x)
        return net.pick(a + net.b(x)) + net.c(a)

    return Net(call, a=conv(3, 4), b=conv(3, 4), c=conv(4, 4, 3, 2), pick=nn.MaxPool2d(1, 2))


def image_twice():
    def call(net, x):
        return net.b(F.relu(net.a(x))) + net.direct(x)

    return Net(call, a=conv(3, 4, 3, 2), b=conv(4, 5, 3, 2), direct=conv(3, 5, 5, 4))


def twice():
    def call(net, x):
        x = net.act(net.stem(x))
        return net.same(net.act(net.same(x))) + x

    return Net(call, stem=conv(3, 4, 3, 2), same=conv(4, 4), act=nn.PReLU(4))


def overwritten():
    """In-place activations change what the other readers of their input see."""

    def call(net, x):
        x = net.a(x)
        alias = x
        y = net.leaky(x)
        late = net.pick(net.b(x))
        x += 1
        return torch.add(net.c(y), other=late) * net.pick(alias)

    leaky = nn.LeakyReLU(0.3, inplace=True)
    return Net(call, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4, 3, 2), leaky=leaky, pick=nn.MaxPool2d(1, 2))


def in_place_on_finer():
    """An in-place activation at stride 2 of features at stride 1 that are read for all four phases."""

    def call(net, x):
        x = net.a(x)
        fine = net.b(x)
        return net.c(net.leaky(x)) + fine

    leaky = nn.LeakyReLU(0.3, inplace=True)
    return Net(call, a=conv(3, 4), b=conv(4, 4, 3, 2), c=conv(4, 4, 1, 2), leaky=leaky)


def several_places():
    def call(net, x):
        x = net.a(x)
        return torch.cat([x * x, x, x + x, x], 1)

    return Net(call, a=conv(3, 4, 3, 2))


# name: network, and whether its windows end inside its padding when the image's size is divisible
NETWORKS = {
    "vgg": (vgg, True),
    "mobilenet": (mobilenet, True),
    "alexnet": (alexnet, False),
    "densenet": (densenet, True),
    "resnet": (lambda: Net(lambda net, x: net.r(x)[3], r=ResNet(18, 1 / 16)), True),
    "functional": (functional, True),
    "finer skip": (finer_skip, True),
    "mixed levels": (mixed_levels, True),
    "image twice": (image_twice, True),
    "layer called twice": (twice, True),
    "overwritten": (overwritten, True),
    "in place on finer features": (in_place_on_finer, True),
    "patches": (lambda: nn.Sequential(conv(3, 4, 4, 4, 0), nn.GELU(), conv(4, 4, 7, groups=4)), True),
    "stride 3": (lambda: nn.Sequential(conv(3, 4, 3, 3), nn.SiLU(), conv(4, 4, 5, 2)), True),
    "rows and columns": (
        lambda: nn.Sequential(conv(3, 4, 3, (2, 1)), nn.MaxPool2d((1, 3), (1, 2), (0, 1)), conv(4, 4)),
        True,
    ),
    "dilated": (
        lambda: nn.Sequential(conv(3, 4, 3, 2, 2, dilation=2), nn.ELU(), conv(4, 4, 3, 1, 3, dilation=3)),
        True,
    ),
    "same": (lambda: nn.Sequential(conv(3, 4, 3, 2), conv(4, 4, 4, 1, "same"), conv(4, 4, 1)), True),
    "even kernel": (lambda: nn.Sequential(conv(3, 4, 2, 1, 0), nn.ReLU(), conv(4, 4, 6, 2, 2)), False),
    "average with padding": (lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, 1), conv(4, 4)), True),
    "average without padding": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv(4, 4)),
        True,
    ),
    "average ceil": (lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, ceil_mode=True), conv(4, 4)), True),
    "average divisor": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(2, 2, divisor_override=3), conv(4, 4)),
        True,
    ),
    "dilated pool": (lambda: nn.Sequential(conv(3, 4), nn.MaxPool2d(3, 2, dilation=2), conv(4, 4)), False),
    "ends in a pick": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(1, 2)), True),
    "no stride": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)), True),
    "one tensor in several places": (several_places, True),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0]().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


def picture(height, width, batch=1):
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


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
            (y, x), (sy, sx) = pieces[name].offsets[0], pieces[name].stride
            out[:, :, y::sy, x::sx] = pieces[name].tensor
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


def inside(module):
    """As `neck.1` of a network that is otherwise fine."""
    return nn.Sequential(OrderedDict(stem=conv(3, 4, 3, 2), neck=nn.Sequential(nn.ReLU(), module)))


def calling(function):
    class Custom(nn.Module):
        def forward(self, x):
            return function(x)

    return Custom()


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


def test_the_number_of_leaves_is_the_product_of_the_strides():
    tree = split_merge(make("vgg"))
    assert tree.stride == (8, 8)
    assert math.prod(len(phases) for phases in tree.all_phases()) == 64
