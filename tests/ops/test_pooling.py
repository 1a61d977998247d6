import itertools
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.ops.pooling import (
    ExpandPool2d,
    MergePool2d,
    ShrinkPool2d,
    SplitPool2d,
    draw_phases,
    expand,
    merge,
    phases_of,
    share_of_phases,
    shares_of_phases,
    shrink,
    split,
)

torch.set_num_threads(1)

windows = st.tuples(st.integers(1, 4), st.integers(1, 4))
sizes = st.tuples(st.integers(0, 17), st.integers(0, 17))


def numbered(height, width):
    """Every element different: 2 x 3 x height x width."""
    return torch.arange(2 * 3 * height * width, dtype=torch.float64).reshape(2, 3, height, width)


def length(n, w, k):
    """How many i there are with i * w + k < n."""
    return len(range(k, n, w))


@given(windows, sizes)
def test_split_is_equation_1(window, size):
    # The paper's w and i go along the first index of A, as rows do here.
    (w, h), (W, H) = window, size
    a = numbered(W, H)
    batches = split(a, window)
    assert len(batches) == w * h
    for (k, m), b in zip(itertools.product(range(w), range(h)), batches, strict=True):
        assert b.shape == (2, 3, length(W, w, k), length(H, h, m))
        for i, j in itertools.product(range(b.shape[2]), range(b.shape[3])):
            assert torch.equal(b[:, :, i, j], a[:, :, i * w + k, j * h + m])


@given(windows, sizes)
def test_merge_is_equation_2(window, size):
    (w, h), (W, H) = window, size
    batches = [
        torch.rand(2, 3, length(W, w, k), length(H, h, m)) for k, m in itertools.product(range(w), range(h))
    ]
    a = merge(batches, window)
    assert a.shape == (2, 3, W, H)
    for (k, m), b in zip(itertools.product(range(w), range(h)), batches, strict=True):
        for i, j in itertools.product(range(b.shape[2]), range(b.shape[3])):
            assert torch.equal(a[:, :, i * w + k, j * h + m], b[:, :, i, j])


@given(windows, sizes)
def test_merge_inverts_split(window, size):
    x = numbered(*size)
    assert torch.equal(merge(split(x, window), window), x)


@given(windows, sizes, st.data())
def test_shrink_keeps_one_split_batch_and_expand_puts_it_back_among_zeros(window, size, data):
    x = numbered(*size) + 1
    k, m = phase = data.draw(st.sampled_from(phases_of(window)))
    kept = shrink(x, window, phase)
    assert torch.equal(kept, split(x, window)[phases_of(window).index(phase)])
    back = expand(kept, window, phase, size)
    for y, column in itertools.product(range(size[0]), range(size[1])):
        stays = y % window[0] == k and column % window[1] == m
        assert torch.equal(back[:, :, y, column], x[:, :, y, column] * stays)


def test_one_number_is_a_square_window_and_no_batch_axes_are_needed():
    x = torch.rand(5, 7)
    assert [b.shape for b in split(x, 3)] == [b.shape for b in split(x, (3, 3))]
    assert torch.equal(merge(split(x, 3), (3, 3)), x)


def test_split_batches_are_views():
    x = torch.zeros(1, 1, 4, 4)
    split(x, 2)[3][...] = 1
    assert x.sum() == 4
    assert x[0, 0, 1, 1] == 1


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_gradients_flow_through_all_four(size):
    window, phase = (2, 3), (1, 1)
    x = torch.rand(1, 2, *size, dtype=torch.float64, requires_grad=True)
    parts = [b.detach().clone().requires_grad_() for b in split(x, window)]
    kept = shrink(x, window, phase).detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(split(x, window)), x)
    assert torch.autograd.gradcheck(lambda *parts: merge(parts, window), parts)
    assert torch.autograd.gradcheck(lambda x: shrink(x, window, phase), x)
    assert torch.autograd.gradcheck(lambda kept: expand(kept, window, phase, size), kept)


def test_only_sparse_elements_carry_gradient_through_shrink_and_expand():
    x = torch.rand(1, 1, 5, 5, requires_grad=True)
    expand(shrink(x, 2, (1, 0)), 2, (1, 0), (5, 5)).sum().backward()
    expected = torch.zeros(5, 5)
    expected[1::2, 0::2] = 1
    assert torch.equal(x.grad[0, 0], expected)


@pytest.mark.parametrize("size", [(64, 32), (37, 53), (1, 7)])
def test_five_nested_splits_make_1024_batches_and_five_merges_the_input(size):
    x = batches = torch.rand(1, 2, *size)
    for _ in range(5):
        batches = SplitPool2d(2)(batches)
    assert len(batches) == 1024
    assert sum(b.numel() for b in batches) == x.numel()
    for _ in range(5):
        batches = MergePool2d(2)(batches)
    (back,) = batches
    assert torch.equal(back, x)


def test_split_layer_splits_each_batch_of_a_list_separately():
    one, two = torch.rand(1, 2, 5, 4), torch.rand(1, 2, 3, 3)
    parts = SplitPool2d((2, 1))([one, two])
    expected = [*split(one, (2, 1)), *split(two, (2, 1))]
    assert len(parts) == 4
    assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))
    back = MergePool2d((2, 1))(parts)
    assert torch.equal(back[0], one)
    assert torch.equal(back[1], two)


@given(windows, st.data(), st.integers(0, 2**31))
def test_phases_are_drawn_without_replacement_by_torchs_seed(window, data, seed):
    count = data.draw(st.integers(1, window[0] * window[1]))
    torch.manual_seed(seed)
    drawn = draw_phases(window, count)
    torch.manual_seed(seed)
    assert draw_phases(window, count) == drawn
    assert len(set(drawn)) == count
    assert drawn == sorted(drawn)
    assert set(drawn) <= set(phases_of(window))


def test_shrink_layer_draws_every_phase_in_training_and_the_first_in_evaluation():
    torch.manual_seed(0)
    x, layer = numbered(6, 6), ShrinkPool2d(2, phases=1)
    seen = set()
    for _ in range(60):
        (kept,) = layer(x)
        (phase,) = layer.drawn
        assert torch.equal(kept, shrink(x, 2, phase))
        seen.add(phase)
    assert seen == set(phases_of(2))
    layer.eval()
    for _ in range(5):
        assert torch.equal(layer(x)[0], shrink(x, 2, (0, 0)))


@pytest.mark.parametrize("phases", [1, 2, 3, 4])
def test_expand_layer_inverts_its_partner_on_lists(phases):
    torch.manual_seed(phases)
    first, second = ShrinkPool2d(2, phases), ShrinkPool2d((2, 1))
    x = numbered(7, 5) + 1
    inner = second(first(x))
    assert len(inner) == phases
    (back,) = ExpandPool2d(first)(ExpandPool2d(second)(inner))
    kept = back != 0
    assert kept.sum() == sum(part.numel() for part in inner)
    assert torch.equal(back[kept], x[kept])


def test_all_phases_are_split_pooling():
    x = numbered(5, 6)
    shrunk = ShrinkPool2d((2, 3), phases=6)
    assert all(torch.equal(a, b) for a, b in zip(shrunk(x), SplitPool2d((2, 3))(x), strict=True))
    (back,) = ExpandPool2d(shrunk)(SplitPool2d((2, 3))(x))
    assert torch.equal(back, x)


def test_layers_have_no_parameters_and_do_not_own_their_partner():
    shrunk = ShrinkPool2d(2)
    network = nn.ModuleList([SplitPool2d(2), MergePool2d(2), shrunk, ExpandPool2d(shrunk)])
    assert not network.state_dict()
    assert [name for name, m in network.named_modules(remove_duplicate=False) if m is shrunk] == ["2"]


def call_expand_layer_unused():
    ExpandPool2d(ShrinkPool2d(2))([torch.zeros(1, 1, 2, 2)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split(torch.zeros(2, 2), 0), "window is 0: rows and columns must be at least 1"),
        (lambda: SplitPool2d((2, 0)), r"window is \(2, 0\)"),
        (lambda: merge([torch.zeros(1, 1)] * 3, 2), "window 2x2 takes 4 batches, got 3"),
        (
            lambda: merge([torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 2)], 2),
            r"split batch \(0, 0\) is \(2, 2\), but a tensor of 4x5 split by 2x2 has \(2, 3\) there",
        ),
        (lambda: shrink(torch.zeros(2, 2), 2, (0, 2)), r"phase \(0, 2\) is outside the window 2x2"),
        (lambda: shrink(torch.zeros(2, 2), 2, (-1, 0)), r"phase \(-1, 0\) is outside"),
        (
            lambda: expand(torch.zeros(1, 1, 3, 3), 2, (1, 0), (5, 5)),
            r"cannot expand \(1, 1, 3, 3\) to \(5, 5\): window 2x2, phase \(1, 0\) holds \(1, 1, 2, 3\)",
        ),
        (lambda: MergePool2d(2)([torch.zeros(1, 1, 2, 2)] * 5), r"multiple of 4 batches, got 5"),
        (lambda: MergePool2d(2)([]), "got 0"),
        (lambda: ShrinkPool2d(2, phases=5), "phases is 5: between 1 and 4"),
        (lambda: ShrinkPool2d(2, phases=0), "phases is 0"),
        (call_expand_layer_unused, "takes the 0 batches of its shrink layer, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- shares of several processes ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 12))
def test_each_combination_of_phases_is_one_process_s(counts, shares):
    phases = [[(i, place) for place in range(count)] for i, count in enumerate(counts)]
    try:
        divided = shares_of_phases(counts, shares)
    except ValueError:
        with pytest.raises(ValueError, match=f"{shares} workers can't share them evenly"):
            share_of_phases(phases, 0, shares)
        return
    assert math.prod(divided) == shares
    own = [list(product(*share_of_phases(phases, index, shares))) for index in range(shares)]
    assert {len(combinations) for combinations in own} == {math.prod(counts) // shares}
    assert sorted(itertools.chain(*own)) == sorted(product(*phases))


# --- Table 5: the operations of the three little networks of Fig. 7 ---


def count_operations(network, image):
    """The result, and each convolution's giga-operations: 2 for a multiply-add, the bias being one."""
    giga = [0.0, 0.0]

    def add(i, conv, out):
        per_element = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1] + 1
        giga[i] += 2 * per_element * out.numel() / 1e9

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [
        c.register_forward_hook(lambda c, _, out, i=i: add(i, c, out)) for i, c in enumerate(convolutions)
    ]
    with torch.no_grad():
        result = network(image)
    for hook in hooks:
        hook.remove()
    return result, giga


class OnEach(nn.Module):
    """A layer on each of a list of split batches."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, batches):
        assert len(batches) == 4
        return [self.layer(b) for b in batches]


def test_operations_of_table_5():
    torch.manual_seed(0)
    conv1, conv2 = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1)
    wide = nn.Conv2d(64, 128, 3, padding=2, dilation=2)
    wide.load_state_dict(conv2.state_dict())
    image = torch.rand(1, 3, 256, 256)
    _, max_pooling = count_operations(nn.Sequential(conv1, nn.MaxPool2d(2), conv2), image)
    whole, dilated = count_operations(nn.Sequential(conv1, wide), image)
    network = nn.Sequential(conv1, SplitPool2d(2), OnEach(conv2), MergePool2d(2))
    (merged,), split_pooling = count_operations(network, image)
    assert [round(g, 2) for g in max_pooling] == [0.23, 2.42]
    assert [round(g, 2) for g in dilated] == [0.23, 9.68]
    assert [round(g, 2) for g in split_pooling] == [0.23, 9.68]
    assert round(sum(split_pooling), 2) == 9.92
    torch.testing.assert_close(merged, whole, rtol=1e-5, atol=1e-5)
