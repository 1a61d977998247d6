"""What an objective is given of a batch."""

import numpy as np
import pytest
import torch

from fullres.models.downsampler import Downsampler
from fullres.ops.normalisation import normalise
from fullres.pipeline.predict.sampler import Sampler
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import part_of
from fullres.pipeline.train.samples import Batch
from tests.models import base
from tests.networks import random_image

CPU = torch.device("cpu")


def part(name, size):
    config = TrainingConfig(
        model={"name": name, "width": 1 / 16}, out="out", batch_size=4, accumulation=2, crop=size,
        steps=1, data={"dataset": "folder", "classes": 5, "images": "images", "labels": "labels"},
    )  # fmt: skip
    images = [random_image(*size, seed) for seed in range(4)]
    labels = np.random.default_rng(0).integers(0, 5, (4, *size), np.uint8)
    batch = Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(labels), list("abcd"))
    return images[2:], labels[2:], part_of(config, 1, batch, CPU)


@pytest.mark.parametrize(("name", "grid"), [("downsampler8", 8), ("downsampler16", 16)])
@pytest.mark.parametrize("size", [(64, 64), (70, 123), (40, 200)])
def test_a_downsampler_learns_from_what_it_looks_at_in_prediction(name, grid, size):
    """And from all labels."""
    images, labels, (small, whole) = part(name, size)
    assert torch.equal(whole, torch.from_numpy(labels).long())
    where = base.as_if_trained(lambda: Downsampler(grid, 8)).eval()
    with torch.no_grad():
        found = where(small)
    for image, phi in zip(images, found, strict=True):
        np.testing.assert_allclose(Sampler((grid, grid), where).at(image), phi, atol=1e-5)


def test_others_learn_from_whole_images():
    images, labels, (whole, truth) = part("unet", (64, 96))
    assert torch.equal(whole, normalise(torch.from_numpy(np.stack(images)), torch.float32))
    assert torch.equal(truth, torch.from_numpy(labels).long())
