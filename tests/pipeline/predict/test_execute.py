"""Every plan gives what one infinitely large device would."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.models.full_resolution.geometry import Span
from fullres.ops.pooling import phases_of
from fullres.pipeline.data.images import read_image
from fullres.pipeline.predict.execute import Predictor, native_precision, predict_image
from fullres.pipeline.predict.plan import Grain, Plan, plan_image
from fullres.pipeline.predict.schedule import Schedule, tile_grid
from tests.networks import assert_same_labels, assert_same_scores, narrow, random_image, scores_at_once, vgg
from tests.pipeline.predict.budgets import least_budget
from tests.shared import DATA

torch.set_num_threads(1)

MIB = 1 << 20
EXAMPLES = {"smp18": 3, "smp34": 1, "smp50": 1, "fcn32s18": 5, "fcn8s18": 5, "fcn8s50": 1, "vgg": 3}

sides = st.integers(1, 97)
sizes = st.tuples(sides, sides)


def make(name):
    return vgg() if name == "vgg" else narrow(name)


@pytest.fixture(
    scope="module",
    params=[
        *EXAMPLES.items(),
        *(pytest.param((n, 20 * e), marks=pytest.mark.slow) for n, e in EXAMPLES.items()),
    ],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def case(request):
    name, examples = request.param
    network = make(name)
    return network, Predictor(network, torch.device("cpu"), "fp32"), examples


def shuffled(plan, seed):
    grains = list(plan.grains)
    random.Random(seed).shuffle(grains)
    return Plan(plan.schedule, tuple(grains), plan.least_macs)


def check(network, predictor, plan, image, scores):
    expected = scores_at_once(network, image)
    result = predict_image(predictor, plan, image, scores)
    if scores:
        assert result.dtype == np.float32
        assert_same_scores(result, expected)
    else:
        assert_same_labels(result, expected)


def test_plans_of_any_size_workers_and_budget(case):
    network, predictor, examples = case

    @settings(max_examples=examples, deadline=None)
    @given(sizes, st.integers(1, 300), st.integers(0, 3 * MIB), st.booleans(), st.integers(0, 99))
    def any_plan(size, workers, above, scores, seed):
        planned = {"workers": workers, "precision": "fp32", "scores": scores}
        budget = least_budget(predictor.tree, size, **planned) + above
        plan = plan_image(predictor.tree, size, memory_budget=budget, **planned)
        check(network, predictor, shuffled(plan, seed), random_image(*size, seed), scores)

    any_plan()


@st.composite
def schedules(draw, tree):
    """Any trunk, tiles, fan-outs and strips, also those that no budget would lead to; grains cut at any
    level."""
    size = draw(sizes)
    trunk = draw(st.sampled_from([0, *tree.trunks()]))
    tree = tree.with_trunk(trunk)
    tiles = tile_grid(size, draw(st.integers(8, 97)), tree.stride)
    fanouts = tuple(
        1 if level.is_trunk else draw(st.integers(1, level.window[0] * level.window[1]))
        for level in tree.levels
    )
    strips = tuple(draw(st.sampled_from([1, 2, 3, 7])) for _ in tree.levels)
    fanouts = fanouts if tree.every_phase else (1,) * len(fanouts)
    schedule = Schedule(size, "fp32", tree.every_phase, trunk, tiles, fanouts, strips, 0)
    level = draw(st.integers(-1, len(tree.levels) - 1)) if tree.every_phase else -1
    stride = tree.levels[level].stride if level >= 0 else (1, 1)
    nodes = [
        (t, phase)
        for t, tile in enumerate(tiles)
        for phase in phases_of(stride)
        if all(p < span.length for p, span in zip(phase, tile, strict=True))
    ]
    grains = [Grain(i, t, level, phase, 0) for i, (t, phase) in enumerate(draw(st.permutations(nodes)))]
    return Plan(schedule, tuple(grains), 0)


def test_any_schedule(case):
    network, predictor, examples = case

    @settings(max_examples=examples, deadline=None)
    @given(schedules(predictor.tree), st.booleans(), st.integers(0, 99))
    def any_schedule(plan, scores, seed):
        check(network, predictor, plan, random_image(*plan.schedule.size, seed), scores)

    any_schedule()


@pytest.mark.parametrize("name", ["smp18", pytest.param("smp101", marks=pytest.mark.slow), "fcn8s18", "vgg"])
def test_tight_budgets_on_an_image_of_several_tiles(name):
    network = make(name)
    predictor = Predictor(network, torch.device("cpu"), "fp32")
    size, image = (120, 600), random_image(120, 600)
    planned = {"workers": 3, "precision": "fp32"}
    least = least_budget(predictor.tree, size, **planned)
    plans = [
        plan_image(predictor.tree, size, memory_budget=least + above, **planned)
        for above in (0, MIB, 64 * MIB)
    ]
    assert len({plan.schedule for plan in plans}) == 3
    assert len(plans[0].schedule.tiles) > 1
    assert max(plans[0].schedule.strips) > 1
    expected = scores_at_once(network, image, torch.float32)
    for plan in plans:
        scores = predict_image(predictor, plan, image, scores=True)
        assert_same_scores(scores, expected, 2e-5)  # both sides in single precision
        assert_same_labels(scores.argmax(0).astype(np.uint8), expected, 2e-5)


@pytest.mark.parametrize("name", ["smp18", pytest.param("smp50", marks=pytest.mark.slow), "fcn8s18", "vgg"])
@pytest.mark.parametrize("budget", [72 * MIB, 512 * MIB])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_do_not_depend_on_workers_or_order(name, budget, precision):
    predictor = Predictor(make(name), torch.device("cpu"), precision)
    size, image = (131, 259), random_image(131, 259)
    cuts, results = set(), set()
    for workers in (1, 3, 16, 300):
        plan = plan_image(
            predictor.tree,
            size,
            workers=workers,
            memory_budget=budget,
            precision=precision,
        )
        if plan.grains in cuts:
            continue
        cuts.add(plan.grains)
        results.add(predict_image(predictor, shuffled(plan, workers), image, scores=True).tobytes())
    assert len(results) == 1
    assert len(cuts) > 1 or not predictor.tree.every_phase


@pytest.mark.parametrize("name", ["smp18", "fcn8s18"])
def test_bf16_is_near(name):
    network = narrow(name, 1 / 8)
    predictor = Predictor(network, torch.device("cpu"), "bf16")
    image = random_image(70, 101)
    plan = plan_image(predictor.tree, (70, 101), workers=2, memory_budget=99 * MIB, precision="bf16")
    expected = scores_at_once(network, image)
    scores = predict_image(predictor, plan, image, scores=True)
    assert_same_scores(scores, expected, 0.1)
    assert np.abs(scores - expected).mean() < 0.02 * np.abs(expected).max()
    labels = predict_image(predictor, plan, image)
    assert (labels == expected.argmax(0)).mean() > 0.9


def test_native_precision_is_one_of_two():
    assert native_precision(torch.device("cpu")) in ("fp32", "bf16")


def test_a_grain_reads_its_tiles_window_only():
    """The window is all that a worker gets; around it the image may be anything."""
    predictor = Predictor(vgg(), torch.device("cpu"), "fp32")
    tiles = tile_grid((300, 280), 80, predictor.tree.stride)
    schedule = Schedule((300, 280), "fp32", True, 0, tiles, (1,) * 5, (1,) * 5, 0)
    middle = next(t for t, (rows, columns) in enumerate(schedule.tiles) if rows.start and columns.start)
    rows, columns = predictor.bind(schedule).part(tiles[middle])
    assert 0 < rows.length < 300
    assert 0 < columns.length < 280
    tile_rows, tile_columns = schedule.tiles[middle]
    assert rows.hull(tile_rows) == rows
    assert columns.hull(tile_columns) == columns
    image = random_image(300, 280)
    window = image[rows.start : rows.stop, columns.start : columns.stop].copy()
    result = predictor.run(schedule, Grain(0, middle, -1, (0, 0), 0), window, scores=True)
    whole = scores_at_once(vgg(), image)[:, slice(*tile_rows), slice(*tile_columns)]
    assert_same_scores(result, whole)


def test_progress_is_told_of_every_grain():
    predictor = Predictor(narrow("smp18"), torch.device("cpu"), "fp32")
    plan = plan_image(predictor.tree, (40, 50), workers=16, memory_budget=512 * MIB, precision="fp32")
    told = []
    predict_image(predictor, plan, random_image(40, 50), progress=told.append)
    assert told == list(plan.grains)


def test_image_of_another_size():
    predictor = Predictor(narrow("smp18"), torch.device("cpu"), "fp32")
    plan = plan_image(predictor.tree, (40, 50), workers=1, memory_budget=512 * MIB, precision="fp32")
    with pytest.raises(ValueError, match=r"image is \(50, 40, 3\), the plan is for \(40, 50\)"):
        predict_image(predictor, plan, random_image(50, 40))


def whole_image(predictor, size, network, image, budget, workers):
    plan = plan_image(predictor.tree, size, workers=workers, memory_budget=budget, precision="fp32")
    expected = scores_at_once(network, image, torch.float32)
    scores = predict_image(predictor, plan, image, scores=True)
    assert_same_scores(scores, expected, 2e-5)  # both sides in single precision
    assert_same_labels(scores.argmax(0).astype(np.uint8), expected, 2e-5)
    return plan


@pytest.mark.slow
@pytest.mark.parametrize(("name", "budget"), [("smp18", 128), ("smp34", 512), ("smp101", 512)])
def test_full_hd(name, budget):
    photo = DATA / "street" / "nyc.jpg"
    if not photo.is_file():
        pytest.skip(f"no photo at {photo}; see tests/shared.py")
    network = narrow(name)
    predictor = Predictor(network, torch.device("cpu"), "fp32")
    whole_image(predictor, (1080, 1920), network, read_image(photo), budget * MIB, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smp18", "smp34", "smp101"])
def test_full_width(name):
    network = narrow(name, 1, 19)
    predictor = Predictor(network, torch.device("cpu"), "fp32")
    image = random_image(161, 203)
    plan = whole_image(predictor, (161, 203), network, image, 256 * MIB, 7)
    assert plan.schedule.tiles == ((Span(0, 161), Span(0, 203)),)
