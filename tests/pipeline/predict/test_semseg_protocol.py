"""Windows, scales and mirror images beside the test of PSPNet's code (hszhao/semseg, `tool/test.py`), written
anew.

Both take the same windows of the same scaled images, pad with the same colour by the same number of pixels on
each side, and add up the same probabilities. They are equal to rounding:

- 1e-6 where both resize without error. Probabilities of windows, their sums and resized shares are float32
  here; sums are float64 there.
- 1e-5 with OpenCV's resizing of the image (as float32) and of the probabilities, as there. Its positions are
  float32, so its error grows with the image: 4e-6 at 100 pixels, 5e-5 at 1000, where ten of half a million
  labels differ.

Labels are the same but where two classes are closer than that.
"""

from itertools import product
from math import ceil

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.ops.normalisation import MEAN, STD
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows, predict_windows
from tests.networks import assert_same_labels, narrow, random_image

torch.set_num_threads(1)

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of all its configurations
CLASSES = 5


class Small(nn.Module):
    """Sees the whole of its input, and its border; its classes are far apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, CLASSES, 3, padding=1)

    def forward(self, x):
        return 4 * self.conv(x) + x.mean((2, 3), keepdim=True)[:, :1]


def by_opencv(image, size):
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def by_torch(image, size):
    """The same without rounding to speak of."""
    x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0).contiguous().numpy()


def scaled_size(height, width, longer):
    """Of an image that is `longer` pixels on its longer side."""
    if height > width:
        return longer, round(longer / float(height) * width)
    return round(longer / float(width) * height), longer


def semseg(network, image, crop, base_size, scales, flip, resize):
    """classes x H x W float64: the mean over the scales."""
    height, width, _ = image.shape
    total = np.zeros((height, width, CLASSES))
    for scale in scales:
        size = scaled_size(height, width, round(scale * base_size))
        total += of_one_scale(network, resize(np.float32(image), size), crop, flip, resize, (height, width))
    return (total / len(scales)).transpose(2, 0, 1)


def of_one_scale(network, image, crop, flip, resize, size):
    height, width, _ = image.shape
    pads = [max(crop - n, 0) for n in (height, width)]
    top, left = (pad // 2 for pad in pads)
    border = (top, pads[0] - top, left, pads[1] - left)
    padded = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=MEAN)
    stride = ceil(crop * (2 / 3))
    rows, columns = (range(ceil((n - crop) / stride) + 1) for n in padded.shape[:2])
    sums, counts = np.zeros((*padded.shape[:2], CLASSES)), np.zeros((*padded.shape[:2], 1))
    for row in rows:
        for column in columns:
            bottom = min(row * stride + crop, padded.shape[0])
            right = min(column * stride + crop, padded.shape[1])
            window = np.s_[bottom - crop : bottom, right - crop : right]
            sums[window] += of_one_window(network, padded[window], flip)
            counts[window] += 1
    mean = (sums / counts)[top : top + height, left : left + width]
    return resize(np.ascontiguousarray(mean), size)


@torch.no_grad()
def of_one_window(network, window, flip):
    x = torch.from_numpy(window).float().permute(2, 0, 1)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    probabilities = network(torch.stack([x, x.flip(2)]) if flip else x[None]).softmax(1)
    mean = (probabilities[0] + probabilities[1].flip(2)) / 2 if flip else probabilities[0]
    return mean.permute(1, 2, 0).numpy()


def assert_equal(network, image, crop, base_size, scales=SCALES, flip=True):
    spec = WindowSpec(scales, flip, crop, base_size=base_size)
    predictor = WindowPredictor(network, torch.device("cpu"), "fp32")
    plan = plan_windows(image.shape[:2], spec)
    own = predict_windows(predictor, plan, image, scores=True)
    exact, theirs = (
        semseg(network, image, crop, base_size, scales, flip, resize) for resize in (by_torch, by_opencv)
    )
    np.testing.assert_allclose(own, exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-5)
    assert_same_labels(predict_windows(predictor, plan, image), theirs, 1e-5)


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.integers(15, 70),
    st.integers(30, 120),
    st.lists(st.sampled_from(SCALES), min_size=1, max_size=3, unique=True),
    st.booleans(),
)
@example((61, 83), 57, 100, SCALES, True)  # larger and smaller than the window
@example((90, 47), 33, 60, SCALES, False)
@example((40, 31), 200, 64, SCALES, True)  # smaller at every scale, padded by odd numbers
@example((21, 120), 50, 120, SCALES, True)  # on one side
@example((64, 64), 57, 64, SCALES, True)
@example((72, 60), 50, 60, (1.25,), True)  # 75 x 62.5 pixels
def test_equal_to_semsegs_test(size, crop, base_size, scales, flip):
    assert_equal(Small().eval(), random_image(*size), crop, base_size, tuple(scales), flip)


def test_equal_with_a_pspnet():
    assert_equal(narrow("pspnet50"), random_image(61, 83), 57, 100)


def test_scaled_sizes_are_semsegs():
    """Some are halfway between two numbers of pixels: how they are computed decides."""
    assert WindowSpec(base_size=60).scaled((72, 60), 1.25) == (75, 63)
    for base_size in (473, 512, 713, 2048):
        spec = WindowSpec(base_size=base_size)
        for scale, longer in product(SCALES, range(100, 1100, 9)):
            for shorter in {longer // 2, longer * 3 // 4, longer * 7 // 10, longer}:
                for size in ((longer, shorter), (shorter, longer)):
                    assert spec.scaled(size, scale) == scaled_size(*size, round(scale * base_size))
