"""What the tests of `fullres predict` share."""

import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.weights import WeightsInfo, save_weights
from tests.networks import narrow


def saved(path, name="smp18", classes=11, known="camvid", dtype=torch.float32):
    save_weights(narrow(name, 1 / 16, classes), path, WeightsInfo(name, 1 / 16, classes, known), dtype)
    return path


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])
