"""Stages together are the network: its outputs, gradients and running statistics."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.stages.calls import Uncuttable, calls_of
from fullres.models.stages.partition import partition
from fullres.models.stages.stage import Stage
from fullres.pipeline.train.config import ModelConfig
from fullres.pipeline.train.network import initial_network
from fullres.pipeline.train.objectives import SegmentationLoss

CPU = torch.device("cpu")
SHAPE = (2, 3, 96, 64)


def network_of(name, width=0.125, **options):
    torch.manual_seed(0)
    network = initial_network(ModelConfig(name=name, width=width), 5)
    for option, value in options.items():
        setattr(network, option, value)
    if CATALOGUE[name].splits:
        network.full_resolution()
    return network


def in_stages(network, count, images, loss_of):
    """The loss, and what the stages hold afterwards."""
    found = partition(calls_of(network, tuple(images.shape), CPU), count)
    stages = [Stage(deepcopy(network), found, index) for index in range(count)]
    inputs, outputs = [], []
    x = images
    for stage in stages:
        torch.manual_seed(3)
        inputs.append(x.detach().requires_grad_(stage.index > 0))
        x = stage(inputs[-1])
        outputs.append(x)
    loss = loss_of(x)
    loss.backward()
    for stage in range(count - 2, -1, -1):
        outputs[stage].backward(inputs[stage + 1].grad)
    return loss, [stage.network for stage in stages], found


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("smp18", 2, {"phases": (2, 1, 2, 1)}),
        ("fcn8s18", 4, {"loss_stride": 8}),
        ("pspnet50", 3, {}),
        ("ann50", 3, {}),
        ("seethroughnet48", 4, {}),
        ("spgnet18x2", 3, {}),
        ("deeplabv3plus-mobilenet", 2, {}),
    ],
)
def test_stages_are_the_network(name, count, options):
    network = network_of(name, **options).double()
    images = torch.rand(SHAPE, dtype=torch.float64)
    labels = torch.randint(0, 5, (SHAPE[0], *SHAPE[2:]))
    whole = SegmentationLoss(deepcopy(network))
    torch.manual_seed(3)
    expected = whole(images, labels)
    expected.backward()
    loss, parts, _ = in_stages(network, count, images, lambda output: whole.of(output, labels))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # a loss is in fp32
    parameters = [pair for part in parts for pair in part.named_parameters()]
    assert sorted(n for n, _ in parameters) == sorted(n for n, _ in whole.network.named_parameters())
    buffers = {name: buffer for part in parts for name, buffer in part.named_buffers()}
    for name, buffer in whole.network.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-9, atol=1e-12)
    gradients = {name: p.grad for name, p in parameters}
    for name, p in whole.network.named_parameters():
        # Sums of several readers' gradients come in another order.
        assert (gradients[name] - p.grad).norm() <= 1e-5 * p.grad.norm() + 1e-9, name


@pytest.mark.parametrize("name", ["smp50", "fcn32s50", "upernet50", "ccnet50", "dmnet50", "hrnet48", "unet"])
def test_catalogue_networks_have_stages_of_about_equal_cost(name):
    found = partition(calls_of(network_of(name), SHAPE, CPU), 2)
    assert max(found.cost) < 0.62 * sum(found.cost)
    assert found.bytes_crossing(0) > 0


class Chain(nn.Module):
    def __init__(self, layers=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 if i else 3, 4, 3, padding=1) for i in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu_()
        return x


def test_what_is_written_in_place_stays_in_its_stage():
    network = Chain()
    images = torch.rand(1, 3, 16, 16)
    expected = deepcopy(network)
    expected(images).square().sum().backward()
    _, parts, found = in_stages(network, 4, images, lambda output: output.square().sum())
    gradients = {n: p.grad for part in parts for n, p in part.named_parameters()}
    assert all(torch.equal(gradients[n], p.grad) for n, p in expected.named_parameters())
    assert all(len(crossing) == 1 for crossing in found.crossing)


class Shared(nn.Module):
    """The image crosses, a result is returned that the last stage does not make, and one layer runs twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        early = self.first(x)
        late = self.twice(F.relu(self.twice(early)))
        return early, self.last(torch.cat([late, x], 1))


def test_a_parameter_lives_in_one_stage_and_anything_crosses():
    network, images = Shared(), torch.rand(1, 3, 16, 16)
    expected = deepcopy(network)
    sum(t.square().sum() for t in expected(images)).backward()
    _, parts, found = in_stages(network, 3, images, lambda out: sum(t.square().sum() for t in out))
    gradients = {n: p.grad for part in parts for n, p in part.named_parameters()}
    assert all(torch.equal(gradients[n], p.grad) for n, p in expected.named_parameters())
    assert [found.uses(i) for i in range(3)] == [
        {"first.weight", "first.bias"}, {"twice.weight", "twice.bias"}, {"last.weight", "last.bias"},
    ]  # fmt: skip


class Shifted(Chain):
    """Reads a constant that is drawn anew, and is already what it is asked to be."""

    def forward(self, x):
        shift = torch.rand(()).to(x)
        return super().forward(x) + shift


def test_what_is_drawn_is_drawn_anew():
    network, images = Shifted(), torch.rand(1, 3, 16, 16)
    found = partition(calls_of(network, tuple(images.shape), CPU), 3)
    stages = [Stage(deepcopy(network), found, index) for index in range(3)]
    for seed in range(3):
        torch.manual_seed(seed)
        expected = network(images)
        x = images
        for stage in stages:
            torch.manual_seed(seed)
            x = stage(x)
        assert torch.equal(x, expected)


def test_frozen_parts_send_without_gradient():
    network, images = Chain(), torch.rand(1, 3, 16, 16)
    network.layers[:5].requires_grad_(False)
    _, parts, _ = in_stages(network, 2, images, lambda output: output.square().sum())
    assert all((p.grad is None) != p.requires_grad for part in parts for p in part.parameters())


def test_more_stages_than_convolutions_are_refused():
    with pytest.raises(Uncuttable, match=r"parallel.pipeline is 9: the network has 8 stages at most"):
        partition(calls_of(Chain(), (1, 3, 16, 16), CPU), 9)


class Deciding(Chain):
    def forward(self, x):
        x = super().forward(x)
        return x if x.sum() > 0 else -x


def test_a_network_that_decides_by_values_is_refused():
    with pytest.raises(Uncuttable, match="Deciding can't be cut into stages"):
        calls_of(Deciding(), (1, 3, 16, 16), CPU)


def test_a_network_that_does_other_things_than_when_it_was_cut_is_refused():
    network = Chain()
    found = partition(calls_of(network, (1, 3, 16, 16), CPU), 2)
    stage = Stage(network, found, 0)
    network.layers.insert(0, nn.Identity())
    network.layers.append(nn.ReLU())
    with pytest.raises(Uncuttable, match="was not when it was cut"):
        stage(torch.rand(1, 3, 16, 16))


def test_bf16_features_cross_as_what_they_are():
    network, images = network_of("fcn8s18"), torch.rand(SHAPE)
    found = partition(calls_of(network, SHAPE, CPU, torch.bfloat16), 2)
    stages = [Stage(deepcopy(network), found, index) for index in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        expected = deepcopy(network)(images)
        sent = stages[0](images)
        output = stages[1](sent)
    assert sent.dtype == torch.bfloat16
    assert torch.equal(output.lattices[0].logits, expected.lattices[0].logits)
