"""Each network learns 32 drawn scenes: trained by `fit` for a fraction of a minute, read back from its file,
and scored on the same scenes.

The bounds are held against predictions that don't look at the image. The best constant one has a cross
entropy of 2.21 and a mean IoU of 1.6 % (all pixels road). The best by place alone, the share of each class at
each pixel over all scenes, has 1.19 and 12.9 %: every bound is beyond that too, so that what is learnt comes
from the image.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fullres.models.auxiliary import TrainingOutput
from fullres.models.seethrough import HEAD_SCALES, SeeThroughNetOutput
from fullres.models.unet import DoubleUNet
from fullres.models.weights import load_network
from fullres.ops.losses import sampling_tensor_loss
from fullres.ops.metrics import class_iou, confusion_matrix, mean_score
from fullres.ops.normalisation import normalise
from fullres.ops.sampling_solve import sampling_tensor
from fullres.pipeline.data.images import write_png
from fullres.pipeline.train.loop import TrainingConfig, fit
from fullres.pipeline.train.objectives import objective
from tests.scenes import render_scene

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

CLASSES = 19
SIZE = (64, 128)
CONSTANT_LOSS, CONSTANT_IOU = 2.2143, 0.0160
PLACE_LOSS, PLACE_IOU = 1.1928, 0.1288


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images and labels, 32 x H x W x 3 and 32 x H x W, and the folder that holds them as files."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn = [render_scene(seed, *SIZE) for seed in range(32)]
    for seed, (image, labels) in enumerate(drawn):
        write_png(folder / f"images/{seed}.png", image)
        write_png(folder / f"labels/{seed}.png", labels)
    images, labels = (np.stack(part) for part in zip(*drawn, strict=True))
    return images, labels, folder


@pytest.fixture(scope="module")
def learn(scenes, tmp_path_factory):
    """Train, and return the mean loss of the last twenty steps and the mean IoU on the scenes."""

    def run(name, width, steps, auxiliary="cross_entropy", **settings):
        images, labels, folder = scenes
        losses = []
        data = {"dataset": "scenes", "images": folder / "images", "labels": folder / "labels"}
        config = TrainingConfig(
            model={"name": name, "width": width, "auxiliary": auxiliary},
            data=data | {"in_memory": True}, out=tmp_path_factory.mktemp(name), steps=steps, batch_size=4,
            crop=SIZE, learning_rate=1e-2, weight_decay=1e-4, schedule="poly", **settings,
        )  # fmt: skip
        path = fit(config, torch.device("cpu"), lambda report: losses.append(report.loss))
        network, _ = load_network(name, Path(path))
        with torch.no_grad():
            logits = network(normalise(torch.from_numpy(images.copy()), torch.float32))
        predicted = logits.argmax(1).numpy().astype(np.uint8)
        return losses[-1], mean_score(class_iou(confusion_matrix(predicted, labels, CLASSES)))

    return run


def shares_by_place(labels):
    """Of each class at each pixel, over all scenes and their mirror images: C x H x W."""
    one_hot = F.one_hot(torch.from_numpy(labels).long(), CLASSES).movedim(-1, 1).double()
    return (one_hot + one_hot.flip(-1)).mean(0) / 2


def score(predicted, labels):
    return mean_score(class_iou(confusion_matrix(predicted.numpy().astype(np.uint8), labels, CLASSES)))


def test_what_predictions_score_that_do_not_look_at_the_image(scenes):
    _, labels, _ = scenes
    truth = torch.from_numpy(labels).long()
    place = shares_by_place(labels)
    for shares, loss, iou in (
        (place.mean((1, 2), keepdim=True).expand_as(place), CONSTANT_LOSS, CONSTANT_IOU),
        (place, PLACE_LOSS, PLACE_IOU),
    ):
        log_shares = shares.log().expand(len(truth), -1, -1, -1)
        assert F.nll_loss(log_shares, truth).item() == pytest.approx(loss, abs=1e-4)
        assert score(log_shares.argmax(1), labels) == pytest.approx(iou, abs=1e-4)


# Network, width, steps, settings; the weights of the cross entropies that add up to its loss; bounds of the
# loss and of the mean IoU.
CASES = (
    ("smp18", 0.25, 300, {"phases": (1, 1, 4, 4)}, 1, 0.95, 0.20),
    ("fcn32s18", 0.25, 400, {}, 1, 1.0, 0.22),
    ("fcn8s18", 0.25, 200, {}, 1, 0.95, 0.22),
    ("pspnet50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("dilatedfcn50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("upernet50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("ann50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("ccnet50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("dmnet50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("deeplabv3plus50", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("deeplabv3plus-xception", 0.125, 250, {}, 1.4, 1.5, 0.16),
    ("deeplabv3plus-mobilenet", 0.25, 250, {}, 1.4, 1.5, 0.16),
    ("hrnet18", 0.5, 150, {}, 1, 1.05, 0.16),
    ("ocrnet18", 0.5, 180, {}, 1.4, 1.6, 0.16),
    ("spgnet18", 0.25, 200, {}, 1, 0.95, 0.20),
    ("spgnet18x2", 0.25, 200, {}, 2, 2.05, 0.19),
    ("unet", 0.25, 200, {}, 1, 1.1, 0.16),
)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_learns_by_cross_entropy(learn, case):
    name, width, steps, settings, terms, loss_bound, iou_bound = case
    assert loss_bound < terms * PLACE_LOSS
    assert iou_bound > PLACE_IOU
    loss, iou = learn(name, width, steps, **settings)
    print(f"{name}: loss {loss:.3f}, mean IoU {iou:.3f}")
    assert loss < loss_bound
    assert iou > iou_bound


def by_place(labels, scales):
    """The shares of the classes by place for every scene, and logits of them as heads give them at `scales`,
    with a channel for ignored pixels, of which there are none."""
    place = shares_by_place(labels).clamp(1e-6, 1 - 1e-6).float().expand(len(labels), -1, -1, -1)
    heads = [F.pad(F.avg_pool2d(place, s), (0, 0, 0, 0, 0, 1), value=1e-6).log() for s in scales]
    return place, tuple(heads)


def test_learns_by_class_probabilities(learn, scenes):
    """Heads of class probabilities on every stage, in the place of cross entropy."""
    labels = scenes[1]
    place, heads = by_place(labels, (4, 8, 8, 8))
    output = TrainingOutput(place.log(), heads)
    blind = objective(output, torch.from_numpy(labels).long()).item()
    assert blind == pytest.approx(2.580, abs=1e-3)
    loss, iou = learn("pspnet50", 0.125, 250, auxiliary="class_probability")
    print(f"class probabilities: loss {loss:.3f}, mean IoU {iou:.3f}")
    assert loss < 2.2 < blind
    assert iou > 0.17


def test_seethroughnet_learns(learn, scenes):
    """A loss with RMI is far below 0 at its best."""
    labels = scenes[1]
    place, heads = by_place(labels, HEAD_SCALES)
    logits = place.logit()
    output = SeeThroughNetOutput(logits, logits, logits, heads, ())
    blind = objective(output, torch.from_numpy(labels).long()).item()
    assert blind == pytest.approx(3.281, abs=1e-3)
    loss, iou = learn("seethroughnet48", 0.125, 240)
    print(f"seethroughnet48: loss {loss:.3f}, mean IoU {iou:.3f}")
    assert loss < 2.2 < blind
    assert iou > 0.14


def test_double_unet_learns_where_to_sample(scenes):
    """A sampling tensor that is the same for all images has at best their mean's loss, 0.039."""
    images, labels, _ = scenes
    full = normalise(torch.from_numpy(images.copy()), torch.float32)
    small = F.interpolate(full, (32, 32), mode="area")
    truth = torch.from_numpy(np.stack([sampling_tensor(x, (8, 8), 1.0) for x in labels])).float()
    constant = sampling_tensor_loss(truth.mean(0).expand_as(truth), truth)
    assert constant.item() == pytest.approx(0.0389, abs=1e-4)
    torch.manual_seed(0)
    network = DoubleUNet(channels=32).train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for step in range(160):
        drawn = slice(step % 4 * 8, step % 4 * 8 + 8)
        loss = sampling_tensor_loss(network(small[drawn]), truth[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        evaluated = sampling_tensor_loss(network.eval()(small), truth)
    print(f"double U-Net: loss {np.mean(losses[-20:]):.5f}, evaluated {evaluated:.5f}")
    assert np.mean(losses[-20:]) < 0.004
    assert evaluated < 0.012
