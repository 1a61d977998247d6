"""Checkpoints as published: from lists of keys and shapes, kept beside the repository, or of a network."""

import pytest
import torch

from tests.shared import CHECKPOINTS


def random_state(name, seed=0):
    """A state dict of random tensors with the keys and shapes of a list. Skips where there is none."""
    path = CHECKPOINTS / f"{name}.tsv"
    if not path.is_file():
        pytest.skip(f"no list of keys {path.name}: see tests/shared.py")
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for line in path.read_text().splitlines():
        key, _, shape = line.partition("\t")
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        else:
            state[key] = torch.rand([int(n) for n in shape.split("x")], generator=generator)
    return state


def published_hrnet(network):
    """As its authors' training code writes it: behind `model.`, beside the class weights of the loss."""
    state = {f"model.{key.removeprefix('backbone.')}": t for key, t in network.state_dict().items()}
    return {**state, "loss.criterion.weight": torch.rand(5)}


def published_pspnet(network):
    """As hszhao/semseg writes it: behind `module.`, the stem a row of layers, an auxiliary head."""
    stem = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    state = {}
    for name, tensor in network.state_dict().items():
        name = name.removeprefix("backbone.")
        layer, _, kind = name.partition(".")
        state[f"module.layer0.{stem[layer]}.{kind}" if layer in stem else f"module.{name}"] = tensor
    state |= {"module.aux.0.weight": torch.rand(4, 8, 3, 3), "module.aux.4.bias": torch.rand(5)}
    return {"epoch": 200, "state_dict": state}
