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


def rows_of(result):
    """The cells of each line of the tables."""
    assert result.exit_code == 0, result.output
    return [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in result.stdout.splitlines()
    ]


def test_table_and_json(run, tmp_path):
    result = run("--dataset", "camvid", "--json", str(tmp_path / "out/scores.json"))
    rows = rows_of(result)
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


def test_target_classes(run, tmp_path):
    asked = ("--dataset", "camvid", "--json", str(tmp_path / "scores.json"))
    rows = rows_of(run(*asked, "--target-classes", "pole, road,pole"))
    for row in (["pole * !", "50.0"], ["road !", "0.0"], ["sky", "100.0"], ["target-class mean", "25.0"]):
        assert row in rows
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["target_classes"], scores["target_iou"]) == (["pole", "road"], 0.25)

    result = run(*asked, "--target-classes", "all")
    assert "target" not in result.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["target_iou"] == 0.5


def test_a_data_set_has_target_classes_of_its_own(tmp_path, run):
    for folder in ("gt", "pred"):
        for name in ("1", "2"):
            (tmp_path / f"{folder}/{name}.png").unlink()
    write_png(tmp_path / "gt/x_bin.png", np.uint8([[33, 36, 49, 17]]))  # car, person, road, sky
    write_png(tmp_path / "pred/x.png", np.uint8([[1, 4, 0, 0]]))
    rows = rows_of(run("--dataset", "apolloscape"))
    assert ["car !", "100.0"] in rows
    assert ["person * !", "100.0"] in rows
    assert ["target-class mean", "100.0"] in rows
    assert ["mean IoU", "62.5"] in rows


@pytest.mark.parametrize("text", ["pole,tram", "pole,", ""])
def test_unknown_target_classes(run, text):
    result = run("--dataset", "camvid", "--target-classes", text)
    assert result.exit_code == 2
    name = text.rpartition(",")[2]
    assert f"error: --target-classes: '{name}' is no class of camvid: sky, building, pole," in result.stderr
    assert "Traceback" not in result.stderr


def test_trimap(run, tmp_path):
    """In a band of one pixel the whole row counts, but for class 11, which CamVid ignores."""
    rows = rows_of(run("--dataset", "camvid", "--trimap", "1,16", "--json", str(tmp_path / "scores.json")))
    assert ["width", "pixels", "accuracy %", "mean IoU %"] in rows
    assert ["1", "6", "66.7", "50.0"] in rows
    assert ["16", "6", "66.7", "50.0"] in rows
    bands = json.loads((tmp_path / "scores.json").read_text())["trimap"]
    assert [(band["width"], band["pixels"], band["mean_iou"]) for band in bands] == [
        (1, 6, 0.5),
        (16, 6, 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,x", "--trimap is '1,x': whole numbers of pixels with commas between, e.g. 1,2,4,8,16"),
        ("", "--trimap is '': whole numbers"),
        ("2.5", "--trimap is '2.5': whole numbers"),
        ("4,2", "--trimap: widths are 4,2: 1 to 10000 pixels, each wider than the one before"),
        ("0", "--trimap: widths are 0: 1 to 10000 pixels"),
        ("2,2", "--trimap: widths are 2,2: 1 to 10000 pixels"),
        ("1,10001", "--trimap: widths are 1,10001: 1 to 10000 pixels"),
    ],
)
def test_widths_that_are_none(run, text, message):
    result = run("--dataset", "camvid", "--trimap", text)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_by_size(run, tmp_path):
    """Class by class one pixel in each frame is an object: the poles are found, the roads are not."""
    asked = ("--dataset", "camvid", "--target-classes", "pole,road,car")
    rows = rows_of(run(*asked, "--by-size", "3", "--json", str(tmp_path / "scores.json")))
    for row in (
        ["class", "objects", "1 %", "2 %", "3 %"],
        ["pole", "2", "100.0", "100.0", "-"],
        ["road", "2", "0.0", "0.0", "-"],
        ["all", "4", "50.0", "100.0", "0.0"],
    ):
        assert row in rows
    by_size = json.loads((tmp_path / "scores.json").read_text())["by_size"]
    assert by_size["classes"].keys() == {"pole", "road"}
    assert by_size["classes"]["pole"][2] == {"objects": 0, "smallest": None, "largest": None, "recall": None}
    assert by_size["all"][0] == {"objects": 2, "smallest": 1, "largest": 1, "recall": 0.5}


def test_figures_of_many_bins_are_whole(run):
    rows = rows_of(run("--dataset", "camvid", "--by-size", "100"))
    assert any(row[:3] == ["pole", "2", "100.0"] and len(row) == 102 for row in rows)


@pytest.mark.parametrize("bins", ["0", "-3", "101"])
def test_bins_that_are_none(run, bins):
    result = run("--dataset", "camvid", "--by-size", bins)
    assert result.exit_code == 2
    assert result.stderr == f"error: --by-size is {bins}: 1 to 100 bins\n"


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
