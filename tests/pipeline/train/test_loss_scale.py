"""Training in fp16: overflows cost a step and nothing else, while a lower scale of the loss is left."""

import math
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import Diverged, PlainEngine, objective_of
from fullres.pipeline.train.loss_scale import LossScale
from fullres.pipeline.train.samples import Batch
from tests.scenes import render_scene

CPU = torch.device("cpu")


def engine_of(precision, **changes):
    config = TrainingConfig(
        model={"name": "fcn8s18", "width": 0.0625}, steps=10, batch_size=4, crop=(32, 32), out="out",
        data={"dataset": "scenes", "images": "images", "labels": "labels"},
        precision=precision, **{"learning_rate": 1e-3, "optimizer": "sgd", **changes},
    )  # fmt: skip
    return PlainEngine(config, objective_of(config, folder(19), False, False), CPU)


@cache
def batch():
    images, labels = zip(*(render_scene(seed, 32, 32) for seed in range(4)), strict=True)
    return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), list("abcd"))


def losses_of(engine, steps=3):
    return [engine.step(number, batch(), 1e-3) for number in range(steps)]


def weights_of(engine):
    return deepcopy(dict(engine.objective.named_parameters()))


def assert_same(ours, theirs):
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2, "gradient_clipping": 0.5}])
def test_losses_are_those_of_fp32_but_for_rounding(changes):
    """Clipped too: the norm is that of gradients as they are without scale."""
    expected = losses_of(engine_of("fp32", **changes))
    engine = engine_of("fp16", **changes)
    engine.scale.scale = 2.0**10
    found = losses_of(engine)
    assert found != expected
    assert found == pytest.approx(expected, rel=5e-3)
    assert found[-1] < found[0]


def test_gradients_that_overflow_cost_their_step_and_halve_the_scale():
    engine = engine_of("fp16", optimizer="adam")
    engine.scale.scale = 2.0**40
    before = weights_of(engine)
    assert all(map(math.isfinite, losses_of(engine)))
    assert_same(weights_of(engine), before)
    assert not engine.optimizer.state
    assert engine.scale.scale == 2.0**37
    engine.scale.scale = 2.0**10
    losses_of(engine, 1)
    assert any(not torch.equal(p, before[name]) for name, p in weights_of(engine).items())


def test_a_loss_that_overflows_at_any_scale_ends_the_training():
    engine = engine_of("fp16")
    with torch.no_grad():
        next(engine.objective.parameters()).fill_(1e30)
    engine.scale.scale = 4.0
    before = weights_of(engine)
    with pytest.raises(Diverged, match=r"loss is nan at step 2: lower learning_rate .*; its batch: a, b, c"):
        losses_of(engine, 20)
    assert_same(weights_of(engine), before)


def test_gradients_that_overflow_at_any_scale_end_the_training():
    engine = engine_of("fp16")
    engine.scale.scale = 1.0
    next(engine.objective.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(Diverged, match=r"gradients are no finite numbers at step 0: lower learning_rate"):
        losses_of(engine, 1)


def test_goes_on_from_its_state():
    """With the scale that it had, and the steps since that was changed."""
    straight, first, second = (engine_of("fp16") for _ in range(3))
    first.scale.scale = straight.scale.scale = 2.0**17
    whole = losses_of(straight, 5)
    assert losses_of(first, 4) == whole[:4]
    assert 0 < first.scale.good < 4
    second.load_state(deepcopy(first.state()))
    assert second.step(4, batch(), 1e-3) == whole[4]
    assert_same(weights_of(second), weights_of(straight))
    assert second.scale.state() == straight.scale.state()


def test_the_scale_doubles_after_2000_steps():
    scale = LossScale("fp16", CPU)
    for _ in range(2 * 2000 - 1):
        scale.update(True)
    assert scale.state() == {"scale": 2.0**17, "good": 1999}
    scale.update(False)
    assert scale.state() == {"scale": 2.0**16, "good": 0}


def test_a_device_without_fp16_is_refused(monkeypatch):
    def refuse(*inputs, **options):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    with pytest.raises(ValueError, match=r"^precision is 'fp16': not on this cpu, fp32 or bf16$"):
        LossScale("fp16", CPU)
