import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.ops.sampling import resize_tensor, sample, sample_moving, sample_tensor
from fullres.ops.sampling_solve import uniform_tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
torch.set_num_threads(1)
grids = st.tuples(st.integers(2, 12), st.integers(2, 12))
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random_tensor(seed, h, w, dtype=np.float64):
    phi = np.random.default_rng(seed).random((h, w, 2))
    phi[0, :, 0] = phi[:, 0, 1] = 0
    phi[-1, :, 0] = phi[:, -1, 1] = 1
    return phi.astype(dtype)


@settings(deadline=None)
@given(st.integers(0, 99), grids, sizes)
def test_reads_the_closest_pixel(seed, grid, size):
    phi = random_tensor(seed, *grid)
    pixels = np.arange(size[0] * size[1]).reshape(size)
    for point, read in zip(phi.reshape(-1, 2), sample(pixels, phi).ravel(), strict=True):
        distance = np.abs(np.array(divmod(read, size[1])) - point * (np.array(size) - 1))
        assert distance.max() <= 0.5


def test_exactly_between_two_pixels_the_even_one_is_read():
    row = np.arange(9)[None]
    phi = np.array([[[0, x / 8] for x in (0.5, 1.5, 2.5, 3.5, 6.5, 7.5)]])
    even = [0, 2, 2, 4, 6, 8]
    assert sample(row, phi).tolist() == [even]
    assert sample(row.T, phi[..., ::-1]).tolist() == [even]
    on_torch = sample_tensor(torch.from_numpy(row)[None, None], torch.from_numpy(phi)[None])
    assert on_torch.tolist() == [[[even]]]


def test_the_uniform_tensor_of_the_images_size_reads_every_pixel():
    labels = np.random.default_rng(0).integers(0, 19, (37, 53), dtype=np.uint8)
    np.testing.assert_array_equal(sample(labels, uniform_tensor(37, 53)), labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, bool])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("phi_dtype", [np.float32, np.float64])
def test_values_are_copied_as_they_are(dtype, channels, phi_dtype):
    array = np.random.default_rng(0).integers(0, 200, (9, 14, *channels)).astype(dtype)
    sampled = sample(array, random_tensor(0, 5, 7, phi_dtype))
    assert sampled.dtype == dtype
    assert sampled.shape == (5, 7, *channels)
    assert np.isin(sampled, array).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32])
def test_tensors_read_the_same_pixels(device, dtype):
    images = torch.arange(2 * 3 * 11 * 17).view(2, 3, 11, 17).remainder(251).to(dtype)
    phis = np.stack([random_tensor(seed, 6, 5, np.float32) for seed in range(2)])
    sampled = sample_tensor(images.to(device), torch.from_numpy(phis).to(device)).cpu()
    assert sampled.dtype == dtype
    for image, phi, result in zip(images, phis, sampled, strict=True):
        expected = sample(image.permute(1, 2, 0).float().numpy(), phi)
        np.testing.assert_array_equal(result.permute(1, 2, 0).float(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_moving_points_read_the_same_pixels_and_move_along_the_slope(device):
    """The derivative of bilinear interpolation at a point: differences of the four pixels around it."""
    height, width = 7, 9
    image = torch.rand(2, 3, height, width, dtype=torch.float64, device=device)
    phi = torch.rand(2, 4, 5, 2, dtype=torch.float64, device=device, requires_grad=True)
    found = sample_moving(image, phi)
    assert torch.allclose(found, sample_tensor(image, phi), atol=1e-12)
    weights = torch.rand_like(found)
    (found * weights).sum().backward()
    y, x = (phi.detach() * torch.tensor([height - 1, width - 1], device=device)).unbind(-1)
    top, left = y.floor().long(), x.floor().long()
    n = torch.arange(2, device=device)[:, None, None]
    a, b, c, d = (image[n, :, top + i, left + j] for i in (0, 1) for j in (0, 1))
    right, down = (x - left)[..., None], (y - top)[..., None]
    by_row = (c - a) * (1 - right) + (d - b) * right
    by_column = (b - a) * (1 - down) + (d - c) * down
    expected = [
        (slope * weights.movedim(1, -1)).sum(-1) * (length - 1)
        for slope, length in ((by_row, height), (by_column, width))
    ]
    assert torch.allclose(phi.grad, torch.stack(expected, -1))


def test_gradients_flow_to_the_image():
    images = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    phi = torch.from_numpy(np.stack([random_tensor(seed, 4, 3) for seed in range(2)]))
    assert torch.autograd.gradcheck(lambda x: sample_tensor(x, phi), (images,))


@settings(deadline=None)
@given(st.integers(0, 99), grids, grids, st.sampled_from([np.float32, np.float64]))
def test_resizing_is_bilinear_between_the_same_corners(seed, grid, size, dtype):
    phi = random_tensor(seed, *grid, dtype)
    resized = resize_tensor(phi, size)
    assert resized.dtype == dtype
    planes = torch.from_numpy(phi).permute(2, 0, 1)[None].double()
    expected = F.interpolate(planes, size, mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
    np.testing.assert_allclose(resized, expected, rtol=0, atol=np.finfo(dtype).eps * 16)
    assert (resized[0, :, 0] == 0).all()
    assert (resized[-1, :, 0] == 1).all()
    assert (resized[:, 0, 1] == 0).all()
    assert (resized[:, -1, 1] == 1).all()


@given(grids, st.tuples(st.integers(2, 200), st.integers(2, 200)))
def test_a_uniform_tensor_stays_uniform(grid, size):
    np.testing.assert_allclose(
        resize_tensor(uniform_tensor(*grid), size), uniform_tensor(*size), rtol=0, atol=1e-15
    )


def test_a_batch_on_torch_is_resized_with_gradients():
    phi = torch.from_numpy(np.stack([random_tensor(seed, 4, 3) for seed in range(2)])).requires_grad_()
    resized = resize_tensor(phi, (7, 9))
    assert resized.shape == (2, 7, 9, 2)
    np.testing.assert_array_equal(resized[1].detach(), resize_tensor(phi[1].detach().numpy(), (7, 9)))
    assert torch.autograd.gradcheck(lambda x: resize_tensor(x, (5, 6)), (phi,))


def test_a_grid_of_one_line_is_refused():
    with pytest.raises(ValueError, match=r"size is \(1, 8\): a sampling grid has at least 2 x 2 points"):
        resize_tensor(uniform_tensor(3, 3), (1, 8))
