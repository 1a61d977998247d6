import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fullres.jobs.evaluate import evaluate
from fullres.pipeline.data.images import write_png


@pytest.fixture
def run(tmp_path):
    """Run the command on two frames in pred/ and gt/ with further arguments."""
    app = typer.Typer()
    app.command()(evaluate)
    for name in ("1", "2"):
        write_png(tmp_path / f"gt/{name}.png", np.uint8([[0, 2, 3, 11]]))
        write_png(tmp_path / f"pred/{name}.png", np.uint8([[0, 2, 2, 3]]))

    def invoke(*more):
        return CliRunner().invoke(app, [str(tmp_path / "pred"), str(tmp_path / "gt"), *more])

    return invoke


def test_table_and_json(run, tmp_path):
    result = run("--dataset", "camvid", "--json", str(tmp_path / "out/scores.json"))
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    for row in (
        ["sky", "100.0"],
        ["pole *", "50.0"],
        ["road", "0.0"],
        ["bicyclist *", "-"],
        ["mean IoU", "50.0"],
        ["small-and-thin mean", "50.0"],
        ["pixel accuracy", "66.7"],
    ):
        assert row in rows
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["mean_iou"] == 0.5
    assert scores["images"] == 2


def test_unknown_data_set(run):
    result = run("--dataset", "kitti")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --dataset: no data set 'kitti'; there are cityscapes, camvid,")


def test_missing_prediction_writes_nothing(run, tmp_path):
    (tmp_path / "pred/2.png").unlink()
    result = run("--dataset", "camvid", "--json", str(tmp_path / "scores.json"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-2:] == [
        "error: files without their counterpart (1):",
        f"  {tmp_path}/gt/2.png: no prediction",
    ]
    assert not (tmp_path / "scores.json").exists()
