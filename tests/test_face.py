"""The public face: `import fullres`, and three lines that label a picture."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fullres
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import ImageError, read_image, write_png
from fullres.pipeline.predict.outputs import argmax
from tests.networks import assert_same_scores, narrow, random_image, scores_at_once, with_statistics

DOCUMENT = Path(__file__).parents[1] / "docs/python.md"


def test_import_is_light():
    code = "import sys, fullres; print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names():
    assert dir(fullres) == sorted(fullres.__all__)
    assert all(getattr(fullres, name) is not None for name in fullres.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        fullres.lable  # noqa: B018
    assert issubclass(ImageError, fullres.FullresError)


def small():
    torch.manual_seed(0)
    return with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 5, 1)
        )
    )


@pytest.mark.parametrize("size", [(1, 1), (37, 61)])
def test_ones_own_network_at_full_resolution(size):
    tree, image = fullres.split_merge(small()), random_image(*size)
    expected = scores_at_once(tree, image)
    assert_same_scores(fullres.predict(image, tree, scores=True, precision="fp32"), expected)
    labels = fullres.predict([image, image], tree, precision="fp32", memory_budget=80 << 20)
    assert len(labels) == 2
    np.testing.assert_array_equal(labels[0], expected.argmax(0))
    np.testing.assert_array_equal(labels[1], expected.argmax(0))


def test_any_network_on_the_whole_image(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small()

        def forward(self, x):
            return nn.functional.interpolate(self.network(x), x.shape[-2:])

    network, image = Whole().eval(), random_image(40, 50)
    write_png(tmp_path / "x.png", image)
    scores = fullres.predict(tmp_path / "x.png", network, scores=True, precision="fp32")
    assert_same_scores(scores, torch.tensor(scores_at_once(network, image)).softmax(0).numpy())
    np.testing.assert_array_equal(fullres.predict(image, network, precision="fp32"), argmax(scores))


def test_networks_by_name_and_file(tmp_path):
    network = narrow("fcn8s18")
    path = tmp_path / "w.safetensors"
    save_weights(network, path, WeightsInfo("fcn8s18", 1 / 16, 5))
    image = random_image(64, 96)
    expected = fullres.predict(image, network, precision="fp32")
    np.testing.assert_array_equal(fullres.predict(image, fullres.load(path), precision="fp32"), expected)
    assert not fullres.load("smp18").training


def of_shape(shape, dtype=np.uint8):
    return fullres.predict(np.zeros(shape, dtype), fullres.split_merge(small()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: fullres.load("smp19"), "model is 'smp19': no such file, and none of smp18"),
        (lambda: fullres.load("pspnet50"), "model is 'pspnet50': no weights come with it"),
        (lambda: fullres.predict("no.png", fullres.split_merge(small())), "no.png: no such file"),
        (
            lambda: of_shape((4, 5)),
            r"shape \(4, 5\)",
        ),
        (lambda: of_shape((4, 5, 3), float), "image is float64"),
        (
            lambda: of_shape((0, 5, 3)),
            "uint8 H x W x 3",
        ),
        (lambda: fullres.predict(random_image(9, 9), small(), precision="fp8"), "precision is 'fp8'"),
        (
            lambda: fullres.predict(random_image(9, 9), fullres.split_merge(small()), memory_budget=1),
            "memory budget is 0 MiB",
        ),
        (lambda: fullres.split_merge(nn.Sequential(nn.Linear(3, 3))), "has no full-resolution form"),
    ],
)
def test_errors_have_one_base_and_one_line(wrong, said):
    with pytest.raises(fullres.FullresError, match=said) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_the_document(tmp_path, monkeypatch):
    """Every block of docs/python.md, one after the other, in a folder with a picture."""
    monkeypatch.chdir(tmp_path)
    write_png("street.png", random_image(96, 128))
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["labels"].shape == read_image("street.png").shape[:2]
