"""`fullres bench adaptive` on a few drawn scenes."""

import csv
import math
import re

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.downsampler import Downsampler
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import read_image
from tests.jobs.predicting import camvid_of_scenes, saved
from tests.models import base


@pytest.fixture
def bench(tmp_path):
    camvid_of_scenes(tmp_path / "camvid", 64, 96)
    network = base.as_if_trained(lambda: Downsampler(8, 8)).eval()
    save_weights(network, tmp_path / "where.safetensors", WeightsInfo("downsampler8", 1 / 32, 11, "camvid"))
    (tmp_path / "config.toml").write_text(
        'out = "none"\nsteps = 1\nbatch_size = 2\ncrop = [64, 96]\nlearning_rate = 1e-3\nevaluate_every = 1\n'
        '[model]\nname = "unet"\nwidth = 0.0625\n[data]\ndataset = "camvid"\n'
        f'root = "{tmp_path}/camvid"\nvalidation = "val"\n'
    )

    def run(*options):
        given = [
            tmp_path / "config.toml",
            "--auxiliary",
            tmp_path / "where.safetensors",
            "--out",
            tmp_path / "o",
        ]
        return CliRunner().invoke(app, ["bench", "adaptive", *map(str, [*given, *options])])

    return run


def test_a_line_for_each_size_and_way(bench, tmp_path):
    result = bench("--sizes", "16,32")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "o/curves.csv").open()))
    truths = ("uniform", "adaptive", "its own tensors", "tensors of all points", "as smooth as its own")
    ways = ["uniform", "adaptive", *(f"truth, {name}" for name in truths)]
    assert [(row["way"], row["size"]) for row in rows] == [
        (way, size) for size in ("16", "32") for way in ways
    ]
    assert all(0 <= float(row["mean_iou"]) <= 1 for row in rows)
    cost = {(row["way"], row["size"]): row["giga_operations"] for row in rows}
    assert float(cost["adaptive", "16"]) > float(cost["uniform", "16"]) > 0
    assert cost["truth, uniform", "16"] == ""
    assert read_image(tmp_path / "o/curves.png").shape[0] > 100
    # More points say more of the truth.
    left = {row["size"]: float(row["mean_iou"]) for row in rows if row["way"] == "truth, uniform"}
    assert left["32"] > left["16"]
    said = "(truth, .*): wrong pixels fall with the number of points to the power of (.*)"
    slopes = dict(re.findall(said, result.output))
    fewer, more = (float(row["wrong"]) for row in rows if row["way"] == "truth, uniform")
    assert float(slopes["truth, uniform"]) == pytest.approx(math.log(more / fewer, 4), abs=0.01)
    assert len(slopes) == len(truths)


def test_target_classes_are_those_of_the_label_maps_own_tensors(bench, tmp_path):
    of_all, of_some = [], []
    for rows, options in ((of_all, ()), (of_some, ("--target-classes", "car,road"))):
        result = bench("--sizes", "16", "--set", "model.name=downsampler8", *options)
        assert result.exit_code == 0, result.output
        rows += csv.DictReader((tmp_path / "o/curves.csv").open())
    for one, other in zip(of_all, of_some, strict=True):
        own = one["way"] not in ("truth, uniform", "truth, adaptive")
        assert (one["wrong"] != other["wrong"]) == own, one["way"]
        assert one["target_iou"] != other["target_iou"]


def test_split_merge_at_its_output_strides_and_another_downsampler(bench, tmp_path):
    saved(tmp_path / "smp.safetensors", "smp18", 11, "camvid")
    other = base.as_if_trained(lambda: Downsampler(16, 8)).eval()
    save_weights(other, tmp_path / "other.safetensors", WeightsInfo("downsampler16", 1 / 32, 11, "camvid"))
    more = ("--auxiliary", tmp_path / "other.safetensors", "--beside", tmp_path / "smp.safetensors")
    result = bench("--sizes", "16", *more)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "o/curves.csv").open()))
    strides = {row["size"]: float(row["giga_operations"]) for row in rows if row["way"] == "split-merge"}
    assert list(strides) == ["1", "2", "4", "8", "16", "32"]
    assert list(strides.values()) == sorted(strides.values(), reverse=True)
    assert f"truth, {tmp_path}/other.safetensors" in {row["way"] for row in rows}
    options = ("--sizes", "8,16", "--set", "model.name=downsampler8")
    result = bench(*options)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "o/curves.csv").open()))
    assert len(rows) == 10
    assert all(row["way"].startswith("truth") for row in rows)
    wrong = bench(*options, "--beside", tmp_path / "smp.safetensors")
    assert "beside networks that label, and downsampler8 does not" in " ".join(wrong.stderr.split())
    wrong = bench("--sizes", "16", "--beside", tmp_path / "where.safetensors")
    assert wrong.exit_code == 2
    assert "of downsampler8, which is not labelled by split-merge" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sizes", "8,1"), "--sizes is '8,1': whole numbers from 2, with commas between"),
        (("--sizes", "8,a"), "--sizes is '8,a': whole numbers from 2"),
        (("--target-classes", "car,bus"), "--target-classes: 'bus' is no class of camvid: sky, building"),
        (("--set", "stepz=3"), "stepz: no such field (did you mean steps?)"),
    ],
)
def test_mistakes_are_one_line(bench, options, said):
    result = bench(*options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
