"""A worker's memory stays within the budget, whatever the image's size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullres.cluster.memory import ENVIRONMENT

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def measure(model, size, budget, precision, workers, grains, width=0.25):
    """Grains of a plan in a process set up as a worker's. Their peaks are beyond the loaded network."""
    asked = {
        "model": model, "width": width, "size": size, "budget": budget * MIB, "precision": precision,
        "workers": workers, "grains": grains,
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.cluster.peak_memory", json.dumps(asked)]
    process = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def assert_within(told):
    assert told["predicted"] <= told["budget"]
    assert max(told["peaks"]) <= told["budget"], told
    assert max(told["peaks"]) >= 0.5 * told["predicted"]  # a prediction, not only a bound


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("budget", [128, 256])
def test_smp(budget, precision):
    assert_within(measure("smp18", (3000, 3000), budget, precision, 64, 2))


def test_fcn8s():
    assert_within(measure("fcn8s18", (3000, 3000), 128, "fp32", 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "width", "size", "budget", "workers"),
    [
        ("smp18", 0.25, (3000, 3000), 128, 64),
        ("smp18", 0.25, (10_000, 10_000), 128, 4000),
        ("smp18", 0.25, (10_000, 10_000), 512, 2000),
        ("smp18", 1, (1024, 2048), 256, 256),
        ("smp101", 0.25, (3000, 3000), 256, 256),
        ("smp101", 1, (1024, 2048), 192, 1024),
        ("fcn8s18", 0.25, (3000, 3000), 128, 1),
        ("fcn32s18", 0.25, (10_000, 10_000), 256, 1),
    ],
)
def test_many_grains(model, width, size, budget, workers, precision):
    told = measure(model, size, budget, precision, workers, 8, width)
    assert_within(told)
    assert len(told["peaks"]) == min(8, told["grains"])
