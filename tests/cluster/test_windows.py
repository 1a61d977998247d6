"""Windows over real Ray workers of this machine, some of them killed."""

import logging

import numpy as np
import pytest
import ray
import torch
import torch.nn.functional as F
from torch import nn

from fullres.cluster.coordinator import Coordinator
from fullres.cluster.memory import forget_peak, peak_resident_bytes, release_store, resident_bytes
from fullres.models.downsampler import Downsampler
from fullres.pipeline.predict.adaptive import adaptive_engine
from fullres.pipeline.predict.engines import Resources, Windows, label_image
from fullres.pipeline.predict.sampler import Sampler
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows, predict_windows
from tests.cluster.streams import MIB, Killer, assert_same_bytes, images_of, options, run
from tests.clusters import cluster_of
from tests.models import base
from tests.networks import narrow

torch.set_num_threads(1)

SPEC = WindowSpec((0.5, 1.0, 1.25), True, 64, 48)
SIZES = [(150, 180), (97, 130)]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    cluster = cluster_of(2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def network():
    return narrow("spgnet18x2")


def in_process(network, images, scores, attention):
    predictor = WindowPredictor(network, torch.device("cpu"), "fp32", attention)
    return {
        name: predict_windows(predictor, plan_windows(image.shape[:2], SPEC), image, scores)
        for name, image in images.items()
    }


@pytest.mark.parametrize(
    ("scores", "attention", "everybody"),
    [pytest.param(False, (), True, marks=pytest.mark.slow), (True, (1, 3), False)],
)
def test_killed_workers_lose_nothing(network, scores, attention, everybody):
    images = images_of(SIZES)
    running = Coordinator(Windows(network, SPEC, attention), options(2, scores=scores))
    try:
        running.wait_for_workers()
        killer = Killer(running, (20,), everybody)
        results = run(running, images, killer)
    finally:
        running.close()
    assert len(killer.killed) == (2 if everybody else 1)
    assert running.progress.grains_rerun >= 1
    assert sum(worker.restarts for worker in running.progress.workers) == len(killer.killed)
    expected = in_process(network, images, scores, attention)
    if attention:
        parts = [{name: r.attention for name, r in given.items()} for given in (results, expected)]
        assert_same_bytes(*parts)
        results, expected = ({name: r.classes for name, r in given.items()} for given in (results, expected))
    assert_same_bytes(results, expected)


@pytest.mark.parametrize("name", ["smp18", pytest.param("unet", marks=pytest.mark.slow)])
def test_killed_workers_lose_nothing_of_sampled_images(name):
    """An image in several grains, whose scores are interpolated where they are merged, and images in one."""
    where = base.as_if_trained(lambda: Downsampler(8, 8)).eval()
    engine = adaptive_engine(narrow(name), Sampler((192, 177), where))
    images = images_of([(250, 180)] * 12 + [(1, 40000)])
    little = {"memory_budget": 100 * MIB}
    running = Coordinator(engine, options(2, **little))
    try:
        running.wait_for_workers()
        killer = Killer(running, (3,))
        results = run(running, images, killer)
    finally:
        running.close()
    assert len(killer.killed) == 1
    assert running.progress.grains > len(images) or name == "unet"
    runner, alone = engine.predictor(torch.device("cpu"), "fp32"), Resources(1, 100 * MIB, "fp32", "cpu")
    expected = {image: label_image(engine, runner, images[image], alone) for image in images}
    assert_same_bytes(results, expected)


def test_an_image_too_small_for_the_network_among_others():
    images = images_of([(64, 64), (16, 200), (70, 80)])
    running = Coordinator(Windows(Pooling(), WindowSpec()), options(1))
    try:
        results = run(running, images)
    finally:
        running.close()
    assert list(results) == ["00.png", "02.png"]
    said = "the network can't read 200x16 pixels: "
    assert [(name, reason[: len(said)]) for name, reason in running.progress.failures.items()] == [
        ("01.png", said)
    ]


class Pooling(nn.Module):
    """A network that needs 32 pixels a side."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return F.interpolate(self.classes(F.avg_pool2d(x, 32)), x.shape[-2:])


def test_pages_of_the_object_store_are_given_back():
    """They are no longer resident, and come back with what is in them."""
    array = ray.get(ray.put(np.arange(8 * MIB)))
    assert array.sum() == 8 * MIB * (8 * MIB - 1) // 2
    before = resident_bytes()
    release_store()
    assert before - resident_bytes() >= 60 * MIB
    assert array.sum() == 8 * MIB * (8 * MIB - 1) // 2


def test_results_do_not_stay_resident_where_they_are_merged():
    """600 MiB of shares pass through a store of 256 MiB and a band of 44 MiB."""
    spec, images = WindowSpec((1.0,), False, 96, 24), images_of([(320, 320)])
    running = Coordinator(Windows(narrow("spgnet18x2", classes=150), spec), options(1))
    try:
        running.wait_for_workers()
        release_store()
        forget_peak()
        before = resident_bytes()
        run(running, images)
        grown = peak_resident_bytes() - before
    finally:
        running.close()
    assert running.progress.bytes_back > 600 * MIB
    assert grown < 160 * MIB
