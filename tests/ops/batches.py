"""Random logits and labels."""

import numpy as np
import torch

K, IGNORE = 4, 255
SIZE = (8, 12)


def batch(seed, n=2, size=SIZE, channels=K, ignored=0.3, scale=3.0):
    """Logits, and labels of single pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, (n, *size))
    labels[rng.random(labels.shape) < ignored] = IGNORE
    return torch.from_numpy(scale * rng.standard_normal((n, channels, *size))), torch.from_numpy(labels)
