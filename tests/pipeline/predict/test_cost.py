"""Predicted work against what a real run computes."""

import pytest
import torch
from torch import nn

from fullres.models.full_resolution.steps import Step
from fullres.ops.convolution import Convolution
from fullres.pipeline.predict.cost import macs_per_element
from fullres.pipeline.predict.execute import Predictor
from fullres.pipeline.predict.plan import plan_image
from tests.networks import narrow, random_image, vgg
from tests.pipeline.predict.budgets import least_budget

torch.set_num_threads(1)

MIB = 1 << 20


def counted(predictor, plan, grain, image):
    """Multiply-adds of a grain's convolutions, from the tensors that they return."""
    macs = 0

    def count(convolution, inputs, output):
        nonlocal macs
        macs += output.numel() * convolution.weight[0].numel()

    convolutions = [m for m in predictor.tree.modules() if isinstance(m, Convolution)]
    hooks = [convolution.register_forward_hook(count) for convolution in convolutions]
    rows, columns = predictor.bind(plan.schedule).part(plan.schedule.tiles[grain.tile])
    predictor.run(plan.schedule, grain, image[rows.start : rows.stop, columns.start : columns.stop])
    for hook in hooks:
        hook.remove()
    return macs


@pytest.mark.parametrize("name", ["smp18", "smp50", "fcn32s18", "fcn8s18", "vgg"])
@pytest.mark.parametrize(
    ("size", "budget", "workers"),
    [((1, 7), 512, 1), ((61, 97), 512, 1), ((61, 97), 512, 7), ((50, 33), 512, 300), ((420, 610), 72, 3)],
)
def test_macs_of_every_grain(name, size, budget, workers):
    predictor = Predictor(vgg() if name == "vgg" else narrow(name), torch.device("cpu"), "fp32")
    plan = plan_image(
        predictor.tree,
        size,
        workers=workers,
        memory_budget=budget * MIB,
        precision="fp32",
    )
    image = random_image(*size)
    grains = plan.grains[:: max(1, len(plan.grains) // 40)]
    assert [counted(predictor, plan, grain, image) for grain in grains] == [grain.macs for grain in grains]


@pytest.mark.parametrize("name", ["smp18", pytest.param("smp50", marks=pytest.mark.slow), "fcn32s18"])
def test_macs_with_a_trunk(name):
    predictor = Predictor(narrow(name), torch.device("cpu"), "fp32")
    planned = {"workers": 3, "precision": "fp32"}
    plans = (
        plan_image(predictor.tree, (330, 600), memory_budget=budget, **planned)
        for budget in range(least_budget(predictor.tree, (330, 600), **planned), 100 * MIB, MIB // 4)
    )
    plan = next(plan for plan in plans if plan.schedule.trunk)
    image = random_image(330, 600)
    grains = plan.grains[:: max(1, len(plan.grains) // 10)]
    assert [counted(predictor, plan, grain, image) for grain in grains] == [grain.macs for grain in grains]


def test_least_macs_is_the_image_in_one_piece():
    """Tiles and strips repeat their halos; the plan says how much."""
    predictor = Predictor(narrow("smp18"), torch.device("cpu"), "fp32")
    tight = plan_image(predictor.tree, (420, 610), workers=1, memory_budget=67 * MIB, precision="fp32")
    roomy = plan_image(predictor.tree, (420, 610), workers=1, memory_budget=999 * MIB, precision="fp32")
    assert tight.macs > tight.least_macs == roomy.least_macs == roomy.macs
    assert roomy.macs == sum(
        counted(predictor, roomy, grain, random_image(420, 610)) for grain in roomy.grains
    )


def test_macs_per_element():
    def step(call):
        return Step("s", "convolution", ("image",), call, 8)

    assert macs_per_element(step(nn.Conv2d(4, 8, 3))) == 4 * 8 * 9
    assert macs_per_element(step(nn.Conv2d(4, 8, (1, 5), groups=4))) == 8 * 5
    assert macs_per_element(step(nn.ReLU())) == 0
