"""A worker's memory stays within the budget, whatever the image's size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullres.ops.allocator import RETURNING
from fullres.pipeline.predict.schedule import RESERVE, USABLE

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def told_by(module, asked):
    """What a module measures in a process set up as a worker's."""
    command = [sys.executable, "-m", f"tests.cluster.{module}", json.dumps(asked)]
    process = subprocess.run(command, cwd=ROOT, env=os.environ | RETURNING, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def measure(model, size, budget, precision, workers, grains, width=0.25):
    """Grains of a plan. Their peaks are beyond the loaded network."""
    asked = {
        "model": model, "width": width, "size": size, "budget": budget * MIB, "precision": precision,
        "workers": workers, "grains": grains,
    }  # fmt: skip
    return told_by("peak_memory", asked)


def assert_within(told):
    assert told["predicted"] <= told["budget"]
    assert max(told["peaks"]) <= told["budget"], told
    assert max(told["peaks"]) >= 0.5 * told["predicted"]  # a prediction, not only a bound


@pytest.mark.parametrize(
    ("precision", "side", "budget", "workers", "grains"),
    # bf16 without hardware for it takes ten times as long
    [
        ("fp32", 3000, 128, 64, 2),
        ("bf16", 1500, 128, 256, 1),
        pytest.param("bf16", 3000, 128, 64, 1, marks=pytest.mark.slow),
        pytest.param("fp32", 3000, 256, 64, 2, marks=pytest.mark.slow),
        pytest.param("bf16", 3000, 256, 64, 2, marks=pytest.mark.slow),
    ],
)
def test_smp(precision, side, budget, workers, grains):
    assert_within(measure("smp18", (side, side), budget, precision, workers, grains))


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


def assert_windows_within(model, precision, kept=False, width=0.25, window=513, scales=(0.6, 1)):
    """`kept`: with a budget of three times the predicted peak, else with the least that works."""
    size = (800, 900) if window else (400, 500)
    told = told_by(
        "peak_windows",
        {
            "model": model, "width": width, "size": size, "window": window, "scales": scales,
            "precision": precision, "kept": kept,
        },
    )  # fmt: skip
    predicted, peak = told["predicted"], max(told["peaks"])
    assert peak <= (3 * predicted if kept else predicted / USABLE + RESERVE), told
    assert predicted <= 1.5 * peak, told


@pytest.mark.parametrize(
    ("precision", "scales"), [("fp32", (0.6, 1)), pytest.param("bf16", (1,), marks=pytest.mark.slow)]
)
def test_windows(precision, scales):
    assert_windows_within("pspnet50", precision, scales=scales)


def test_windows_that_keep_what_they_free():
    assert_windows_within("spgnet18x2", "fp32", kept=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("model", "width", "window"),
    [
        ("pspnet50", 0.25, None),
        ("pspnet50", 1, 713),
        ("hrnet18", 1, 513),
        ("ocrnet18", 0.25, 713),
        ("spgnet50x2", 0.25, 713),
        ("deeplabv3plus50", 0.25, 713),
        ("deeplabv3plus-xception", 0.25, 513),
        ("deeplabv3plus-mobilenet", 1, 513),
        ("unet", 0.25, 713),
        ("upernet50", 0.25, 713),
        ("ann50", 0.25, 513),
        ("ccnet50", 0.25, 713),
        ("dmnet50", 0.25, 513),
        ("fcn8s18", 0.25, 513),
    ],
)
def test_windows_of_many_networks(model, width, window, precision, kept):
    assert_windows_within(model, precision, kept, width, window)


@pytest.mark.slow
def test_merging_six_scales_of_a_large_image():
    """What docs/predict.md says of 4096 x 4096 pixels, with workers of 512 MiB."""
    scales = [0.5, 0.75, 1, 1.25, 1.5, 1.75]
    told = told_by(
        "peak_merging", {"size": [4096, 4096], "window": 713, "scales": scales, "budget": 512 * MIB}
    )
    assert told["windows"] == 648
    assert told["peak"] <= 700 * MIB
