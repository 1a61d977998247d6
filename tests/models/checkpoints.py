"""Lists of the keys and shapes of published checkpoints, kept beside the repository."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FULLRES_CHECKPOINTS", ROOT / ".." / "shared" / "checkpoints"))


def random_state(name, seed=0):
    """A state dict of random tensors with the keys and shapes of a list. Skips where there is none."""
    path = FOLDER / f"{name}.tsv"
    if not path.is_file():
        pytest.skip(f"no list of keys {path.name}: set FULLRES_CHECKPOINTS to their folder")
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for line in path.read_text().splitlines():
        key, _, shape = line.partition("\t")
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        else:
            state[key] = torch.rand([int(n) for n in shape.split("x")], generator=generator)
    return state
