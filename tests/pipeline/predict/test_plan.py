"""Plans as values: what they cover, promise and refuse."""

import json
import time
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.models.catalogue import build
from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.geometry import Span
from fullres.pipeline.predict.plan import Plan, plan_image
from fullres.pipeline.predict.schedule import BudgetError, tile_grid
from tests.networks import narrow, vgg
from tests.pipeline.predict.budgets import fits, least_said

MIB = 1 << 20


def tree_of(network):
    return inference_form(network.full_resolution())


TREES = {name: tree_of(narrow(name)) for name in ("smp18", "smp101", "fcn32s18", "fcn8s18")} | {
    "vgg": tree_of(vgg())
}


def plan_of(name, size, workers=1, budget=4096 * MIB, precision="fp32", **more):
    tree = TREES[name]
    return plan_image(tree, size, workers=workers, memory_budget=budget, precision=precision, **more)


sides = st.one_of(st.integers(1, 97), st.integers(98, 1500))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TREES)),
    st.tuples(sides, sides),
    st.integers(1, 300),
    st.sampled_from([110, 150, 4096]),
)
def test_grains_cover_every_pixel_once(name, size, workers, budget):
    plan = plan_of(name, size, workers, budget * MIB)
    assert [grain.index for grain in plan.grains] == list(range(len(plan.grains)))
    hits = np.zeros(size, np.uint8)
    for grain in plan.grains:
        stride = TREES[name].levels[grain.level].stride if grain.level >= 0 else (1, 1)
        assert all(0 <= o < s for o, s in zip(grain.offset, stride, strict=True))
        (top, bottom), (left, right) = plan.schedule.tiles[grain.tile]
        hits[top + grain.offset[0] : bottom : stride[0], left + grain.offset[1] : right : stride[1]] += 1
        assert grain.macs > 0
    assert hits.min() == hits.max() == 1
    assert plan.macs >= plan.least_macs


@settings(deadline=None)
@given(st.tuples(sides, sides), st.integers(1, 1500), st.sampled_from([1, 16, 32]))
def test_tile_grid_covers_the_image(size, side, stride):
    tiles = tile_grid(size, side, (stride, stride))
    rows, columns = ({tile[axis] for tile in tiles} for axis in (0, 1))
    assert set(tiles) == set(product(rows, columns))
    assert len(tiles) == len(rows) * len(columns)
    for spans, length in ((rows, size[0]), (columns, size[1])):
        cuts = sorted(spans)
        assert cuts[0].start == 0
        assert cuts[-1].stop == length
        assert all(a.stop == b.start for a, b in pairwise(cuts))
        assert all(span.start % stride == 0 and span.length > 0 for span in cuts)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("size", [(97, 61), (700, 1100)])
@pytest.mark.parametrize("scores", [False, True])
def test_least_budget_said_works_and_less_does_not(name, size, scores):
    tree = TREES[name]
    planned = {"workers": 1, "precision": "fp32", "scores": scores}
    least = least_said(tree, size, **planned)
    assert fits(tree, size, least, **planned)
    assert not fits(tree, size, least - MIB, **planned)


def test_budget_error_names_budget_and_image():
    with pytest.raises(
        BudgetError, match=r"memory budget is 8 MiB: at least \d+ MiB needed for 1920x1080 pixels"
    ):
        plan_of("smp18", (1080, 1920), budget=8 * MIB)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("budget", [96, 128, 1024])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predicted_peak_is_within_the_budget(name, budget, precision):
    assert 0 < plan_of(name, (1080, 1920), 2, budget * MIB, precision).schedule.peak_bytes <= budget * MIB


def test_less_memory_means_more_pieces_and_no_less_work():
    plans = [plan_of("smp18", (1080, 1920), 1, budget * MIB) for budget in (4096, 112, 72)]
    assert plans[0].schedule.strips == (1, 1, 1, 1)
    assert len(plans[0].schedule.tiles) == 1
    assert len(plans[2].schedule.tiles) > 1
    macs = [plan.macs for plan in plans]
    assert macs == sorted(macs)
    peaks = [plan.schedule.peak_bytes for plan in plans]
    assert peaks == sorted(peaks, reverse=True)
    assert len({plan.least_macs for plan in plans}) == 1


def test_the_schedule_does_not_depend_on_workers_or_images():
    for name, budget in product(TREES, (80, 300)):
        schedules = {
            plan_of(name, (700, 1100), workers, budget * MIB, images=images).schedule
            for workers, images in product((1, 2, 3, 64, 300), (1, 20))
        }
        assert len(schedules) == 1


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("budget", [80, 4096])
def test_json_round_trip(name, budget):
    plan = plan_of(name, (500, 700), 5, budget * MIB)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("name", TREES)
def test_one_worker_repeats_nothing(name):
    plan = plan_of(name, (256, 512), 1)
    assert plan.macs == plan.least_macs
    assert plan.efficiency(1) == 1


def test_efficiency_is_work_over_the_time_of_all_workers():
    plan = plan_of("smp18", (256, 512), 16)
    assert len(plan.grains) == 16
    longest = max(grain.macs for grain in plan.grains)
    assert plan.efficiency(16) == plan.least_macs / (16 * longest)
    assert plan.efficiency(12) == plan.least_macs / (12 * 2 * longest)  # 4 of 12 work in the second round
    assert plan.efficiency(12, images=3) == plan.least_macs * 3 / (12 * 4 * longest)
    assert plan.efficiency(32) == plan.efficiency(16) / 2  # half of them have nothing to do


def test_16_64_and_256_workers_at_street_size():
    """64 subtrees repeat conv1 and layer1, 4 % more work in all; 256 repeat layer2 too, 35 % more."""
    tree = tree_of(build("smp18", 19))
    start = time.process_time()
    plans = [
        plan_image(tree, (1024, 2048), workers=workers, memory_budget=4096 * MIB, precision="bf16")
        for workers in (16, 64, 256)
    ]
    assert time.process_time() - start < 10
    assert [len(plan.grains) for plan in plans] == [16, 64, 256]
    assert [plan.macs / plan.least_macs for plan in plans] == [
        1,
        pytest.approx(1.04, abs=0.01),
        pytest.approx(1.35, abs=0.01),
    ]
    efficiency = [plan.efficiency(len(plan.grains)) for plan in plans]
    assert efficiency == [1, pytest.approx(1 / 1.04, abs=0.01), pytest.approx(1 / 1.35, abs=0.01)]


def test_fcn_is_one_grain_a_tile():
    tree = TREES["fcn32s18"]
    least = least_said(tree, (700, 1100), workers=1, precision="fp32")
    plan = plan_of("fcn32s18", (700, 1100), 64, least)
    assert len(plan.grains) == len(plan.schedule.tiles) > 1
    assert {grain.level for grain in plan.grains} == {-1}
    plan = plan_of("fcn32s18", (700, 1100), 64)
    assert plan.schedule.tiles == ((Span(0, 700), Span(0, 1100)),)
