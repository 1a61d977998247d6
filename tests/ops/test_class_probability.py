import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fullres.ops.class_probability import (
    class_probability,
    class_probability_pyramid,
    class_probability_tensor,
)

K, IGNORE = 3, 255
MODES = ["channel", "renormalise"]
sizes = st.tuples(st.integers(1, 23), st.integers(1, 23))


@st.composite
def label_maps(draw):
    """Noise, or patches of one class as real maps have them, with ignored pixels among them."""
    height, width = draw(sizes)
    side = draw(st.sampled_from([1, 5, 9]))
    shape = (-(-height // side), -(-width // side))
    coarse = draw(arrays(np.uint8, shape, elements=st.sampled_from([*range(K), IGNORE])))
    return coarse.repeat(side, 0).repeat(side, 1)[:height, :width]


def count(labels, scale, ignore):
    """Eq. 1, pixel by pixel."""
    height, width = labels.shape
    pixels = np.zeros((K + 1, -(-height // scale), -(-width // scale)))
    for y in range(height):
        for x in range(width):
            k = K if labels[y, x] == IGNORE else labels[y, x]
            pixels[k, y // scale, x // scale] += 1
    if ignore == "renormalise":
        pixels = pixels[:K]
    return (pixels / np.maximum(pixels.sum(0), 1)).astype(np.float32)


@pytest.mark.parametrize("ignore", MODES)
@given(labels=label_maps(), scale=st.integers(1, 9))
@settings(deadline=None)
def test_equals_counting(ignore, labels, scale):
    shares = class_probability(labels, scale, K, ignore)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, count(labels, scale, ignore), rtol=1e-6)
    sums = shares.sum(0)
    if ignore == "channel":
        np.testing.assert_allclose(sums, 1, rtol=1e-6)
    else:
        np.testing.assert_allclose(sums[sums > 0], 1, rtol=1e-6)


@pytest.mark.parametrize("ignore", MODES)
@given(labels=label_maps(), fine=st.integers(1, 5), steps=st.tuples(*[st.integers(2, 3)] * 3))
@settings(deadline=None)
def test_a_pyramid_is_its_scales(ignore, labels, fine, steps):
    scales = [fine, *(fine * np.cumprod(steps)).tolist()]
    pyramid = class_probability_pyramid(labels, scales, K, ignore)
    for scale, shares in zip(scales, pyramid, strict=True):
        np.testing.assert_array_equal(shares, class_probability(labels, scale, K, ignore))


@pytest.mark.parametrize("ignore", MODES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@given(labels=label_maps(), scale=st.integers(1, 9))
@settings(deadline=None)
def test_a_batch_of_tensors_gives_the_same(ignore, dtype, labels, scale):
    batch = np.stack([labels, labels[::-1]])
    shares = class_probability_tensor(torch.from_numpy(batch).to(dtype), scale, K, ignore)
    assert shares.dtype == torch.float32
    for one, map_labels in zip(shares, batch, strict=True):
        np.testing.assert_array_equal(one.numpy(), class_probability(map_labels, scale, K, ignore))


def test_the_papers_size():
    labels = np.random.default_rng(0).integers(0, 19, (33, 70), np.uint8)
    labels[:4, :4] = IGNORE
    labels[0, 0] = 7
    pyramid = class_probability_pyramid(labels, (4, 8, 16, 32), 19)
    assert [shares.shape for shares in pyramid] == [(20, 9, 18), (20, 5, 9), (20, 3, 5), (20, 2, 3)]
    assert pyramid[0][19, 0, 0] == 15 / 16
    assert pyramid[0][7, 0, 0] == 1 / 16
    (fine, *_) = class_probability_pyramid(labels, (4, 8, 16, 32), 19, "renormalise")
    assert fine.shape == (19, 9, 18)
    assert fine[7, 0, 0] == 1


def test_cells_at_the_border_cover_what_is_there():
    labels = np.uint8([[0, 0, 1], [0, 0, 1], [2, 1, 0]])
    assert class_probability(labels, 2, 3)[:, 0, 1].tolist() == [0, 1, 0, 0]
    assert class_probability(labels, 2, 3)[:, 1, 0].tolist() == [0, 0.5, 0.5, 0]
    assert class_probability(labels, 2, 3)[:, 1, 1].tolist() == [1, 0, 0, 0]


def test_nothing_but_ignored_pixels():
    labels = np.full((5, 6), IGNORE, np.uint8)
    for shares in class_probability_pyramid(labels, (2, 4, 8, 16), K):
        assert (shares[K] == 1).all()
        assert not shares[:K].any()
    for shares in class_probability_pyramid(labels, (2, 4, 8, 16), K, "renormalise"):
        assert not shares.any()


@pytest.mark.parametrize("ignore", MODES)
def test_every_number_of_classes_a_byte_holds(ignore):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shares = class_probability(labels, 16, 255, ignore)
    assert np.unique(shares).tolist() == [np.float32(1 / 256 if ignore == "channel" else 1 / 255)]


def test_an_ignored_id_below_the_others():
    labels = np.uint8([[9, 9], [9, 1]])
    assert class_probability(labels, 2, 2, "renormalise", ignore_index=9).ravel().tolist() == [0, 1]


def test_maps_of_any_memory_layout():
    labels = np.random.default_rng(0).integers(0, K, (20, 31), np.uint8)
    expected = class_probability(labels, 4, K)
    frozen = labels.copy()
    frozen.flags.writeable = False  # as Ray hands arrays out
    for other in (np.asfortranarray(labels), np.repeat(labels, 2, axis=1)[:, ::2], frozen):
        np.testing.assert_array_equal(class_probability(other, 4, K), expected)


@pytest.mark.parametrize("where", [(0, 0), (6, 9)])
@pytest.mark.parametrize("patch", [1, 4])
def test_a_label_that_does_not_belong_is_named(where, patch):
    labels = np.zeros((12, 16), np.uint8)
    labels[where[0] : where[0] + patch, where[1] : where[1] + patch] = 40
    message = r"label 40 doesn't belong: 0\.\.2 and 255 do"
    with pytest.raises(ValueError, match=message):
        class_probability(labels, 4, K)
    with pytest.raises(ValueError, match=message):
        class_probability_tensor(torch.from_numpy(labels)[None].long(), 4, K)
    labels[labels == 40] = K  # the ignored pixels' channel, but no label
    with pytest.raises(ValueError, match="label 3 doesn't belong"):
        class_probability(labels, 4, K)
    with pytest.raises(ValueError, match="label 3 doesn't belong"):
        class_probability_tensor(torch.from_numpy(labels)[None], 4, K)


def test_what_is_no_label_map_is_refused():
    with pytest.raises(ValueError, match=r"labels are int64 of shape \(4, 4\): H x W uint8 is pooled"):
        class_probability(np.zeros((4, 4), np.int64), 4, K)
    with pytest.raises(ValueError, match=r"of shape \(1, 4, 4\)"):
        class_probability(np.zeros((1, 4, 4), np.uint8), 4, K)


@pytest.mark.parametrize("scales", [(4, 6), (4, 4), (8, 4), (0,)])
def test_scales_that_do_not_nest_are_refused(scales):
    with pytest.raises(ValueError, match="each must be a multiple of the one before"):
        class_probability_pyramid(np.zeros((4, 4), np.uint8), scales, K)
