"""Augmented crops: what they show is what the image shows, image and labels alike."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullres.ops.normalisation import MEAN
from fullres.pipeline.train.augment import augmented, coloured
from fullres.pipeline.train.config import Augmentation

PLAIN = Augmentation(mirror=False)
IGNORED = 255


def with_places(h, w):
    """An image whose colours are each pixel's place, and labels that are too, in 16 x 16 cells."""
    y, x = np.mgrid[:h, :w].astype(np.uint8)
    return np.stack([y, x, y ^ x], -1), (y // 16 * 16 + x // 16).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 99), st.booleans())
def test_a_crop_is_a_window_or_its_mirror_image_and_padded_where_the_image_ends(h, w, seed, mirror):
    image, labels = with_places(h, w)
    crop, cropped = augmented(image, labels, Augmentation(mirror=mirror), (40, 50), IGNORED, rng(seed))
    assert crop.shape == (40, 50, 3)
    assert cropped.shape == (40, 50)
    assert crop.flags.c_contiguous
    padded = cropped == IGNORED
    assert padded.sum() == 40 * 50 - min(h, 40) * min(w, 50)
    assert (crop[padded] == np.rint(MEAN)).all()
    seen = crop[~padded].astype(int)
    assert (image[seen[:, 0], seen[:, 1]] == crop[~padded]).all()
    assert (labels[seen[:, 0], seen[:, 1]] == cropped[~padded]).all()
    rows, columns = seen[:, 0].reshape(min(h, 40), -1), seen[:, 1].reshape(min(h, 40), -1)
    assert (np.diff(rows, axis=0) == 1).all()
    steps = np.unique(np.diff(columns, axis=1))
    assert set(steps) <= ({1, -1} if mirror else {1})
    assert len(steps) <= 1


def test_half_of_the_samples_are_mirrored():
    image, labels = with_places(32, 32)
    mirrored = sum(
        augmented(image, labels, Augmentation(), (32, 32), IGNORED, rng(seed))[0][0, 0, 1] > 0
        for seed in range(400)
    )
    assert 160 < mirrored < 240


@given(st.integers(40, 90), st.integers(40, 90), st.integers(0, 10**6))
def test_a_crop_around_a_pixel_has_it(h, w, seed):
    image, labels = with_places(h, w)
    y, x = rng(seed).integers((h, w))
    crop, _ = augmented(image, labels, PLAIN, (33, 40), IGNORED, rng(seed), (y, x))
    assert (crop[..., :2] == (y, x)).all(-1).any()


@pytest.mark.parametrize(
    "how", [{"scale": (0.5, 2.0)}, {"rotation": 30.0}, {"scale": (0.5, 2), "rotation": 30}]
)
def test_a_crop_around_a_pixel_has_it_scaled_and_rotated(how):
    labels = np.zeros((120, 140), np.uint8)
    labels[50:60, 80:90] = 7
    image = np.repeat(labels[..., None], 3, 2)
    for seed in range(60):
        _, cropped = augmented(image, labels, Augmentation(**how), (32, 32), IGNORED, rng(seed), (55, 85))
        assert (cropped == 7).any()


def scales_of(how, count=300):
    """How wide a mark of 40 pixels is in crops that hold the whole image."""
    labels = np.zeros((60, 80), np.uint8)
    labels[10:50, 20:60] = 1
    image = np.repeat(labels[..., None] * 200, 3, 2)
    found = []
    for seed in range(count):
        crop, cropped = augmented(image, labels, how, (130, 170), IGNORED, rng(seed))
        found.append((cropped == 1).any(0).sum() / 40)
        assert abs((crop[cropped != IGNORED][:, 0] > 100).sum() - (cropped == 1).sum()) < 200
    return np.array(found)


def test_scales_are_drawn_evenly():
    found = scales_of(Augmentation(scale=(0.5, 2.0)))
    assert found.min() < 0.55
    assert found.max() > 1.95
    assert abs(found.mean() - 1.25) < 0.1


def test_scales_in_steps():
    assert set(scales_of(Augmentation(scale=(0.5, 2.0), scale_step=0.25))) == {
        0.5,
        0.75,
        1,
        1.25,
        1.5,
        1.75,
        2,
    }
    assert set(scales_of(Augmentation(scale=(0.5, 1.2), scale_step=0.5), 40)) == {0.5, 1}


def test_half_of_the_samples_are_rotated_with_ignored_corners():
    image, labels = with_places(64, 64)
    rotated = 0
    for seed in range(200):
        how = Augmentation(mirror=False, rotation=10)
        crop, cropped = augmented(image, labels, how, (64, 64), IGNORED, rng(seed))
        if (crop == image).all():
            assert (cropped == labels).all()
            continue
        rotated += 1
        middle = (slice(12, 52),) * 2  # the corners of the square turn less far in
        seen = crop[middle][..., :2].astype(int)
        again = labels[seen[..., 0], seen[..., 1]]
        assert (again == cropped[middle]).mean() > 0.85  # colours are mixed of neighbours, labels are not
    assert 70 < rotated < 130


def test_blur_changes_half_of_the_images_and_no_labels():
    image, labels = rng().integers(0, 256, (40, 40, 3), np.uint8), rng().integers(0, 9, (40, 40), np.uint8)
    changed = 0
    for seed in range(100):
        how = Augmentation(mirror=False, blur=(0.5, 1.5))
        crop, cropped = augmented(image, labels, how, (40, 40), IGNORED, rng(seed))
        assert (cropped == labels).all()
        if (crop != image).any():
            changed += 1
            assert crop.std() < image.std()
            assert abs(crop.mean() - image.mean()) < 1
    assert 30 < changed < 70


def by_hand(pixels, brightness, contrast, saturation, hue):
    """A list of RGB pixels, each step written out."""
    grey = np.array([0.299, 0.587, 0.114])
    x = np.clip(pixels * brightness, 0, 255)
    mean = (x @ grey).mean()
    x = np.clip(mean + (x - mean) * contrast, 0, 255)
    own = (x @ grey)[:, None]
    x = np.clip(own + (x - own) * saturation, 0, 255)
    turned = [colorsys.rgb_to_hsv(*(p / 255)) for p in x]
    return np.array([colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in turned]) * 255


@pytest.mark.parametrize(
    "factors",
    [(1, 1, 1, 0), (1.2, 1, 1, 0), (1, 0.8, 1, 0), (1, 1, 1.25, 0), (1, 1, 1, 0.1), (0.8, 1.2, 0.9, -0.2)],
)
def test_colours_by_hand(factors):
    image = rng(3).integers(0, 256, (6, 7, 3), np.uint8)
    expected = by_hand(image.reshape(-1, 3).astype(float), *factors).reshape(image.shape)
    assert np.abs(coloured(image, *factors) - expected).max() <= 1


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(
        st.floats(0, 3), st.floats(0, 3), st.just(1.0) | st.floats(0, 3), st.just(0) | st.floats(-1, 1)
    ),
    st.integers(1, 256),
    st.booleans(),
)
def test_any_colours_of_any_image(size, factors, levels, view):
    image = rng(levels).integers(0, levels, (*size, 3), np.uint8)
    image = image[::-1, ::-1] if view else image
    before = image.copy()
    expected = by_hand(image.reshape(-1, 3).astype(float), *factors).reshape(image.shape)
    found = coloured(image, *factors)
    if factors[3] == 0:  # the hue of what is nearly grey is anybody's
        assert np.abs(found - expected).max() <= 1
    assert (found.dtype, found.shape) == (np.uint8, image.shape)
    assert (image == before).all()


def test_colour_changes_no_labels_and_stays_within_what_is_asked():
    image, labels = np.full((40, 40, 3), 100, np.uint8), np.zeros((40, 40), np.uint8)
    values = []
    for seed in range(200):
        how = Augmentation(colour=(0.25, 0, 0, 0))
        crop, cropped = augmented(image, labels, how, (40, 40), IGNORED, rng(seed))
        assert (cropped == labels).all()
        values.append(crop[0, 0, 0])
    assert 75 <= min(values) < 80
    assert 120 < max(values) <= 125
