"""Labelling from a few points, step by step beside the engine that does it."""

import copy

import cv2
import numpy as np
import pytest
import torch

from fullres.models.downsampler import Downsampler
from fullres.models.weights import WeightsError, WeightsInfo, save_weights
from fullres.ops.errors import NetworkError
from fullres.ops.interpolate import interpolate_labels, interpolate_scores
from fullres.ops.normalisation import Normalisation, normalise
from fullres.ops.sampling import resize_tensor, sample
from fullres.ops.sampling_solve import sampling_tensor, uniform_tensor
from fullres.pipeline.data.images import ImageError
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.adaptive import adaptive_engine, largest_size
from fullres.pipeline.predict.engines import Resources, label_image
from fullres.pipeline.predict.sampler import Sampler, sampled_and_back, sampler_of
from fullres.pipeline.predict.schedule import BudgetError
from fullres.pipeline.predict.windows import WindowSpec
from tests.models import base
from tests.networks import narrow, random_image
from tests.scenes import render_scene

torch.set_num_threads(1)

CPU = torch.device("cpu")
ONE = Resources(1, 1 << 30, "fp32", "cpu")


def downsampler(grid=8):
    return base.as_if_trained(lambda: Downsampler(grid, 8)).eval()


def labelled(network, sampler, image, scores=False):
    engine = adaptive_engine(network, sampler)
    return label_image(engine, engine.predictor(CPU, "fp32"), image, ONE, scores)


def by_hand(network, where, size, image):
    """Classes and logits of every pixel, by the functions that the paper's steps are."""
    height, width, _ = image.shape
    if where is None:
        phi = uniform_tensor(*size)
    else:
        small, reduced = where.small, image
        if height >= small[0] and width >= small[1]:  # else the downsampler itself enlarges
            reduced = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
        with torch.no_grad():
            phi = where(normalise(torch.from_numpy(reduced)[None], torch.float32))[0].numpy()
        phi = resize_tensor(phi, size)
    phi = phi.astype(np.float32)
    points = np.float64(phi) * (height - 1, width - 1)
    rows, columns = np.rint(points).astype(int).transpose(2, 0, 1)
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # as the engine has it, to the bit
    with torch.no_grad():
        logits = network(normalise(torch.from_numpy(image[rows, columns])[None], torch.float32))[0].numpy()
    return interpolate_labels(logits, phi, (height, width)), interpolate_scores(logits, phi, (height, width))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("size", "points"), [((97, 131), (64, 64)), ((64, 200), (33, 70)), ((300, 40), (32, 32))]
)
@pytest.mark.parametrize("name", ["unet", "pspnet50"])
def test_is_what_its_steps_are(name, size, points, adaptive):
    network, image = narrow(name), random_image(*size)
    where = downsampler() if adaptive else None
    classes, scores = by_hand(network, where, points, image)
    sampler = Sampler(points, where)
    assert np.array_equal(labelled(network, sampler, image), classes)
    assert np.array_equal(labelled(network, sampler, image, scores=True), scores)
    assert classes.shape == size


@pytest.mark.parametrize("size", [(1, 1100), (1050, 1), (7, 200), (33, 32)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_images_with_fewer_rows_or_columns_than_points(size, adaptive):
    network, where, image = narrow("unet"), downsampler() if adaptive else None, random_image(*size)
    classes, _ = by_hand(network, where, (32, 32), image)
    assert np.array_equal(labelled(network, Sampler((32, 32), where), image), classes)


def test_images_with_fewer_pixels_than_points():
    with pytest.raises(ImageError, match=r"^40x20 pixels are fewer than the 33x32 to label it from$"):
        labelled(narrow("unet"), Sampler((32, 33)), random_image(20, 40))


def test_what_is_sampled_is_all_that_workers_get():
    image, pixels = random_image(300, 400), 64 * 48 * 3
    for where, grid in ((None, 0), (downsampler(), 8 * 8 * 2 * 4)):
        engine = adaptive_engine(narrow("unet"), Sampler((64, 48), where))
        (part,) = engine.parts(engine.plan((300, 400), ONE, False), image)
        assert part.nbytes == pixels + grid
        assert np.array_equal(part.inner, sample(image, engine.sampler.at(image)))


def test_the_small_image_is_a_mean_as_in_training():
    """To the rounding of its pixels to whole numbers, half of one in 255."""
    where, image = downsampler(), random_image(200, 320)
    sampler = Sampler((8, 8), where)
    images = torch.from_numpy(image)[None]
    one = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        exact = where(normalise(images, torch.float32))[0].numpy()
        rounded = where(normalise(torch.from_numpy(one)[None], torch.float32))[0].numpy()
    assert np.array_equal(sampler.at(image), rounded)
    assert np.abs(exact - rounded).max() < 0.02


@pytest.mark.parametrize("size", [(32, 32), (20, 77), (150, 211)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_batches_are_sampled_where_images_are(adaptive, size):
    sampler = Sampler((16, 24), downsampler() if adaptive else None)
    images = [random_image(*size, seed) for seed in (1, 2)]
    labels = [np.random.default_rng(i).integers(0, 5, size, np.uint8) for i in (1, 2)]
    batch = [torch.from_numpy(np.stack(x)) for x in (images, labels)]
    sampled, classes = sampler.both(*batch)
    assert (sampled.shape, classes.shape) == ((2, 16, 24, 3), (2, 16, 24))
    for i in (0, 1):
        phi = np.float64(sampler.at(images[i]))
        rows, columns = (np.rint(phi[..., a] * (size[a] - 1)).astype(int) for a in (0, 1))
        assert np.array_equal(sampled[i], images[i][rows, columns])
        assert np.array_equal(classes[i], labels[i][rows, columns])


def test_more_of_the_truth_is_left_near_boundaries():
    kept = {"uniform": 0, "adaptive": 0}
    for seed in range(6):
        _, labels = render_scene(seed, 128, 192)
        counted = labels != 255
        tensors = {"uniform": uniform_tensor(32, 32), "adaptive": sampling_tensor(labels, (32, 32), 0.1)}
        for name, phi in tensors.items():
            back = sampled_and_back(labels, phi, len(dataset("scenes").classes))
            kept[name] += (back == labels)[counted].sum()
    assert kept["adaptive"] > kept["uniform"]


def test_a_point_without_a_class_says_nothing():
    labels = np.full((9, 9), 255, np.uint8)
    labels[:, 5:] = 3
    assert (sampled_and_back(labels, uniform_tensor(9, 9), 5)[:, 5:] == 3).all()


def test_plans_count_both_networks_and_keep_the_budget():
    network, where = narrow("unet"), downsampler()
    uniform = adaptive_engine(network, Sampler((64, 64))).plan((500, 800), ONE, False)
    adaptive = adaptive_engine(network, Sampler((64, 64), where)).plan((500, 800), ONE, False)
    assert adaptive.grains[0].macs > uniform.grains[0].macs > 0
    tiny = adaptive_engine(network, Sampler((64, 64), where)).plan((64, 65), ONE, True)
    assert tiny.grains[0].macs == adaptive.grains[0].macs
    little = Resources(1, 1 << 20, "fp32", "cpu")
    with pytest.raises(BudgetError, match=r"budget is 1 MiB: at least \d+ MiB needed for 96x64 points"):
        adaptive_engine(network, Sampler((64, 96))).plan((500, 800), little, False)
    more = Resources(1, 66 << 20, "fp32", "cpu")
    said = "^2 of 66 MiB are for the points and the result, of the rest: memory budget is 64 MiB: at least 65"
    with pytest.raises(BudgetError, match=said):
        adaptive_engine(network, Sampler((64, 96))).plan((500, 800), more, False)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("name", ["smp18", "unet"])
def test_around_any_engine(name, scores):
    """Many points in several grains: tiles of split-merge within a budget, windows. What is interpolated is
    what the inner engine says of the sampled image."""
    network, where, image = narrow(name), downsampler(), random_image(200, 170)
    spec = WindowSpec((1.0, 0.75), True, 64) if name == "unet" else None
    little, points = Resources(3, 100 << 20, "fp32", "cpu"), (192, 177)
    engine = adaptive_engine(network, Sampler(points, where), spec, show_points=True)
    inner = engine.inner
    phi = Sampler(points, where).at(image)
    values = label_image(inner, inner.predictor(CPU, "fp32"), sample(image, phi), little, True)
    back = interpolate_scores if scores else interpolate_labels
    found = label_image(engine, engine.predictor(CPU, "fp32"), image, little, scores)
    assert len(engine.plan((200, 170), little, scores).grains) > 1
    assert np.array_equal(found.result, back(values, phi, (200, 170)))
    assert np.array_equal(found.phi, phi)
    assert np.array_equal(found.at_points, values.argmax(0))


def test_a_plan_of_several_grains_counts_the_downsampler_once():
    points, little = (192, 177), Resources(3, 100 << 20, "fp32", "cpu")
    plan = adaptive_engine(narrow("smp18"), Sampler(points, downsampler())).plan((200, 170), little, False)
    uniform = adaptive_engine(narrow("smp18"), Sampler(points)).plan((200, 170), little, False)
    assert len(plan.grains) == len(uniform.grains) > 1
    first, *others = (a.macs - b.macs for a, b in zip(plan.grains, uniform.grains, strict=True))
    assert first > 0
    assert set(others) == {0}
    assert plan.schedule.peak_bytes <= little.memory_budget


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_largest_size_that_operations_allow(adaptive):
    engine = adaptive_engine(narrow("unet"), Sampler((2, 2), downsampler() if adaptive else None))

    def operations(side):
        plan = engine.with_size((side, side)).plan((side, side), ONE, False)
        return 2e-9 * sum(grain.macs for grain in plan.grains)

    for side in (8, 64, 200):
        assert largest_size(engine, operations(side), ONE) == (side, side)
        less = None if side == 8 else (side - 8, side - 8)
        assert largest_size(engine, 0.999 * operations(side), ONE) == less
    little = Resources(1, 150 << 20, "fp32", "cpu")
    within_memory = largest_size(engine, 1e9, little)
    assert 8 < within_memory[0] < 2048
    engine.with_size(within_memory).plan(within_memory, little, False)
    above = (within_memory[0] + 8,) * 2
    with pytest.raises(BudgetError):
        engine.with_size(above).plan(above, little, False)


def test_a_downsampler_reads_rgb():
    network = narrow("unet")
    network.normalisation = Normalisation((90.0,), (40.0,))
    adaptive_engine(network, Sampler((8, 8)))  # a uniform grid reads any image
    with pytest.raises(NetworkError, match=r"^the network reads 1 channels: a downsampler reads 3, RGB$"):
        adaptive_engine(network, Sampler((8, 8), downsampler()))


def test_weights_of_something_else(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_weights(narrow("unet"), path, WeightsInfo("unet", 1 / 16, 5))
    with pytest.raises(WeightsError, match=r"unet\.safetensors: of a network that labels images, not of a d"):
        sampler_of((8, 8), path, CPU)
    torch.save(narrow("unet").state_dict(), tmp_path / "unet.pth")
    with pytest.raises(WeightsError, match=r"unet\.pth: they do not say which network they are of$"):
        sampler_of((8, 8), tmp_path / "unet.pth", CPU)
    with pytest.raises(WeightsError, match="no such file"):
        sampler_of((8, 8), tmp_path / "none.pth", CPU)
