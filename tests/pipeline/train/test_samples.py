"""Samples are functions of the seed and their number; every image once an epoch, whoever reads them."""

import shutil
from collections import Counter

import numpy as np
import pytest

from fullres.pipeline.data.images import ImageError, write_png
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets.pairs import FilesError
from fullres.pipeline.train.config import Augmentation, DataConfig
from fullres.pipeline.train.places import class_places, kept_places
from fullres.pipeline.train.samples import Frames, Samples
from tests.pipeline.data.object_stores import BUCKETS
from tests.scenes import render_scene

COUNT = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder data set with splits."""
    root = tmp_path_factory.mktemp("root")
    for split in ("train", "val"):
        for i in range(COUNT):
            image, labels = render_scene(i, 60, 80)
            write_png(root / f"images/{split}/{i}.png", image)
            write_png(root / f"labels/{split}/{i}.png", labels)
    return root


def config(root, **more):
    return DataConfig(dataset="folder", classes=19, root=str(root), **more)


HOW = Augmentation(scale=(0.5, 2.0))


def samples(root, seed=0, **more):
    return Samples(Frames(config(root)), HOW, (48, 64), seed, **more)


def listed(batches):
    return [(b.images.numpy().tobytes(), b.labels.numpy().tobytes(), b.files) for b in batches]


def test_each_image_once_an_epoch_in_another_order(root):
    batches = list(samples(root).batches(3, 0, 7, 0))  # 21 samples, three epochs
    files = [file for batch in batches for file in batch.files]
    epochs = [files[i : i + COUNT] for i in range(0, 21, COUNT)]
    assert all(len(set(epoch)) == COUNT for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert batches[0].images.shape == (3, 48, 64, 3)
    assert batches[0].labels.shape == (3, 48, 64)


def test_seeds_decide(root):
    first, again, other = (listed(samples(root, seed).batches(3, 0, 3, 0)) for seed in (0, 0, 1))
    assert first == again
    assert not set(images for images, _, _ in first) & set(images for images, _, _ in other)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("in_memory", [False, True])
def test_processes_read_the_same(root, workers, in_memory):
    expected = listed(samples(root).batches(2, 0, 6, 0))
    assert listed(samples(root, in_memory=in_memory).batches(2, 0, 6, workers)) == expected


def test_steps_later_on_are_the_same(root):
    assert listed(samples(root).batches(3, 4, 6, 0)) == listed(samples(root).batches(3, 0, 6, 0))[4:]


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (2, 1), (6, 1), (1, 3), (3, 2), (2, 3)])
def test_several_make_up_each_part_of_the_batch(root, ranks, parts):
    whole = list(samples(root).batches(6, 1, 4, 0))
    every = [list(samples(root).batches(6, 1, 4, 0, rank, ranks, parts)) for rank in range(ranks)]
    for batch, *of_ranks in zip(whole, *every, strict=True):
        for index in range(parts):
            expected = batch.part(index, parts)
            shares = [of_rank.part(index, parts) for of_rank in of_ranks]
            assert np.concatenate([s.images for s in shares]).tobytes() == expected.images.numpy().tobytes()
            assert [file for share in shares for file in share.files] == expected.files


def test_equal_parts_of_a_batch(root):
    batch = next(samples(root).batches(6, 0, 1, 0))
    parts = [batch.part(i, 3) for i in range(3)]
    assert all(len(part.files) == len(part.images) == len(part.labels) == 2 for part in parts)
    assert np.concatenate([part.labels for part in parts]).tobytes() == batch.labels.numpy().tobytes()
    assert [file for part in parts for file in part.files] == batch.files


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_one_error(root, tmp_path, workers):
    shutil.copytree(root, tmp_path / "root")
    (tmp_path / "root/images/train/3.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"^\S*images/train/3\.png: ") as caught:
        list(samples(tmp_path / "root").batches(3, 0, 3, workers))
    assert "\n" not in str(caught.value)


def test_labels_of_another_size(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    write_png(tmp_path / "root/labels/train/2.png", np.zeros((60, 81), np.uint8))
    with pytest.raises(ImageError, match=r"2\.png: 80x60 pixels, its labels .*2\.png 81x60"):
        list(samples(tmp_path / "root").batches(7, 0, 1, 0))


def test_splits(root):
    assert len(Frames(config(root), "val")) == COUNT
    assert "/val/" in str(Frames(config(root), "val").frames[0].image)
    assert "/train/" in str(Frames(config(root)).frames[0].image)


@pytest.fixture(scope="module")
def places(root):
    return class_places(Frames(config(root)), 32)


def test_places_are_where_their_classes_are(root, places):
    frames = Frames(config(root))
    labels = [frames.labels(i) for i in range(COUNT)]
    there = sorted(set(np.unique(labels)) - {255})
    assert len(places) == len(there)
    for class_id, rows in zip(there, places, strict=True):
        assert all(labels[i][y, x] == class_id for i, y, x in rows)
        windows = {(i, y // 32, x // 32) for i, y, x in rows}
        expected = {
            (i, y // 32, x // 32) for i in range(COUNT) for y, x in np.argwhere(labels[i] == class_id)
        }
        assert windows == expected
        assert len(rows) == len(windows)


def test_places_are_found_once_and_again_where_label_maps_change(root, places, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "root")
    kept, reads = tmp_path / "run/class-places.npz", []

    def found(tile=32):
        reads.clear()
        frames = Frames(config(tmp_path / "root"))
        monkeypatch.setattr(frames, "labels", lambda i: reads.append(i) or Frames.labels(frames, i))
        return kept_places(frames, tile, Storage(str(kept.parent)))

    def assert_places(found):
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in places]

    assert_places(found())
    assert len(reads) == COUNT
    assert_places(found())
    assert not reads
    assert len(found(16)[0]) > len(places[0])
    assert len(reads) == COUNT
    found()
    for damaged in (b"", b"no file", kept.read_bytes()[:-40]):
        kept.write_bytes(damaged)
        assert_places(found())
        assert len(reads) == COUNT
    write_png(tmp_path / "root/labels/train/3.png", np.full((60, 80), 7, np.uint8))
    assert len(found()) <= len(places)
    assert len(reads) == COUNT


def test_classes_are_drawn_alike(root, places):
    """Rare ones as often as others; what is drawn is in the crop."""
    drawn = Samples(
        Frames(config(root)), Augmentation(class_uniform=1), (24, 24), 0, places=places, in_memory=True
    )
    seen = Counter()
    for number in range(500):
        seen.update(np.unique(drawn[number][1]))
    rarest = min(places, key=len)
    frames = Frames(config(root))
    i, y, x = rarest[0]
    rare = frames.labels(i)[y, x]
    assert seen[rare] > 0.7 * 500 / len(places)


def test_a_share_is_drawn_by_class(root, places):
    by_class = Samples(Frames(config(root)), Augmentation(class_uniform=0.5), (24, 24), 0, places=places)
    plain = Samples(Frames(config(root)), Augmentation(), (24, 24), 0)
    same = sum(by_class[n][2] == plain[n][2] for n in range(200))
    assert 90 < same < 145  # half of them, and every seventh of the others


def test_an_object_store_holds_the_same(root):
    with BUCKETS["s3"]() as uri:
        storage = Storage(uri.format("data"))
        for path in sorted(root.rglob("*.png")):
            storage.write(path.relative_to(root).as_posix(), path.read_bytes())
        stored = Samples(Frames(config(uri.format("data"))), HOW, (48, 64), 0)
        versions = stored.frames.versions()
        assert [name for name, *_ in versions] == [f"labels/train/{i}.png" for i in range(COUNT)]
        assert [size for _, size, _ in versions] == [size for _, size, _ in Frames(config(root)).versions()]
        expected = [(images, labels) for images, labels, _ in listed(samples(root).batches(2, 0, 3, 0))]
        for workers in (0, 1):
            found = listed(stored.batches(2, 0, 3, workers))
            assert [(images, labels) for images, labels, _ in found] == expected
        storage.write("images/train/9.png", b"")
        with pytest.raises(FilesError, match=r"images/train/9\.png: no label map"):
            Frames(config(uri.format("data")))
