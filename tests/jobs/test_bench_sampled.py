"""`fullres bench sampled` on small frames."""

import json

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.downsampler import Downsampler
from fullres.models.weights import WeightsInfo, save_weights
from tests.jobs.predicting import saved
from tests.models import base


@pytest.fixture
def bench(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    network = base.as_if_trained(lambda: Downsampler(8, 8)).eval()
    save_weights(network, tmp_path / "where.safetensors", WeightsInfo("downsampler8", 1 / 32, 19, "scenes"))
    saved(tmp_path / "unet.safetensors", "unet", 19, "scenes")

    def run(*options, weights="unet.safetensors"):
        given = ["--weights", tmp_path / weights, "--auxiliary", tmp_path / "where.safetensors"]
        small = ["--height", 64, "--scene-width", 96, "--frames", 2, "--rounds", 1, "--stream", 4]
        json_out = ["--json", tmp_path / "out.json"]
        return CliRunner().invoke(app, ["bench", "sampled", *map(str, [*given, *small, *json_out, *options])])

    return run


def test_each_size_both_ways_and_a_stream(bench, tmp_path):
    result = bench("--sizes", "16,32", "--workers", "1")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["size"], row["way"]): row for row in found["rows"]}
    assert list(rows) == [(size, way) for size in (16, 32) for way in ("uniform", "adaptive")]
    more = [rows[size, "adaptive"]["GFLOP"] - rows[size, "uniform"]["GFLOP"] for size in (16, 32)]
    assert more[0] == pytest.approx(more[1])  # the downsampler's, at any size
    assert rows[32, "uniform"]["GFLOP"] == pytest.approx(4 * rows[16, "uniform"]["GFLOP"], rel=0.01)
    assert all(rows[16, "adaptive"][s] > 0 for s in ("resize", "downsampler", "read", "network", "back"))
    assert [list(row["frames a second"]) for row in found["streams"]] == [["1"]] * 2


def test_mistakes_are_one_line(bench):
    result = bench("--sizes", "1")
    assert result.exit_code == 2
    assert "--sizes is '1': whole numbers from 2, with commas between" in " ".join(result.stderr.split())
    result = bench(weights="where.safetensors")
    assert result.exit_code == 2
    assert "of a downsampler" in " ".join(result.stderr.split())
