"""The drawn street scenes: the same every time, all classes, thin things thin, and colour not enough."""

from itertools import pairwise

import numpy as np
import pytest

from fullres.pipeline.scenes import render_scene
from fullres.pipeline.scenes.canvas import (
    BICYCLE,
    BUS,
    FENCE,
    LIGHT,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIGN,
    SKY,
    TRAIN,
    TRUCK,
    WALL,
)
from fullres.pipeline.scenes.plan import Thing, far_to_near

CLASSES = 19


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [render_scene(seed, 256, 512) for seed in range(20)]


def _pixels(scenes) -> np.ndarray:
    """Pixels of each class in each scene, (scenes, classes)."""
    return np.array([np.bincount(labels.ravel(), minlength=CLASSES) for _, labels in scenes])


def _runs(row: np.ndarray) -> np.ndarray:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("size", [(256, 512), (16, 16), (17, 33), (16, 200), (200, 16), (131, 97)])
def test_any_size(size):
    image, labels = render_scene(5, *size)
    assert image.shape == (*size, 3)
    assert labels.shape == size
    assert image.dtype == labels.dtype == np.uint8
    assert labels.max() < CLASSES


@pytest.mark.parametrize("size", [(15, 64), (64, 0)])
def test_too_small_a_size_is_refused(size):
    with pytest.raises(ValueError, match=f"16 x 16 pixels, not {size[1]} x {size[0]}"):
        render_scene(0, *size)


def test_the_same_seed_gives_the_same_bytes():
    np.random.seed(1)
    first = render_scene(7, 128, 256)
    np.random.seed(2)
    second = render_scene(7, 128, 256)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_seeds_give_different_scenes(scenes):
    for (image, labels), (other_image, other_labels) in pairwise(scenes):
        assert (labels != other_labels).mean() > 0.1
        assert np.abs(image.astype(int) - other_image).mean() > 5


@pytest.mark.parametrize("seed", range(4))
def test_other_sizes_show_the_same_street(seed):
    small, large = render_scene(seed, 256, 512)[1], render_scene(seed, 512, 1024)[1]
    assert (small == large[::2, ::2]).mean() > 0.95


def test_every_class_occurs_often_enough(scenes):
    pixels = _pixels(scenes)
    shares = pixels.sum(axis=0) / pixels.sum()
    occurs = (pixels > 0.001 * pixels[0].sum()).mean(axis=0)
    for label in (BUS, TRUCK, TRAIN, WALL, FENCE, RIDER, MOTORCYCLE, BICYCLE, LIGHT):
        assert occurs[label] > 0.25, f"class {label} is in {occurs[label]:.0%} of the scenes"
    for label in (POLE, SIGN, PERSON, ROAD, SKY):
        assert occurs[label] > 0.75, f"class {label} is in {occurs[label]:.0%} of the scenes"
    assert shares.min() > 0.001
    assert shares.max() < 0.45


def test_most_poles_are_two_to_eight_pixels_wide_at_full_size():
    labels = render_scene(3)[1]
    # A lamp's arm lies flat; near the horizon and below, poles stand alone.
    runs = np.concatenate([_runs(row == POLE) for row in labels[400:]])
    assert len(runs) > 500
    assert (runs <= 8).mean() > 0.9
    assert np.median(runs) <= 6


def test_poles_are_tall():
    labels = render_scene(3)[1]
    tallest = max(_runs(column == POLE).max(initial=0) for column in labels.T)
    assert tallest > 200


def test_small_and_large_persons_occur(scenes):
    tall = [max(_runs(column == PERSON).max(initial=0) for column in labels.T) for _, labels in scenes]
    assert max(tall) > 40  # of 256 rows
    assert min(tall) < 25


def test_colour_alone_does_not_give_the_class_away(scenes):
    colours = np.concatenate([image[::4, ::4].reshape(-1, 3) for image, _ in scenes]).astype(np.float32)
    labels = np.concatenate([labels[::4, ::4].ravel() for _, labels in scenes])
    means = np.stack([colours[labels == label].mean(axis=0) for label in range(CLASSES)])
    nearest = ((colours[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    recall = [(nearest[labels == label] == label).mean() for label in range(CLASSES)]
    assert np.mean(recall) < 0.35


def test_objects_have_texture(scenes):
    for image, labels in scenes[:8]:
        for label in np.unique(labels):
            pixels = image[labels == label]
            if len(pixels) > 50:
                assert pixels.std(axis=0).max() > 2


def test_images_change_where_labels_do(scenes):
    """Steps between neighbours are larger across a border of labels than inside an object."""
    across, inside = [], []
    for image, labels in scenes:
        step = np.abs(np.diff(image.astype(np.float32), axis=1)).mean(axis=-1)
        border = np.diff(labels.astype(int), axis=1) != 0
        across.append(step[border].mean())
        inside.append(step[~border].mean())
    assert np.mean(across) > 2 * np.mean(inside)


def test_a_long_thing_is_drawn_after_what_it_screens():
    def thing(x, z, half_length=0.2):
        return Thing(x, z, 0.5, half_length, 1.0, lambda canvas, rng: None)

    tram = thing(5.0, 25.0, half_length=15.0)
    beyond, before, far = thing(8.0, 12.0), thing(3.0, 35.0), thing(8.0, 60.0)
    assert far_to_near([before, tram, beyond, far]) == [far, beyond, tram, before]
