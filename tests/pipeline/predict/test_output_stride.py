"""Split-merge of a lattice of the pixels alone (`--output-stride`), the others interpolated between them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.models.count import count_macs
from fullres.ops.errors import NetworkError
from fullres.pipeline.predict.engines import SplitMerge
from fullres.pipeline.predict.execute import predict_image
from fullres.pipeline.predict.plan import Grain, Plan, plan_image
from fullres.pipeline.predict.schedule import Schedule, tile_grid
from tests.networks import assert_same_scores, narrow, random_image, scores_at_once, vgg
from tests.pipeline.predict.budgets import least_budget

torch.set_num_threads(1)

MIB = 1 << 20

sides = st.integers(1, 97)
sizes = st.tuples(sides, sides)


def make(name):
    return vgg() if name == "vgg" else narrow(name)


def interpolated(scores, stride):
    """classes x H x W scores of all pixels: those of one lattice of that stride, which lies in the middle,
    and between them what is linear along both axes."""
    for axis in (1, 2):
        length = scores.shape[axis]
        points = np.arange((length - 1) % stride // 2, length, stride)
        along = (np.arange(length), points)
        scores = np.apply_along_axis(lambda v, at=along: np.interp(*at, v[at[1]]), axis, scores)
    return scores


@pytest.mark.parametrize("name", ["smp18", "vgg"])
@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_lattice_of_the_pixels_and_the_rest_interpolated(name, examples):
    """Whatever size, budget and stride; pixels of the lattice are those of the whole tree."""
    network = make(name)

    @settings(max_examples=examples, deadline=None)
    @given(sizes, st.sampled_from([2, 4, 8, 16]), st.integers(0, 3 * MIB), st.integers(0, 99))
    def any_plan(size, stride, above, seed):
        engine = SplitMerge(network, output_stride=stride)
        planned = {"workers": 3, "precision": "fp32", "scores": True}
        budget = least_budget(engine.tree, size, **planned) + above
        plan = plan_image(engine.tree, size, memory_budget=budget, **planned)
        image = random_image(*size, seed)
        predictor = engine.predictor(torch.device("cpu"), "fp32")
        scores = predict_image(predictor, plan, image, scores=True)
        assert_same_scores(scores, interpolated(scores_at_once(network, image), stride))
        assert np.array_equal(predict_image(predictor, plan, image), scores.argmax(0))

    any_plan()


@st.composite
def coarse_schedules(draw, tree):
    """Any trunk, tiles, fan-outs and strips of a tree with an output stride."""
    size, trunk = draw(sizes), draw(st.sampled_from([0, *tree.trunks()]))
    own = tree.with_trunk(trunk)
    tiles = tile_grid(size, draw(st.integers(8, 97)), own.stride)
    fanouts = tuple(1 if level.is_trunk else draw(st.integers(1, 4)) for level in own.levels)
    strips = tuple(draw(st.sampled_from([1, 2, 3, 7])) for _ in own.levels)
    schedule = Schedule(size, "fp32", True, trunk, tiles, fanouts, strips, 0, tree.output_stride)
    grains = (Grain(i, i, -1, (0, 0), 0) for i in draw(st.permutations(range(len(tiles)))))
    return Plan(schedule, tuple(grains), 0)


@pytest.mark.parametrize("stride", [2, 4, 8, 32])
@pytest.mark.parametrize("examples", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_any_schedule_of_a_lattice(stride, examples):
    network = make("smp18")
    engine = SplitMerge(network, output_stride=stride)
    predictor = engine.predictor(torch.device("cpu"), "fp32")

    @settings(max_examples=examples, deadline=None)
    @given(coarse_schedules(engine.tree), st.integers(0, 99))
    def any_schedule(plan, seed):
        image = random_image(*plan.schedule.size, seed)
        scores = predict_image(predictor, plan, image, scores=True)
        assert_same_scores(scores, interpolated(scores_at_once(network, image), stride))

    any_schedule()


def test_what_a_lattice_costs():
    """Of SMP-18 at output stride 32 less than the strided network, whose first pool picks pixels of conv1."""
    network = make("smp18")
    size, planned = (256, 512), {"workers": 1, "memory_budget": 1 << 30, "precision": "fp32"}
    trees = {stride: SplitMerge(network, output_stride=stride).tree for stride in (1, 4, 32)}
    macs = {stride: plan_image(tree, size, **planned).macs for stride, tree in trees.items()}
    with torch.device("meta"):
        strided = make("smp18").strided()
    assert 0.5 * count_macs(strided, *size) < macs[32] < count_macs(strided, *size)
    assert macs[4] * 16 == macs[1]  # the first two splits are of the image: nothing is shared before them


def test_output_strides_of_no_tree():
    with pytest.raises(NetworkError, match=r"output stride is 3: of this network's tree it is 1, 2, 4, 8, 1"):
        SplitMerge(make("smp18"), output_stride=3)
    with pytest.raises(NetworkError, match=r"output stride is 2: of this network's tree it is 1$"):
        SplitMerge(make("fcn8s18"), output_stride=2)
