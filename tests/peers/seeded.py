"""Values that depend on a name and a shape alone, so that two programs fill networks alike. Needs numpy and
torch, nothing of the project: the peers' environments import it too."""

import math
import zlib

import numpy as np
import torch


def seeded(name, shape):
    """Of a tensor of a network, as if trained: nothing is zero or one, and no layer hides another."""
    # ANN's self attention has one transform for queries and keys, under two names.
    name = name.replace("context.stages.0.query_project", "context.stages.0.key_project")
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = torch.from_numpy(generator.random(tuple(shape), dtype=np.float32).reshape(tuple(shape)))
    if name.endswith("running_var"):
        return values + 0.5
    if name.endswith(("weight", "scale")) and len(shape) < 2:
        return 0.75 * values + 0.25  # sums of many branches stay within what a softmax can tell apart
    if len(shape) < 2:
        return values - 0.5
    return (2 * values - 1) * math.sqrt(4 / math.prod(shape[1:]))


def seeded_image(height, width):
    """1 x 3 x height x width, about as normalised images are."""
    return seeded("image", (1, 3, height, width)) * math.sqrt(3 * height * width)


def seeded_state(shapes):
    """A state dict of these names and shapes."""
    return {name: seeded(name, shape) for name, shape in shapes.items()}
