"""A stream of images over real Ray workers of this machine, some of them killed."""

import logging
import os
import signal
from pathlib import Path

import pytest
import ray
import torch

from fullres.cluster import coordinator, crew, workers
from fullres.cluster.coordinator import Coordinator
from fullres.cluster.stream import Task
from fullres.pipeline.data.images import ImageError, write_png
from fullres.pipeline.predict.engines import SplitMerge
from tests.cluster.streams import (
    BUDGET,
    MIB,
    MIXED_SIZES,
    Killer,
    assert_same_bytes,
    images_of,
    in_process,
    options,
    run,
)
from tests.clusters import cluster_of
from tests.networks import narrow, random_image
from tests.pipeline.predict.budgets import least_said

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    cluster = cluster_of(6)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def network():
    return narrow("smp18")


@pytest.fixture(scope="module")
def three(network):
    """Three workers for several streams."""
    running = Coordinator(SplitMerge(network), options(3))
    running.wait_for_workers()
    yield running
    running.close()


def once(network, given, images, **more):
    running = Coordinator(SplitMerge(network), given)
    try:
        return run(running, images, **more), running.progress
    finally:
        running.close()


def test_same_bytes_as_in_process_on_2_and_3_workers(network, three):
    images = images_of(MIXED_SIZES)
    expected = in_process(network, images)
    assert_same_bytes(run(three, images), expected)
    assert len([w for w in three.progress.workers if w.grains]) > 1
    results, progress = once(network, options(2), images)
    assert_same_bytes(results, expected)
    assert progress.done == len(images)
    assert progress.failures == {}
    assert progress.in_flight == 0
    assert progress.grains_done == progress.grains == sum(w.grains for w in progress.workers)
    assert progress.grains_rerun == 0
    assert all(w.busy > 0 for w in progress.workers if w.grains)


def test_scores_of_a_network_with_several_outputs_on_1_worker():
    network, images = narrow("fcn8s18"), images_of([(64, 96), (97, 61)])
    results, _ = once(network, options(1, scores=True), images)
    assert_same_bytes(results, in_process(network, images, scores=True))


def test_only_image_and_labels_travel(three):
    images = images_of([(256, 384)] * 3)
    out, back, seen = three.progress.bytes_out, three.progress.bytes_back, three.progress.image_bytes
    results = run(three, images)
    pixels = sum(image.nbytes for image in images.values())
    labels = sum(result.nbytes for result in results.values())
    assert three.progress.image_bytes - seen == pixels
    assert three.progress.bytes_back - back == labels
    assert labels + pixels <= three.progress.bytes_out - out + labels <= 1.1 * (pixels + labels)


def test_killed_workers_lose_nothing(network, three):
    images = images_of([(192, 256)] * 12)
    expected = in_process(network, images)
    killer = Killer(three, (0, len(images) * 16 // 2))
    rerun = three.progress.grains_rerun
    assert_same_bytes(run(three, images, killer), expected)
    assert len(killer.killed) == 2
    assert 2 <= three.progress.grains_rerun - rerun <= 4
    assert sum(w.restarts for w in three.progress.workers) == 2
    assert three.progress.in_flight == 0


def test_all_workers_killed_at_once(network, three):
    three.wait_for_workers()
    images = images_of([(192, 256)] * 6)
    killer = Killer(three, (30,), everybody=True)
    rerun = three.progress.grains_rerun
    assert_same_bytes(run(three, images, killer), in_process(network, images))
    assert len(killer.killed) == 3
    assert 1 <= three.progress.grains_rerun - rerun <= 6


def test_worker_killed_between_streams(network, three):
    three.wait_for_workers()
    for worker in three.progress.workers:
        os.kill(worker.info.pid, signal.SIGKILL)
    images = images_of([(64, 96)])
    assert_same_bytes(run(three, images), in_process(network, images))


def test_an_image_that_kills_whoever_takes_it_is_left_out(network, monkeypatch):
    monkeypatch.setattr(coordinator, "_ATTEMPTS", 2)

    class Mortal(workers.Worker):
        def run(self, schedule, grain, window, scores):
            if schedule.size == (80, 96):
                os.kill(os.getpid(), 9)
            return super().run(schedule, grain, window, scores)

    monkeypatch.setattr(workers, "Worker", Mortal)
    images = images_of([(64, 96), (80, 96), (64, 96)])
    results, progress = once(network, options(2), images)
    expected = in_process(network, images)
    del expected["01.png"]
    assert_same_bytes(results, expected)
    assert list(progress.failures) == ["01.png"]
    assert "2 workers died of it" in progress.failures["01.png"]


def test_a_worker_that_dies_while_loading_is_counted_and_replaced(network, monkeypatch, tmp_path):
    class Frail(workers.Worker):
        def load(self, engine):
            if not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().load(engine)

    monkeypatch.setattr(workers, "Worker", Frail)
    images = images_of([(64, 96)])
    results, progress = once(network, options(1), images)
    assert_same_bytes(results, in_process(network, images))
    assert [w.restarts for w in progress.workers] == [1]


def test_results_that_cannot_be_written(network, three, tmp_path):
    def write(task, image, result):
        write_png(tmp_path / f"{task.stem}.png", result)

    def read(path):
        return random_image(64, 96)

    tasks = [Task(Path(f"{i}.png"), Path(name)) for i, name in enumerate(("a", "b" * 253, "c"))]
    done, known = three.progress.done, set(three.progress.failures)
    progress = three.run(tasks, read, write)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "c.png"]
    assert progress.failures.keys() - known == {"1.png"}
    assert "its results can't be written: [Errno 36] File name too long" in progress.failures["1.png"]
    assert (progress.done - done, progress.in_flight) == (2, 0)
    strict = Coordinator(SplitMerge(network), options(1, strict=True))
    try:
        with pytest.raises(ImageError, match=r"1\.png: its results can't be written"):
            strict.run(tasks, read, write)
    finally:
        strict.close()


def test_unreadable_image_among_others(network, three):
    images = images_of([(64, 96)] * 4)

    def read(path):
        if path == Path("01.png"):
            raise ImageError("01.png: PNG file of 7 bytes is cut short or damaged")
        return images[path.name]

    known = set(three.progress.failures)
    results = run(three, images, read=read)
    expected = in_process(network, images)
    del expected["01.png"]
    assert_same_bytes(results, expected)
    assert three.progress.failures.keys() - known == {"01.png"}
    assert three.progress.failures["01.png"] == "01.png: PNG file of 7 bytes is cut short or damaged"
    assert three.progress.in_flight == 0
    with pytest.raises(ImageError, match=r"01.png: PNG file of 7 bytes"):
        once(network, options(1, strict=True), images, read=read)


def test_image_that_no_plan_fits(network):
    images = images_of([(40, 50)]) | {"large.png": random_image(900, 1200)}
    tree = network.full_resolution()
    small, large = (least_said(tree, size, workers=1, precision="fp32") for size in ((40, 50), (900, 1200)))
    assert small < large <= BUDGET
    results, progress = once(network, options(1, memory_budget=small), images)
    assert results.keys() == {"00.png"}
    assert list(progress.failures) == ["large.png"]
    assert progress.failures["large.png"].startswith(f"memory budget is {small // MIB} MiB: at least")


class LacksALibrary(SplitMerge):
    """Cannot be loaded by the first `failing` workers: each takes one of as many files."""

    def __init__(self, network, folder, failing):
        super().__init__(network)
        self.folder, self.failing = folder, failing

    def predictor(self, device, precision):
        for number in range(self.failing):
            try:
                os.close(os.open(f"{self.folder}/{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            raise ImportError("no library here\nand a second line")
        return super().predictor(device, precision)


def test_a_worker_that_cannot_load_while_others_can(network, tmp_path):
    images = images_of([(64, 96)] * 4)
    running = Coordinator(LacksALibrary(network, tmp_path, 1), options(2))
    try:
        assert_same_bytes(run(running, images), in_process(network, images))
        assert list(running.progress.left_out.values()) == ["no library here"]
        assert len(running.progress.workers) == 1
    finally:
        running.close()


def test_no_worker_can_load(network, tmp_path):
    running = Coordinator(LacksALibrary(network, tmp_path, 2), options(2))
    with pytest.raises(crew.WorkersLost, match=r"no worker can load the network: no library here$"):
        run(running, images_of([(64, 96)]))
    assert len(running.progress.left_out) == 2


class Waits(Exception):
    pass


def test_workers_without_a_place_say_what_they_wait_for(network, monkeypatch):
    def stop(progress):
        if progress.waiting:
            raise Waits(progress.waiting)

    monkeypatch.setattr(crew, "_PATIENCE", 0.0)
    running = Coordinator(SplitMerge(network), options(2, device="cuda"))
    try:
        with pytest.raises(
            Waits, match=r"^no worker has a place yet: 2 wait for a GPU each, the cluster has 0"
        ):
            run(running, images_of([(64, 96)]), stop)
    finally:
        running.close()
