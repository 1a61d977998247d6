import json
import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fullres.jobs.datasets import datasets
from fullres.pipeline.data.images import write_png
from fullres.pipeline.datasets import DATASETS, dataset


def run(*arguments, columns=200):
    app = typer.Typer()
    app.command()(datasets)
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": str(columns)})


def rows(output):
    """The cells of a table's rows."""
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in output.splitlines()]


@pytest.fixture
def root(tmp_path):
    """CamVid with two splits of one frame each."""
    for split in ("train", "val"):
        write_png(tmp_path / f"{split}/1.png", np.zeros((2, 4, 3), np.uint8))
        write_png(tmp_path / f"{split}annot/1.png", np.uint8([[0, 0, 0, 2], [3, 3, 11, 11]]))
    return tmp_path


def test_lists_all():
    result = run()
    assert result.exit_code == 0, result.output
    table = {row[0]: row[1:] for row in rows(result.stdout) if row}
    assert set(DATASETS) < set(table)
    assert table["camvid"] == [
        "11",
        "train, val, test",
        "360x480",
        "pole, signsymbol, pedestrian, bicyclist",
    ]
    assert table["supervisely-person"] == ["2", "train, test", "largest square", ""]


@pytest.mark.parametrize("columns", [40, 80])
def test_names_are_never_cut(columns):
    assert set(DATASETS) < {row[0] for row in rows(run(columns=columns).stdout) if row}


def test_lists_all_as_json():
    listed = {one["name"]: one for one in json.loads(run("--json").stdout)}
    assert list(listed) == list(DATASETS)
    assert listed["ade20k"]["classes"] == 150
    assert listed["gta5"]["train_size"] == [512, 512]
    assert listed["apolloscape"]["target_classes"][0] == "car"
    assert listed["camvid"]["target_classes"] == list(dataset("camvid").classes)


def test_shows_one():
    result = run("apolloscape")
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    assert ["0", "sky", "70 130 180"] in table
    assert ["4", "person * !", "0 128 192"] in table
    assert "apolloscape: train, val; train size 2710x2710" in result.stdout


def test_shows_one_as_json():
    shown = json.loads(run("voc2012", "--json").stdout)
    assert shown["classes"][1] == {"name": "aeroplane", "rgb": [128, 0, 0]}
    assert shown["splits"]["trainaug"] == {
        "images": "JPEGImages",
        "labels": "SegmentationClassAug",
        "lists": "ImageSets/Segmentation/trainaug.txt",
    }


def test_checks_the_splits_that_are_there(root):
    result = run("camvid", "--root", root)
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    for row in (
        ["class", "train", "val"],
        ["sky", "50.000", "50.000"],
        ["pole", "16.667", "16.667"],
        ["ignored pixels, of all", "25.000", "25.000"],
        ["frames", "1", "1"],
        ["images' size", "4x2", "4x2"],
        ["problems", "0", "0"],
    ):
        assert row in table
    assert "not looked at, or not there: test" in result.stdout


def test_a_check_as_json(root):
    report = json.loads(run("camvid", "--root", root, "--split", "val", "--json").stdout)
    assert report["dataset"] == "camvid"
    assert report["root"] == str(root)
    (split,) = report["splits"].values()
    assert split["frames"] == 1
    assert split["problems"] == []
    assert split["sizes"] == {"4x2": 1}
    assert split["pixels"]["road"] == 2
    assert split["ignored"] == 2


def test_problems_end_with_a_status(root):
    write_png(root / "valannot/1.png", np.uint8([[40]]))
    write_png(root / "train/2.png", np.zeros((2, 4, 3), np.uint8))
    result = run("camvid", "--root", root)
    assert result.exit_code == 1
    assert ["problems", "1", "1"] in rows(result.stdout)
    assert result.stderr.splitlines()[-2:] == [
        f"{root}/train/2.png: no label map",
        f"{root}/valannot/1.png: label ids [40] don't belong to camvid (0..11)",
    ]
    result = run("camvid", "--root", root, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["splits"]["train"]["problems"]) == 1


def test_many_problems_are_counted(root):
    for i in range(30):
        write_png(root / f"train/x{i:02}.png", np.zeros((2, 4, 3), np.uint8))
    result = run("camvid", "--root", root)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "and 10 more"
    assert (
        len(json.loads(run("camvid", "--root", root, "--json").stdout)["splits"]["train"]["problems"]) == 30
    )


def test_a_folder_of_images_and_label_maps(tmp_path):
    for name, labels in (("a", [[0, 1]]), ("b/c", [[1, 255]])):
        write_png(tmp_path / f"images/{name}.png", np.zeros((1, 2, 3), np.uint8))
        write_png(tmp_path / f"labels/{name}.png", np.uint8(labels))
    result = run("folder", "--root", tmp_path, "--classes", 2)
    assert result.exit_code == 0, result.output
    assert ["class 1", "66.667"] in rows(result.stdout)
    result = run("folder", "--root", tmp_path, "--classes", 1)
    assert result.exit_code == 1
    assert f"{tmp_path}/labels/a.png: label ids [1] don't belong to folder (0, 255)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kitti"], "NAME: no data set 'kitti'; there are cityscapes, "),
        (["--root", "."], "name the data set to be checked"),
        (["camvid", "--split", "val"], "--split is 'val': --root names the folder to check"),
        (["camvid", "--root", ".", "--split", "dev"], "--split is 'dev': camvid has train, val, test"),
        (["camvid", "--root", "nowhere"], "nowhere: no such folder"),
        (["camvid", "--root", "[/x]"], "[/x]: no such folder"),
        (["camvid", "--root", "s3://b/x"], "--root is 's3://b/x': only local folders are checked"),
        (["folder"], "--classes: say how many classes the folder's label maps have"),
        (
            ["camvid", "--classes", 3],
            "--classes is 3: only a folder has as many classes as you say, not camvid",
        ),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--split", "val"]])
def test_a_folder_of_something_else(tmp_path, more):
    result = run("camvid", "--root", tmp_path, *more)
    assert result.exit_code == 2
    split = "val" if more else "train"
    assert f"{tmp_path}: nothing of the split {split} of camvid: images in {split}/" in result.stderr
