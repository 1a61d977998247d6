import importlib
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import write_png
from tests.shared import DATA

module = importlib.import_module("fullres.jobs.bench.sampling")  # the package's name for it is the command
CAMVID = DATA / "camvid"

# Mean IoU in percent at 32, 64 and 128 points a side, as measured with another implementation.
MEASURED = {
    "uniform": (70.43, 79.98, 87.89),
    "8x8, lambda 1, resized": (71.04, 80.73, 88.25),
    "8x8, lambda 0.1, resized": (72.02, 81.46, 89.03),
    "32x32, lambda 0.1, resized": (74.28, 83.66, 90.61),
    "solved at the sampling size, lambda 1": (73.08, 83.68, 91.51),
}


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "sampling", *map(str, arguments)])


def test_compares_on_small_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ask", module._answer)  # in this process: others only take longer
    monkeypatch.setattr(module, "_ROUND", 1e-3)
    (tmp_path / "trainannot").mkdir()
    labels = np.uint8(np.add.outer(np.arange(40), np.arange(60)) // 15 * 2 % 12)
    for name in "abcde":
        write_png(tmp_path / "trainannot" / f"{name}.png", labels)
    out = tmp_path / "figures.json"
    result = run("--camvid", tmp_path, "--shrink", 16, "--rounds", 1, "--json", out)
    assert result.exit_code == 0, result.output
    assert "in percent, 2 of" in result.output
    figures = json.loads(out.read_text())
    assert list(figures["oracle"]) == list(MEASURED)
    assert figures["oracle"]["uniform"]["128"] > 98  # more points than pixels
    for case in figures["speed"]:
        assert len(case["seconds"]) == len(case["memory"]) == len(case["differing"])
        # Where distances to boundaries tie or triangles overlap, a few may be different and as right.
        assert all(share is None or share < 0.01 for share in case["differing"])


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(256 * 256, dtype=np.uint8).reshape(256, 256) // 64)
    request = {
        "title": "class probabilities at 1/4 to 1/32, 20 channels, 2048x1024",
        "labels": f"{tmp_path}/labels.npy",
    }
    peer = "torch: one-hot, average pooling"
    assert module._ask(request | {"rounds": 0, "variants": [peer]})["memory"] > 20 * 256 * 256 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sampling", "--camvid", "."], "--camvid: no label maps trainannot/*.png"),
        (["sampling", "--shrink", 0], "greater than or equal to 1 "),
        (["sampling", "--shrink", 17], "less than or equal to 16 "),
        (["sampling", "--json", "."], ".: a folder, not a file"),
        (["sampling", "--json", "/dev/null/x.json"], "/dev/null"),
        (["targets", "--height", 0], "greater than or equal to 16 "),
        (["targets", "--width", 0], "greater than or equal to 16 "),
        (["targets", "--maps", 256], "greater than or equal to 512 "),
        (["targets", "--json", "/dev/null/x.json"], "/dev/null"),
    ],
)
def test_mistakes_are_one_clear_error_before_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.skipif(not (CAMVID / "trainannot").exists(), reason=f"no CamVid in {CAMVID}")
@pytest.mark.parametrize("tensor", MEASURED)
def test_what_sampling_keeps_of_camvid(tensor):
    scores = module.oracle(module.oracle_maps(CAMVID), tensor)
    assert list(scores.values()) == pytest.approx(MEASURED[tensor], abs=0.3)
