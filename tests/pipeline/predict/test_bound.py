"""One tree for a plan and its run, whatever stages a network has."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fullres.models.full_resolution.split_merge import split_merge
from fullres.ops.pooling import phases_of
from fullres.pipeline.predict.bound import BoundTree, Schedule
from fullres.pipeline.predict.execute import Predictor, predict_image
from fullres.pipeline.predict.plan import Grain, Plan, plan_image
from fullres.pipeline.predict.schedule import tile_grid
from tests.models.full_resolution.public_networks import PUBLIC, public
from tests.networks import assert_same_scores, random_image, scores_at_once, with_statistics
from tests.pipeline.predict.budgets import MIB, least_said

SIZE = (45, 62)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


def generated(seed):
    """Stages as public networks have them: each of one to three blocks, the first of which takes the stride.
    A block is a convolution with or without batch norm and ReLU, or a pool and one; some have a shortcut."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    layers, channels = [], 3
    for stage in range(rng.integers(2, 5)):
        for block in range(rng.integers(1, 4)):
            stride, after = (2 if block == 0 and stage else 1), int(rng.integers(4, 9))
            if stride == 2 and rng.random() < 0.3:
                layers.append(nn.MaxPool2d(2))
                stride = 1
            layers.append(nn.Conv2d(channels, after, 3, stride, 1, bias=bool(rng.random() < 0.5)))
            channels = after
            layers += [nn.BatchNorm2d(channels)] if rng.random() < 0.7 else []
            layers += [nn.ReLU()] if rng.random() < 0.7 else []
            layers += [Residual(channels)] if rng.random() < 0.3 else []
    return with_statistics(nn.Sequential(*layers, nn.Conv2d(channels, 5, 1)))


def one_convolution_a_stage():
    """The shape of dilated residual networks' first stages, and of a spatial path."""
    torch.manual_seed(0)
    widths = (3, 8, 8, 12, 12)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, 1 + (i > 0), 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for i, (a, b) in enumerate(pairwise(widths))
    ]
    return with_statistics(nn.Sequential(*blocks, nn.Conv2d(12, 5, 1)))


NETWORKS = {
    "one-convolution-a-stage": one_convolution_a_stage,
    **{f"generated-{seed}": lambda seed=seed: generated(seed) for seed in range(6)},
    # DnCNN reads one channel: tests/face/test_face.py.
    **{name: lambda name=name: public(name) for name in PUBLIC if name not in ("dncnn", "dictionary")},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*resizes to the image's size")


# The others are slow tests.
SOME = ("one-convolution-a-stage", "generated-0", "generated-4", "bisenet path", "densenet", "convnext")


@pytest.fixture(params=[n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def network(request):
    return NETWORKS[request.param]()


@pytest.fixture(autouse=True)
def nothing_unwritten(monkeypatch):
    """New arrays hold no result of before by chance."""

    def filled(shape, dtype=float):
        return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 255, dtype)

    monkeypatch.setattr(np, "empty", filled)


def every_node(bound, schedule, level):
    nodes = [
        (t, phase)
        for t, tile in enumerate(schedule.tiles)
        for phase in phases_of(bound.stride(level))
        if all(p < span.length for p, span in zip(phase, tile, strict=True))
    ]
    return Plan(schedule, tuple(Grain(i, t, level, phase, 0) for i, (t, phase) in enumerate(nodes)), 0)


def test_every_trunk_of_any_network(network):
    tree, image = split_merge(network), random_image(*SIZE)
    predictor = Predictor(tree, torch.device("cpu"), "fp32")
    expected = scores_at_once(tree, image)
    for trunk in (0, *predictor.tree.trunks()):
        levels = predictor.tree.with_trunk(trunk).levels
        strips = tuple(1 + i % 3 for i in range(len(levels)))
        tiles = tile_grid(SIZE, 32, predictor.tree.stride)
        schedule = Schedule(SIZE, "fp32", True, trunk, tiles, (1,) * len(levels), strips, 0)
        bound = BoundTree(tree, schedule)
        for level in (-1, len(levels) - 1):
            scores = predict_image(predictor, every_node(bound, schedule, level), image, scores=True)
            assert_same_scores(scores, expected)


def test_every_budget_of_any_network(network):
    """Whether it is planned with the network's tree or with that of the predictor: the plan is the same."""
    tree, image = split_merge(network), random_image(*SIZE)
    predictor = Predictor(tree, torch.device("cpu"), "fp32")
    expected = scores_at_once(tree, image)
    least = least_said(tree, SIZE, workers=3, precision="fp32")
    for budget in (least, least + MIB, 4096 * MIB):
        planned = {"workers": 3, "memory_budget": budget, "precision": "fp32"}
        plan = plan_image(tree, SIZE, **planned)
        assert plan == plan_image(predictor.tree, SIZE, **planned)
        assert_same_scores(predict_image(predictor, plan, image, scores=True), expected)


def test_the_plan_of_another_network_is_refused():
    planned = {"workers": 1, "memory_budget": 4096 * MIB, "precision": "fp32"}
    tree = split_merge(one_convolution_a_stage())
    plan = plan_image(tree, SIZE, **planned)
    other = split_merge(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 1)).eval())
    with pytest.raises(ValueError, match="the plan has 4 levels, the network 1: it is of another network"):
        predict_image(Predictor(other, torch.device("cpu"), "fp32"), plan, random_image(*SIZE))
