import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.models.spgnet import stretched
from fullres.ops.normalisation import normalise
from fullres.pipeline.predict.schedule import BudgetError
from fullres.pipeline.predict.window_memory import WindowCosts
from fullres.pipeline.predict.windows import (
    Merger,
    WindowPredictor,
    WindowSpec,
    plan_windows,
    predict_windows,
)
from tests.networks import narrow, random_image

torch.set_num_threads(1)


class Small(nn.Module):
    """Sees the whole of its input, and its border."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        return 2 * self.conv(x) + x.mean((2, 3), keepdim=True)[:, :1]

    def guided(self, x):
        return self(x), self.conv(x).abs()


@pytest.fixture(scope="module")
def predictor():
    return WindowPredictor(Small(), torch.device("cpu"), "fp32")


def channels(network, x, attention):
    logits, maps = network.guided(x)
    return torch.cat([logits.softmax(1), maps[:, attention]], 1)


def plain(image, spec, attention=()):
    """The same without grains: whole resized images, window after window."""
    network, (height, width) = Small().eval(), image.shape[:2]
    count = 5 + len(attention)
    x = normalise(torch.from_numpy(image)[None], torch.float32)
    total = torch.zeros(count, height, width)
    for scale in spec.scales:
        base = 1 if spec.base_size is None else spec.base_size / max(height, width)
        size = (max(1, round(height * base * scale)), max(1, round(width * base * scale)))
        scaled = F.interpolate(x, size, mode="bilinear", align_corners=False)
        window = [n if spec.window is None else spec.window for n in size]
        pads = [max(0, w - n) for w, n in zip(window, size, strict=True)]
        padded = F.pad(scaled, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        stride = spec.stride or -(-2 * (spec.window or 1) // 3)
        sums, counts = torch.zeros(count, *padded.shape[-2:]), torch.zeros(padded.shape[-2:])
        tops, lefts = (
            [0] if spec.window is None else
            sorted({min(i, n - w) for i in range(0, n - w + stride, stride)})
            for n, w in zip(padded.shape[-2:], window, strict=True)
        )  # fmt: skip
        for top in tops:
            for left in lefts:
                part = padded[..., top : top + window[0], left : left + window[1]]
                p = channels(network, part, attention)
                if spec.flip:
                    p = (p + channels(network, part.flip(-1), attention).flip(-1)) / 2
                sums[:, top : top + window[0], left : left + window[1]] += p[0]
                counts[top : top + window[0], left : left + window[1]] += 1
        mean = sums / counts
        mean = mean[:, pads[0] // 2 :, pads[1] // 2 :][:, : size[0], : size[1]]
        total += F.interpolate(mean[None], (height, width), mode="bilinear", align_corners=False)[0]
    return (total / len(spec.scales)).detach().numpy()


specs = st.builds(
    WindowSpec,
    scales=st.lists(
        st.sampled_from([0.4, 0.5, 0.75, 1.0, 1.3, 2.0]), min_size=1, max_size=3, unique=True
    ).map(tuple),
    flip=st.booleans(),
    window=st.one_of(st.none(), st.integers(8, 60)),  # smaller ones, of which there are many, are examples
    stride=st.none(),
    base_size=st.one_of(st.none(), st.sampled_from([16, 30])),
)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.tuples(st.integers(20, 50), st.integers(20, 50)), specs, st.integers(7, 30))
@example((20, 23), WindowSpec((1.0, 0.5), True, 9), 1)
@example((21, 20), WindowSpec((1.3,), False, 1), 1)
def test_equal_to_whole_images_window_by_window(size, spec, stride):
    if spec.window is not None and stride <= spec.window:
        spec = replace(spec, stride=stride)
    image = random_image(*size)
    predictor = WindowPredictor(Small(), torch.device("cpu"), "fp32")
    result = predict_windows(predictor, plan_windows(size, spec), image, scores=True)
    np.testing.assert_allclose(result, plain(image, spec), atol=2e-5)
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(
    "spec", [WindowSpec((1.3,)), WindowSpec((0.5, 1.0, 2.0), True, 30), WindowSpec((1.0,), False, 17, 9)]
)
def test_attention_is_merged_as_it_is_and_stretched_over_the_image(spec, scores):
    size, attention = (41, 50), (3, 1)
    image = random_image(*size)
    predictor = WindowPredictor(Small(), torch.device("cpu"), "fp32", attention)
    result = predict_windows(predictor, plan_windows(size, spec), image, scores)
    expected = plain(image, spec, attention)
    np.testing.assert_allclose(result.attention, stretched(torch.from_numpy(expected[5:])), atol=1e-4)
    without = predict_windows(
        WindowPredictor(Small(), torch.device("cpu"), "fp32"), plan_windows(size, spec), image, scores
    )
    assert result.classes.tobytes() == without.tobytes()


def test_attention_of_an_image_in_one_window_is_the_networks():
    network, image = narrow("spgnet18x2"), random_image(70, 90)
    x = normalise(torch.from_numpy(image)[None], torch.float32)
    with torch.no_grad():
        expected = network.attention(x)[0, [4, 2]]
    predictor = WindowPredictor(network, torch.device("cpu"), "fp32", (4, 2))
    result = predict_windows(predictor, plan_windows((70, 90), WindowSpec()), image)
    np.testing.assert_allclose(result.attention, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 20), (200, 130)])
def test_one_window_that_covers_it_is_the_whole_image(predictor, size):
    image = random_image(*size)
    whole = predict_windows(predictor, plan_windows(size, WindowSpec()), image, scores=True)
    x = normalise(torch.from_numpy(image)[None], torch.float32)
    np.testing.assert_allclose(whole, predictor.network(x).softmax(1)[0].numpy(), atol=1e-6)
    if size[0] == size[1]:
        same = predict_windows(predictor, plan_windows(size, WindowSpec(window=size[0])), image, scores=True)
        assert np.array_equal(whole, same)


def test_shares_may_come_in_any_order():
    spec = WindowSpec((0.5, 1.0, 1.5), True, 40, 25)
    size, predictor = (150, 101), WindowPredictor(Small(), torch.device("cpu"), "fp32")
    image, plan = random_image(*size), plan_windows(size, spec)
    shares = [predictor.run(plan.schedule, grain, image) for grain in plan.grains]
    expected = predict_windows(predictor, plan, image)

    @settings(max_examples=20, deadline=None)
    @given(st.permutations(plan.grains))
    def any_order(order):
        merger = Merger(plan, scores=False)
        complete = [merger.add(grain, shares[grain.index]) for grain in order]
        assert complete == [False] * (len(order) - 1) + [True]
        assert np.array_equal(merger.result, expected)

    any_order()


def test_a_merger_holds_a_band():
    spec = WindowSpec((0.5, 1.0), False, 64)
    plan = plan_windows((2000, 80), spec)
    merger, most = Merger(plan, scores=False), 0
    for grain in plan.grains:
        (top, bottom), (left, right) = grain.footprint
        merger.add(grain, np.ones((5, bottom - top, right - left), np.float32))
        most = max(most, sum(band.shape[1] for band in merger._bands.values()))
    assert most <= 128 + 3 * 64 + 64


def test_class_ids_are_those_of_the_scores(predictor):
    size, spec = (70, 90), WindowSpec((1.0, 1.25), True, 33)
    image, plan = random_image(*size), plan_windows(size, spec)
    scores = predict_windows(predictor, plan, image, scores=True)
    labels = predict_windows(predictor, plan, image)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, scores.argmax(0))


def slide(network, image, window, stride):
    """`slide_inference` of mmsegmentation 1.2.2's EncoderDecoder, written anew."""
    x = normalise(torch.from_numpy(image)[None], torch.float32)
    height, width = x.shape[-2:]
    total, counts = torch.zeros(5, height, width), torch.zeros(height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            total[:, top:bottom, left:right] += network(x[..., top:bottom, left:right])[0]
            counts[top:bottom, left:right] += 1
    return (total / counts).detach().numpy()


@given(st.integers(20, 50), st.integers(20, 50), st.integers(5, 60), st.integers(4, 60))
@settings(max_examples=12)
@example(30, 45, 51, 34)  # one window, without padding
@example(23, 50, 36, 24)
def test_averaged_logits_are_those_of_mmsegmentation(height, width, window, stride):
    image, stride = random_image(height, width), min(stride, window)
    spec = WindowSpec(window=window, stride=stride, average="logits")
    predictor = WindowPredictor(Small(), torch.device("cpu"), "fp32")
    result = predict_windows(predictor, plan_windows((height, width), spec), image, scores=True)
    np.testing.assert_allclose(result, slide(Small(), image, window, stride), atol=2e-5)


def test_logits_are_no_view_of_what_the_network_keeps(predictor):
    """A network may return a buffer of its own; shares are divided in place."""

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = nn.Parameter(torch.ones(1, 5, 8, 8))

        def forward(self, x):
            return self.kept

    image, spec = random_image(8, 12), WindowSpec(window=8, stride=4, average="logits")
    keeping = WindowPredictor(Kept(), torch.device("cpu"), "fp32")
    for _ in range(2):
        result = predict_windows(keeping, plan_windows((8, 12), spec), image, scores=True)
        np.testing.assert_allclose(result, 1, atol=1e-6)


@cache
def costs_of(name, precision, attention):
    return WindowCosts(narrow(name, 1 / 4), precision, attention)


def peak(size, spec, precision="fp32", attention=(), name="spgnet18x2"):
    costs = costs_of(name, precision, attention)
    return costs.fit(plan_windows(size, spec, costs.macs), 1 << 40).schedule.peak_bytes


def test_the_predicted_peak_follows_window_precision_and_classes():
    size = (400, 500)
    window = peak(size, WindowSpec(window=300))
    assert peak(size, WindowSpec(window=150)) < 0.4 * window
    assert peak(size, WindowSpec((1.0, 1.5), window=300)) < 1.2 * window  # no larger a window
    assert peak(size, WindowSpec((0.5, 1.0), window=300)) > 1.2 * window  # its share is
    whole = peak(size, WindowSpec())
    assert peak(size, WindowSpec((1.5,))) > 1.8 * whole
    assert peak(size, WindowSpec(flip=True)) > whole
    assert peak(size, WindowSpec(window=600, average="logits")) < 1.1 * whole  # not padded
    assert peak(size, WindowSpec(), "bf16", name="unet") < 0.7 * peak(size, WindowSpec(), name="unet")
    assert peak(size, WindowSpec(), attention=(0, 1, 2)) > 1.2 * whole


@pytest.mark.parametrize(
    ("spec", "named"), [(WindowSpec((0.5, 1.5), window=300), "300x300"), (WindowSpec((0.5, 1.5)), "750x600")]
)
def test_a_budget_too_small_names_the_window_and_the_least_that_works(spec, named):
    costs = WindowCosts(narrow("spgnet18x2"), "fp32")
    plan = plan_windows((400, 500), spec, costs.macs)
    with pytest.raises(BudgetError, match="memory budget is 32 MiB: at least ") as caught:
        costs.fit(plan, 32 << 20)
    assert f"MiB needed for a window of {named} pixels" in str(caught.value)
    least = int(re.search(r"at least (\d+) MiB", str(caught.value))[1]) << 20
    assert costs.fit(plan, least).grains == plan.grains
    with pytest.raises(BudgetError):
        costs.fit(plan, least - (1 << 20))
