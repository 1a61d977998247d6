import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.catalogue import build
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import write_png
from fullres.pipeline.predict.plan import Plan


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


@pytest.fixture
def planned(tmp_path):
    """The JSON of a plan."""

    def plan(*arguments):
        result = run(*arguments, "--json", tmp_path / "plan.json")
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "plan.json").read_text())

    return plan


def test_prints_tree_grains_and_efficiency_for_workers_that_are_not_there():
    result = run(
        "2048x1024", "--width", "0.25", "--workers", "256", "--device", "cuda", "--precision", "bf16"
    )
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["4", "4x4", "16", "512x256"] in [row[:4] for row in rows]
    assert ["32", "2x2", "1024", "64x32"] in [row[:4] for row in rows]
    assert [row[0] for row in rows if len(row) == 6 and row[0].isdigit()][-1] == "256"
    assert "efficiency:" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("2048x1024", "--workers", 64),
        ("150x97", "--workers", 300),
        ("700x600", "--memory-budget", "80MiB", "--workers", 3, "--precision", "fp32"),
        ("640x480", "--model", "fcn8s18"),
        ("3000x2000", "--model", "fcn32s50", "--memory-budget", "128MiB"),
    ],
)
def test_levels_add_up_to_the_grains(planned, arguments):
    figures = planned(*arguments, "--width", 0.25)
    plan = Plan.from_json(figures["plan"])
    assert sum(level["macs"] for level in figures["levels"]) == plan.macs
    assert figures["giga_operations"] == pytest.approx(2e-9 * plan.macs)
    assert 0 <= figures["repeated_share"] < 1
    assert figures["bytes"]["results_back"] == plan.schedule.size[0] * plan.schedule.size[1]
    assert figures["bytes"]["images_out"] >= 3 * figures["bytes"]["results_back"]
    assert max(level["working_bytes"] for level in figures["levels"]) <= figures["peak_bytes"]


def test_sixteen_grains_repeat_nothing_and_sixty_four_repeat_the_first_level(planned):
    few, many = (planned("2048x1024", "--width", 0.25, "--workers", n) for n in (16, 64))
    assert len(few["plan"]["grains"]) == 16
    assert few["repeated_share"] == 0
    assert few["efficiency"] == 1
    assert many["levels"][0]["macs"] == 4 * few["levels"][0]["macs"]
    assert many["levels"][1:] == few["levels"][1:]


def test_many_images_keep_many_workers_busy_without_cutting_deeper(planned):
    figures = planned("2048x1024", "--width", 0.25, "--workers", 64, "--images", 100)
    assert len(figures["plan"]["grains"]) == 16
    assert figures["efficiency_by_workers"]["64"] == 1


def test_reads_an_image_and_weights(planned, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((40, 70, 3), np.uint8))
    save_weights(
        build("smp18", 11, 0.125), tmp_path / "w.safetensors", WeightsInfo("smp18", 0.125, 11, "camvid")
    )
    figures = planned(tmp_path / "a.png", "--weights", tmp_path / "w.safetensors")
    assert figures["plan"]["schedule"]["size"] == [40, 70]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("64x64", "--model", "smp19"), "--model is 'smp19': one of smp18"),
        (("0x64",), "IMAGE is '0x64': a size is at least 1x1"),
        (("nowhere.png",), "nowhere.png: no such file"),
        (("2048x1024", "--memory-budget", "25MiB"), "at least"),
        (("64x64", "--memory-budget", "much"), "'much' is no amount of memory"),
        (("64x64", "--weights", "w.pth"), "weights w.pth: no such file"),
        (("64x64", "--weights", "w.pth", "--width", "1"), "leave out one of --width and --weights"),
        (("64x64", "--dataset", "kitti"), "no data set 'kitti'"),
        (("64x64", "--workers", "0"), "--workers"),
    ],
)
def test_mistakes_are_one_clear_error(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
