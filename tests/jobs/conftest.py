"""One Ray cluster for all jobs of a test process, as starting one takes as long as many of them; and what the
tests of `fullres predict` label, where a file has nothing of its own."""

import cv2
import pytest

from fullres.pipeline.data.images import write_png
from tests.clusters import cluster_of
from tests.jobs.predicting import saved
from tests.scenes import render_scene


@pytest.fixture(scope="session")
def cluster():
    """Of three CPUs; jobs run on it one after the other, with `--address` or RAY_ADDRESS."""
    cluster = cluster_of(3)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "narrow.safetensors")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Five small images in folders, of different sizes and formats."""
    folder = tmp_path_factory.mktemp("scenes")
    for i, size in enumerate([(64, 96), (64, 96), (97, 61), (200, 300)]):
        write_png(folder / f"street/{i}.png", render_scene(i, *size)[0])
    cv2.imwrite(str(folder / "grey.jpg"), render_scene(9, 80, 50)[0][..., 1])
    return folder
