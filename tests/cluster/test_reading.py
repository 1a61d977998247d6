"""Images read ahead, by an engine whose plans have as many grains as asked. No cluster."""

from contextlib import closing
from pathlib import Path
from threading import Barrier, Lock
from types import SimpleNamespace

import numpy as np
import pytest

from fullres.cluster import reading
from fullres.cluster.reading import ReadAhead
from fullres.cluster.stream import Task
from fullres.pipeline.data.images import ImageError
from tests.cluster.streams import options


class Counting:
    """An engine of `grains` an image."""

    def __init__(self, grains):
        self.grains, self.planned, self.at_once = grains, [], Lock()

    def plan(self, size, resources, scores):
        assert self.at_once.acquire(blocking=False)
        self.planned.append((size, resources.workers, resources.images))
        self.at_once.release()
        return SimpleNamespace(grains=[None] * self.grains)

    def parts(self, plan, image):
        return [image[:1], image[1:]]


def named(count):
    return [Task(Path(f"{i}.png"), Path(str(i))) for i in range(count)]


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(reading.os, "cpu_count", lambda: 8)


def image_of(path):
    return np.full((4, 5, 3), int(path.stem), np.uint8)


@pytest.mark.parametrize(("grains", "wanted", "ahead"), [(1, 6, 6), (1, 100, 8), (3, 6, 2), (50, 6, 2)])
def test_as_many_images_as_have_the_grains(grains, wanted, ahead):
    with closing(ReadAhead(Counting(grains), options(3), image_of, named(20), {})) as reads:
        assert reads.ahead(wanted) == 2  # nothing is known of the images
        reads.start(wanted, 3)
        reads.take()[1].result()
        assert reads.ahead(wanted) == ahead


def test_small_images_are_read_at_the_same_time():
    together = Barrier(6, timeout=60)

    def read(path):
        if path.stem != "0":
            together.wait()
        return image_of(path)

    with closing(ReadAhead(Counting(1), options(3), read, named(7), {})) as reads:
        reads.start(2, 3)
        _, first = reads.take()
        assert first.result().image[0, 0, 0] == 0
        reads.start(6, 3)
        found = [reads.take() for _ in range(6)]
        assert [task.path.stem for task, _ in found] == [str(i) for i in range(1, 7)]
        assert [future.result().image[0, 0, 0] for _, future in found] == list(range(1, 7))
        assert not reads


def test_a_plan_for_each_size():
    engine, plans = Counting(1), {}

    def read(path):
        return np.zeros((4 + int(path.stem) % 2, 5, 3), np.uint8)

    for count in (8, 4):  # two streams
        with closing(ReadAhead(engine, options(3), read, named(count), plans)) as reads:
            while reads:
                reads.start(8, 3)
                task, future = reads.take()
                image, plan, parts = future.result()
                assert image.shape[0] == 4 + int(task.path.stem) % 2
                assert plan is plans[image.shape[:2]]
                assert np.array_equal(np.concatenate(parts), image)
    assert sorted(engine.planned) == [((4, 5), 3, 8), ((5, 5), 3, 8)]


def test_an_image_that_cannot_be_read():
    def read(path):
        if path.stem == "1":
            raise ImageError("1.png: no image")
        return image_of(path)

    with closing(ReadAhead(Counting(1), options(3), read, named(3), {})) as reads:
        reads.start(2, 3)
        assert reads.take()[1].result().image.shape == (4, 5, 3)
        reads.start(2, 3)
        with pytest.raises(ImageError, match=r"^1\.png: no image$"):
            reads.take()[1].result()
        assert reads.take()[1].result().image[0, 0, 0] == 2
        assert not reads
