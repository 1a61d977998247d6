import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.ops.resample import (
    all_shrunk,
    area_resize,
    between_lattice_points,
    bilinear_reads,
    bilinear_window,
    shrunk,
)

torch.set_num_threads(1)


@st.composite
def axes(draw):
    """Input length, output length and a window of the output."""
    out_length = draw(st.integers(1, 90))
    start = draw(st.integers(0, out_length - 1))
    return draw(st.integers(1, 40)), out_length, (start, draw(st.integers(start + 1, out_length)))


@settings(deadline=None)
@given(axes(), axes())
def test_a_window_of_what_torch_interpolates(rows, columns):
    in_size, out_size, (row_window, column_window) = zip(rows, columns, strict=True)
    whole = torch.randn(2, 3, *in_size, dtype=torch.float64)
    expected = F.interpolate(whole, out_size, mode="bilinear", align_corners=False)
    # It gets only what `bilinear_reads` says.
    (top, bottom), (left, right) = (bilinear_reads(*window, n, m) for n, m, window in (rows, columns))
    window = bilinear_window(
        whole[..., top:bottom, left:right], (top, left), in_size, out_size, row_window, column_window
    )
    torch.testing.assert_close(
        window, expected[..., slice(*row_window), slice(*column_window)], rtol=0, atol=1e-12
    )


@settings(deadline=None)
@given(axes())
def test_reads_no_more_than_it_needs(axis):
    in_length, out_length, window = axis
    start, stop = bilinear_reads(*window, in_length, out_length)
    assert 0 <= start < stop <= in_length
    ratio = in_length / out_length
    assert stop - start <= (window[1] - window[0] - 1) * ratio + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_type(dtype):
    whole = torch.randn(1, 2, 6, 9).to(dtype)
    window = bilinear_window(whole, (0, 0), (6, 9), (48, 72), (5, 44), (0, 72))
    expected = F.interpolate(whole.float(), (48, 72), mode="bilinear", align_corners=False)[:, :, 5:44]
    assert window.dtype == dtype
    torch.testing.assert_close(
        window.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05
    )


@settings(deadline=None)
@given(st.integers(1, 13), st.integers(1, 9), st.integers(1, 9), st.integers(1, 7))
def test_areas_are_means_over_what_pixels_cover(height, width, h, w):
    image = torch.randn(1, 2, height, width, dtype=torch.float64)
    found = area_resize(image, (h, w))
    # In units in which both sizes are whole numbers, each pixel is many equal ones.
    fine = image.repeat_interleave(h, 2).repeat_interleave(w, 3)
    expected = fine.unfold(2, height, height).unfold(3, width, width).mean((4, 5))
    torch.testing.assert_close(found, expected)
    if (h, w) == (height, width):
        assert torch.equal(found, image)


@settings(deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4])
)
def test_shrunk_images_are_rounded_means(height, width, h, w, channels):
    images = np.random.default_rng(height).integers(0, 256, (2, height, width, channels), np.uint8)
    found = all_shrunk(torch.from_numpy(images), (h, w)).numpy()
    assert all(np.array_equal(one, shrunk(image, (h, w))) for one, image in zip(found, images, strict=True))
    assert np.array_equal(shrunk(images[0, ::-1, ::-1], (h, w)), shrunk(images[0, ::-1, ::-1].copy(), (h, w)))
    if height < h or width < w:
        assert np.array_equal(found, images)
    else:
        exact = area_resize(torch.from_numpy(images).double().movedim(-1, 1), (h, w)).movedim(1, -1)
        assert found.dtype == np.uint8
        assert np.abs(found - exact.numpy()).max() <= 0.5 + 1e-4


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 8))
def test_between_the_points_of_a_lattice(length, stride, origin):
    origin = min(origin, length - 1, stride - 1)
    points = np.arange(origin, length, stride)
    values = np.random.default_rng(0).random((2, len(points), 3))
    found = between_lattice_points(
        torch.from_numpy(values), stride, (origin, 0), torch.arange(length), torch.arange(3) * stride
    )
    for channel in range(2):
        for column in range(3):
            expected = np.interp(np.arange(length), points, values[channel, :, column])
            np.testing.assert_allclose(found[channel, :, column], expected, atol=1e-12)
    assert np.array_equal(found[:, points], values)
