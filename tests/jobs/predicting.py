"""What the tests of `fullres predict` share."""

import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import write_png
from tests.networks import narrow
from tests.scenes import render_scene


def saved(path, name="smp18", classes=11, known="camvid", dtype=torch.float32):
    save_weights(narrow(name, 1 / 16, classes), path, WeightsInfo(name, 1 / 16, classes, known), dtype)
    return path


def camvid_of_scenes(folder, height, width):
    """Two drawn scenes for training and the same for validation, laid out as CamVid is."""
    for split in ("train", "val"):
        for seed in (1, 2):
            image, labels = render_scene(seed, height, width)
            write_png(folder / f"{split}/{seed}.png", image)
            labels[labels > 10] = 11
            write_png(folder / f"{split}annot/{seed}.png", labels)


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])
