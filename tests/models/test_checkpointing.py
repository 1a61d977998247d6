"""Activation checkpointing changes what is kept, and nothing else."""

from copy import deepcopy

import pytest
import torch

from fullres.models.catalogue import CATALOGUE
from fullres.models.checkpointing import blocks_checkpointed
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import PlainEngine, objective_of
from fullres.pipeline.train.samples import Batch

NETWORKS = ["smp18", "fcn8s18", "pspnet50", "ocrnet18", "spgnet18x2", "deeplabv3plus-mobilenet", "unet"]


def engine(name, checkpointed):
    config = TrainingConfig(
        model={"name": name, "width": 0.125}, steps=9, batch_size=2, crop=(64, 96), out="out",
        data={"dataset": "folder", "classes": 4, "images": "images", "labels": "labels"},
        optimizer="sgd", learning_rate=1e-3, activation_checkpointing=checkpointed,
        phases=(2, 1, 1, 2) if CATALOGUE[name].splits else (1, 1, 1, 1),
    )  # fmt: skip
    return PlainEngine(config, objective_of(config, folder(4), False, False), torch.device("cpu"))


def batch():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    return Batch(images, torch.randint(0, 4, (2, 64, 96), dtype=torch.uint8), ["a", "b"])


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_the_same_bytes(name):
    """Weights, running statistics and how often they were tracked; dropout draws the same twice."""
    plain, checkpointed = engine(name, False), engine(name, True)
    for step in range(2):
        losses = [e.step(step, batch(), 1e-3) for e in (plain, checkpointed)]
        assert losses[0] == losses[1]
    expected = plain.network().state_dict()
    for key, tensor in checkpointed.network().state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert "forward" not in {k for m in checkpointed.network().modules() for k in vars(m)}


@pytest.mark.parametrize("name", ["smp18", "pspnet50", "spgnet18x2"])
def test_less_is_kept(name):
    def kept(checkpointed):
        """Bytes that the graph keeps of a step, each tensor once."""
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        objective = deepcopy(engine(name, checkpointed).objective)
        images = torch.randn(2, 3, 64, 96)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = objective(images, batch().labels.long())
        assert loss.requires_grad
        return sum(seen.values())

    assert kept(True) < 0.8 * kept(False)


def test_without_gradients_nothing_is_kept_for_them():
    network = engine("pspnet50", False).network().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), blocks_checkpointed(network):
        first = network(image)
    with torch.no_grad():
        assert torch.equal(network(image), first)
