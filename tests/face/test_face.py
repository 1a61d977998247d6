"""The public face: `import fullres`, and three lines that label a picture."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fullres
from fullres.cluster.connection import ray_cluster
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import ImageError, read_labels, write_png
from fullres.pipeline.datasets import DATASETS
from fullres.pipeline.predict.outputs import argmax
from fullres.pipeline.targets.compute import TargetSpec, targets_of
from tests.models.full_resolution.public_networks import public
from tests.networks import assert_same_scores, narrow, random_image, scores_at_once, with_statistics
from tests.shared import CHECKPOINTS, DATA

DOCUMENTS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def local_cluster():
    """One for all tests here: `predict` takes the cluster that the process is connected to."""
    with ray_cluster(None, 2):
        yield


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
        (lambda: fullres.load("pspnet50"), "no weights come with pspnet50, name a file"),
        (lambda: fullres.load("smp18", dataset="voc2012"), "no weights come with smp18 for voc2012, name a"),
        (lambda: fullres.load("smp18", dataset="kitti"), "dataset is 'kitti': one of cityscapes, camvid,"),
        (
            lambda: fullres.load("w.safetensors", dataset="camvid"),
            "dataset is 'camvid': a file says by",
        ),
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
        (lambda: fullres.split_merge(nn.Sequential(nn.AdaptiveMaxPool2d(1))), "has no full-resolution form"),
    ],
)
def test_errors_have_one_base_and_one_line(wrong, said):
    with pytest.raises(fullres.FullresError, match=said) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def blocks_of(document):
    return re.findall(r"```python\n(.*?)```", (DOCUMENTS / document).read_text(), re.S)


@pytest.fixture
def where_documents_run(tmp_path, monkeypatch):
    """A folder with a picture."""
    monkeypatch.chdir(tmp_path)
    write_png("street.png", random_image(96, 128))


def test_the_document_of_python(where_documents_run):
    """Every block, one after the other."""
    names = {}
    for block in blocks_of("python.md"):
        exec(block, names)
    assert names["labels"].shape == (96, 128)
    assert names["phi"].shape == (20, 30, 2)
    assert names["found"].largest > 0


def test_the_document_of_networks_of_ones_own(where_documents_run):
    """Every block, one after the other; the last with the published weights, where they are."""
    first, *others, last = blocks_of("full-resolution-of-your-network.md")
    names = {"network": small()}
    for block in (first, *others):
        exec(block, names)
    assert names["labels"].shape == (96, 128)
    assert names["found"].largest > 0
    weights = CHECKPOINTS / "espnet_c_cityscapes" / "espnet_p_2_q_8.pth"
    if not weights.exists():
        pytest.skip(f"{weights} is not there")
    Path(weights.name).symlink_to(weights)
    exec(last, names)
    assert names["labels"].shape == (96, 128)


@pytest.mark.slow
def test_weights_of_espnet_find_streets():
    """The document's network, full resolution, on a real frame: most of the pixels that both data sets name
    alike, and more than with the channels turned round."""
    weights = CHECKPOINTS / "espnet_c_cityscapes" / "espnet_p_2_q_8.pth"
    frame = DATA / "camvid/val/0016E5_07959.jpg"
    if not (weights.exists() and frame.exists()):
        pytest.skip(f"{weights} or {frame} is not there")
    names = {}
    for block in blocks_of("full-resolution-of-your-network.md")[1:2]:
        exec(block, names)
    network = names["ESPNetC"]()
    network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
    full = fullres.split_merge(network.eval())
    how = fullres.Normalisation((72.39, 82.91, 73.16), (11556.6, 11768.25, 11452.05), "bgr")
    truth = read_labels(DATA / "camvid/valannot/0016E5_07959.png")
    same = {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 18}  # CamVid's to Cityscapes'
    known = np.isin(truth, list(same))
    expected = np.vectorize(same.get)(np.where(known, truth, 0))
    right = {}
    for order in ("bgr", "rgb"):
        labels = fullres.predict(frame, full, normalisation=replace(how, order=order), precision="fp32")
        right[order] = (labels == expected)[known].mean()
    assert right["bgr"] > 0.5
    assert right["bgr"] > right["rgb"]


# --- networks of one's own ---


def other_channels(channels):
    torch.manual_seed(0)
    network = with_statistics(
        nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
    )
    tree = fullres.split_merge(network)
    tree.normalisation = fullres.Normalisation((90.0,) * channels, (40.0,) * channels)
    return tree


def as_it_reads(tree, image):
    """What `tree` gives for an image that is normalised here, with other operations."""
    how = tree.normalisation
    pixels = image[..., ::-1] if how.order == "bgr" else image
    x = (torch.from_numpy(pixels.astype(np.float64)) - torch.tensor(how.mean)) / torch.tensor(how.std)
    with torch.no_grad():
        return copy.deepcopy(tree).double()(x.permute(2, 0, 1)[None])[0].numpy()


@pytest.mark.parametrize("workers", [None, 1])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels, workers, local_cluster):
    tree = other_channels(channels)
    images = [np.random.default_rng(i).integers(0, 256, (33, 47 + i, channels), np.uint8) for i in range(2)]
    found = fullres.predict(
        images, tree, scores=True, precision="fp32", workers=workers, memory_budget=1 << 29
    )
    for scores, image in zip(found, images, strict=True):
        assert_same_scores(scores, as_it_reads(tree, image))


def test_other_means_and_order(local_cluster):
    tree, image = fullres.split_merge(small()), random_image(37, 61)
    how = fullres.Normalisation((72.4, 82.9, 73.2), (45.3, 46.2, 44.9), "bgr")
    for workers in (None, 1):
        scores = fullres.predict(
            image,
            tree,
            normalisation=how,
            scores=True,
            precision="fp32",
            workers=workers,
            memory_budget=1 << 29,
        )
        declared = fullres.split_merge(small())
        declared.normalisation = how
        assert_same_scores(scores, as_it_reads(declared, image))


def test_the_same_network_in_windows_reads_alike(local_cluster):
    class Whole(nn.Module):
        normalisation = fullres.Normalisation((90.0,), (40.0,))

        def __init__(self):
            super().__init__()
            self.network = nn.Conv2d(1, 5, 3, 1, 1)

        def forward(self, x):
            return self.network(x)

    torch.manual_seed(0)
    network, image = Whole().eval(), random_image(20, 30)[..., :1]
    here = fullres.predict(image, network, scores=True, precision="fp32")
    x = (torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] - 90) / 40
    with torch.no_grad():
        assert_same_scores(here, network(x)[0].softmax(0).numpy())
    there = fullres.predict(image, network, scores=True, precision="fp32", workers=1, memory_budget=1 << 29)
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
    "name", ["weight standardised", "shufflenet", pytest.param("frozen", marks=pytest.mark.slow)]
)
def test_public_networks_through_a_worker(name, local_cluster):
    """Whatever a worker gets of a network is what the network is."""
    tree, image = fullres.split_merge(public(name)), random_image(61, 90)
    with torch.no_grad():
        expected = scores_at_once(tree, image)
    for budget in (72 << 20, 1 << 30):
        scores = fullres.predict(image, tree, scores=True, precision="fp32", workers=1, memory_budget=budget)
        assert_same_scores(scores, expected)


def test_grey_files_for_networks_of_one_channel(tmp_path):
    tree, image = other_channels(1), random_image(20, 30)
    write_png(tmp_path / "grey.png", np.repeat(image[..., :1], 3, -1))
    write_png(tmp_path / "colour.png", image)
    np.testing.assert_array_equal(
        fullres.predict(tmp_path / "grey.png", tree, precision="fp32"),
        fullres.predict(image[..., :1], tree, precision="fp32"),
    )
    with pytest.raises(ImageError, match=r"colour\.png: a colour image, and the network reads one channel"):
        fullres.predict(tmp_path / "colour.png", tree)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: fullres.Normalisation((1.0,), (1.0, 2.0)), "1 means and 2 deviations"),
        (lambda: fullres.Normalisation((1.0,), (0.0,)), "std above 0"),
        (lambda: fullres.Normalisation((float("nan"),), (1.0,)), "must be finite"),
        (lambda: fullres.Normalisation((1.0,), (1.0,), "bgr"), "order is 'bgr' of 1 channels"),
        (
            lambda: fullres.predict(
                random_image(9, 9), other_channels(4), normalisation=fullres.Normalisation()
            ),
            "the network reads 4 channels, its normalisation is of 3",
        ),
        (lambda: fullres.predict(random_image(9, 9), small(), workers=0), "workers is 0: 1 or more"),
        (lambda: fullres.predict(random_image(9, 9), small(), device="tpu"), "device is 'tpu': cpu or cuda"),
        (lambda: fullres.predict(random_image(9, 9), small(), address="a:1"), "address is 'a:1'"),
        (lambda: fullres.targets(np.zeros((4, 4)), "scenes"), "labels are float64"),
        (lambda: fullres.targets(np.full((4, 4), 77, np.uint8), "scenes"), r"ids \[77\] are no trainIds"),
        (lambda: fullres.targets(np.zeros((4, 4), np.uint8), "scene"), "scene"),
        (lambda: fullres.targets(np.zeros((4, 4), np.uint8), "scenes", cpp=(4, 6)), "cpp is 4,6"),
        (lambda: fullres.targets(np.zeros((4, 4), np.uint8), "scenes", grids=(4, 6)), "grids"),
        (lambda: fullres.targets("no.png", "scenes"), "no.png: no such file"),
    ],
)  # fmt: skip
def test_errors_of_ones_own(wrong, said):
    with pytest.raises(fullres.FullresError, match=said) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_targets_are_those_of_the_job(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (33, 47)).astype(np.uint8)
    write_png(tmp_path / "x.png", labels)
    spec = TargetSpec(
        (4, 6), target_classes=DATASETS["scenes"].target_classes or None, cpp=(2, 4), distance=True
    )
    expected = targets_of(labels, DATASETS["scenes"], spec)
    from_array, from_file = fullres.targets(
        [labels, tmp_path / "x.png"], "scenes", grid=(4, 6), cpp=(2, 4), distance=True
    )
    assert from_array.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(from_array[name], values)
        np.testing.assert_array_equal(from_file[name], values)
