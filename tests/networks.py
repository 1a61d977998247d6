"""Small networks with fixed random parameters, and what to hold their predictions against."""

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from fullres.models.catalogue import build
from fullres.models.full_resolution.split_merge import FullResolution, split_merge
from fullres.models.smp import SMP
from fullres.ops.normalisation import normalise
from tests.models.full_resolution.dilated import dilated

CLASSES = 5


def narrow(name: str, width: float = 1 / 16, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(build(name, classes, width))


def with_statistics(network: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norm statistics and parameters as if trained."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def vgg(classes: int = CLASSES) -> FullResolution:
    """A network outside the catalogue: convolutions at output strides 1 to 16, max pools between."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 3
    for channels in (4, 6, 8, 12):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        before = channels
    network = nn.Sequential(*layers, nn.Conv2d(before, classes, 3, padding=1))
    return split_merge(with_statistics(network))


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scores_at_once(network: nn.Module, image: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """classes x H x W: an SMP by its dilated form, any other network as torch runs it."""
    x = normalise(torch.from_numpy(image), torch.float32)[None].to(dtype)
    network = deepcopy(network).to(dtype)
    with torch.no_grad():
        return (dilated(network, x) if type(network) is SMP else network(x))[0].numpy()


def assert_same_scores(scores: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Relative to the largest score."""
    assert scores.shape == expected.shape
    assert np.abs(scores - expected).max() <= tolerance * np.abs(expected).max()


def assert_same_labels(labels: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """The classes of the best of the `expected` scores, but where the two best are closer than scores may
    differ."""
    assert labels.dtype == np.uint8
    second, best = np.sort(expected, 0)[-2:]
    decided = best - second > 2 * tolerance * np.abs(expected).max()
    assert decided.mean() > 0.95
    np.testing.assert_array_equal(labels[decided], expected.argmax(0)[decided])
