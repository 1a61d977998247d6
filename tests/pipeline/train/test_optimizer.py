"""Which parameters learn how fast, step by step."""

import math
import re

import pytest
import torch
from torch import nn

from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.network import initial_network
from fullres.pipeline.train.optimizer import freeze, learning_rate, optimizer_for, set_learning_rate


def config(model="pspnet50", freeze=(), **more):
    given = {
        "model": {"name": model, "width": 1 / 16, "freeze": freeze}, "out": "out", "steps": 100,
        "data": {"dataset": "scenes", "images": "a", "labels": "b"}, "learning_rate": 0.1,
    }  # fmt: skip
    return TrainingConfig(**given | more)


def network_of(chosen):
    torch.manual_seed(0)
    network = initial_network(chosen.model, 5)
    freeze(chosen, network)
    return network


def rates(**more):
    return [learning_rate(config(**more), step) for step in range(100)]


def test_constant():
    assert rates() == [0.1] * 100


def test_poly():
    assert rates(schedule="poly") == pytest.approx([0.1 * (1 - i / 100) ** 0.9 for i in range(100)])


def test_exponential():
    found = rates(schedule="exponential", final_share=0.05)
    assert found == pytest.approx([0.1 * math.exp(math.log(0.05) * i / 100) for i in range(100)])
    assert found[99] == pytest.approx(0.1 * 0.05**0.99)


def test_warm_up():
    found = rates(schedule="poly", warm_up=10)
    assert found[:10] == pytest.approx([0.01 * i for i in range(1, 11)])
    assert found[10:] == rates(schedule="poly")[10:]


def settings_of(chosen):
    """By name of a parameter, its learning rate and weight decay in the first step."""
    network = network_of(chosen)
    optimizer = optimizer_for(chosen, network)
    set_learning_rate(optimizer, learning_rate(chosen, 0))
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id.get(id(p)) for name, p in network.named_parameters()}


def test_all_alike_where_nothing_is_asked():
    assert set(settings_of(config()).values()) == {(0.1, 5e-4)}


@pytest.mark.parametrize("model", ["pspnet50", "spgnet18x2", "smp18", "ocrnet18"])
def test_heads_learn_faster(model):
    found = settings_of(config(model, head_rate=10))
    for name, (rate, _) in found.items():
        of_backbone = re.match(r"(backbone|stages\.\d+\.encoder)\.", name)
        assert rate == pytest.approx(0.1 if of_backbone else 1)
    assert {round(rate, 6) for rate, _ in found.values()} == {0.1, 1}


def test_norms_and_biases_without_decay():
    chosen = config(decay_norms=False)
    network = network_of(chosen)
    norms = {
        f"{name}.{kind}"
        for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }  # fmt: skip
    for name, (_, decay) in settings_of(chosen).items():
        assert decay == (0 if name in norms or name.endswith("bias") else 5e-4)


@pytest.mark.parametrize("frozen", ["batch_norm", "backbone"])
def test_what_is_frozen_stays(frozen):
    chosen = config(freeze=(frozen,), optimizer="sgd")
    network = network_of(chosen)
    optimizer = optimizer_for(chosen, network)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network(torch.randn(2, 3, 65, 65)).logits.square().mean().backward()
    optimizer.step()
    norms = {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, now in network.state_dict().items():
        kept = name.startswith("backbone.") if frozen == "backbone" else name.rpartition(".")[0] in norms
        if kept:
            assert torch.equal(now, before[name]), name
    changed = [name for name, now in network.state_dict().items() if not torch.equal(now, before[name])]
    assert changed
    assert None in settings_of(chosen).values()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"accumulation": 3}, "accumulation is 3: batch_size, 10, is no multiple of it"),
        ({"warm_up": 100}, "warm_up is 100: fewer than the 100 steps"),
        ({"model": "unet", "head_rate": 10}, "head_rate is 10.0: unet has no backbone of its own"),
        ({"model": "unet", "freeze": ("backbone",)}, "unet has no backbone of its own"),
        ({"evaluate_every": 10}, "evaluate_every is 10, data.validation is None: both or neither"),
        ({"augmentation": {"scale": (2.0, 0.5)}}, r"scale is \[2.0, 0.5\]: the least and the most"),
        ({"augmentation": {"colour": (0, 0, 0, 0.6)}}, "each 0 to 1, the hue's to 0.5"),
        (
            {"data": {"dataset": "camvid", "root": "x", "images": "a"}},
            "root is x, images is a, labels is None: root, or both others",
        ),
        (
            {"data": {"dataset": "camvid", "root": "x", "split": "nine"}},
            "split is 'nine': camvid has train, val, test",
        ),
    ],
)
def test_what_is_not_possible(more, said):
    with pytest.raises(ValueError, match=said):
        config(**more)
