"""`fullres targets` from label maps in files to Parquet."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import read_image, write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.targets.compute import TargetSpec, targets_of
from tests.scenes import render_scene

COUNT = 96
FILES = 24
SHARD = (4, 256)  # maps of a file
GRID = ("--grid", "4x5", "--lambda", 0.5, "--cpp", "8,4")


@pytest.fixture(autouse=True)
def on_the_cluster(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


def targets(*arguments):
    return CliRunner().invoke(app, ["targets", *map(str, arguments)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three street scenes as `fullres scenes` lays them out, many times."""
    root = tmp_path_factory.mktemp("scenes")
    scenes = [render_scene(i, 150 + i, 260) for i in range(3)]
    for index in range(COUNT):
        image, labels = scenes[index % 3]
        write_png(root / f"images/{index:03}.png", image)
        write_png(root / f"labels/{index:03}.png", labels)
    return root


@pytest.fixture(scope="module")
def made(cluster, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setattr("fullres.cluster.targets._SHARD", SHARD)
        patch.setattr("fullres.jobs.targets._SPOKEN", 0)
        result = targets(
            "--dataset", "scenes", "--root", root, "--split", SPLIT, "--out", out, *GRID, "--distance"
        )
    assert result.exit_code == 0, result.output
    return out, result


SPLIT = next(iter(dataset("scenes").splits))


def test_the_last_line_and_the_summary_say_what_was_done(made):
    out, result = made
    line = result.stdout.splitlines()[-1]
    assert line.startswith(f"targets of {COUNT} label maps in ")
    assert line.endswith(f"in {out}")
    summary = json.loads((out / "_summary.json").read_text())
    assert (summary["maps"], summary["done"], summary["failures"]) == (COUNT, COUNT, {})
    assert sum(summary["by_node"].values()) == COUNT


def test_a_log_has_lines_of_progress(made):
    lines = [line for line in made[1].stderr.splitlines() if line.endswith(" left")]
    assert len(lines) >= 4
    assert re.fullmatch(r"label maps \d+/96  \d+/s  0 left out  \d:\d\d:\d\d left", lines[0])


def test_three_lines_of_pyarrow_read_them(made, root):
    out, _ = made
    table = pq.read_table(out).sort_by("key")
    phi = table["phi"].combine_chunks().to_numpy_ndarray()
    cpp = [np.reshape(c["data"], c["shape"]) for c in table["cpp_8"].to_pylist()]
    spec = TargetSpec((4, 5), 0.5, cpp=(4, 8))
    expected = [
        targets_of(render_scene(i % 3, 150 + i % 3, 260)[1], dataset("scenes"), spec) for i in range(3)
    ]
    assert phi.shape == (COUNT, 4, 5, 2)
    for index in range(COUNT):
        np.testing.assert_array_equal(phi[index], expected[index % 3]["phi"])
        np.testing.assert_array_equal(cpp[index], expected[index % 3]["cpp_8"])


def test_three_lines_of_pandas_read_them(made):
    table = pd.read_parquet(made[0])
    row = table[table.key == "007"].iloc[0]
    phi = row.phi.reshape(4, 5, 2)
    assert (phi[0, :, 0] == 0).all()
    assert (phi[-1, :, 0] == 1).all()
    distance = np.reshape(row.distance["data"], row.distance["shape"])
    assert distance.shape == (row.height, row.width) == (151, 260)


def test_pictures_of_them(made, root, tmp_path):
    arguments = ["show", made[0], "--root", root, "--pictures", tmp_path, "--key", "005"]
    result = targets(*arguments)
    assert result.exit_code == 0, result.output
    names = [Path(line).name for line in result.stdout.splitlines()]
    assert names == [f"005_{n}.png" for n in ("boundary", "grid", "distance", "cpp_4", "cpp_8")]
    picture = read_image(tmp_path / "005_boundary.png")
    assert picture.shape == (152, 260, 3)
    assert (picture == 255).all(-1).any()
    assert targets(*arguments[:-1], "none").exit_code == 2


@pytest.fixture
def few(made, root, tmp_path):
    """The targets, and some of their frames."""
    for path in sorted(root.glob("*/00*.png")):
        (tmp_path / "few" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "few" / path.relative_to(root)).write_bytes(path.read_bytes())
    write_png(tmp_path / "few/labels/002.png", np.full((152, 260), 19, np.uint8))
    write_png(tmp_path / "few/labels/003.png", np.zeros((9, 8), np.uint8))
    (tmp_path / "none").mkdir()
    settings = (made[0] / "_targets.json").read_text()
    (tmp_path / "none/_targets.json").write_text(settings)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/_targets.json").write_text(settings)
    (tmp_path / "damaged/part-00000.parquet").write_bytes(b"PAR1")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "key", "message"),
    [
        (None, "077", "--root: {few}/few has no frame 077"),
        (None, "002", "labels/002.png: label ids [19] don't belong to scenes"),
        (None, "003", "labels/003.png: 8x9 pixels, but its targets are of a map of 260x150"),
        ("none", "001", "{few}/none: no label maps here yet"),
        ("damaged", "001", "part-00000.parquet"),
    ],
)
def test_pictures_of_what_does_not_fit(made, few, out, key, message):
    out = few / out if out else made[0]
    result = targets("show", out, "--root", few / "few", "--pictures", few / "pictures", "--key", key)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert message.format(few=few) in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(made, root, tmp_path, monkeypatch):
    """The driver and its own cluster die in the middle; the same command does the rest."""
    out = tmp_path / "out"
    asked = ["--dataset", "scenes", "--root", root, "--split", SPLIT, "--out", out, *GRID, "--distance"]
    with_small_files = (
        "from fullres.cluster import targets; from fullres.jobs.cli import main; "
        f"targets._SHARD = {SHARD}; main()"
    )
    command = [sys.executable, "-c", with_small_files, "targets", *map(str, asked)]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own)
    while not (before := list(out.glob("part-*.parquet"))):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(before) < FILES
    time.sleep(2)  # its workers end with it
    monkeypatch.setattr("fullres.cluster.targets._SHARD", SHARD)
    done = targets(*asked)
    assert done.exit_code == 0, done.output
    assert " done before" in done.stdout
    assert {p.name: p.read_bytes() for p in out.glob("part-*")} == {
        p.name: p.read_bytes() for p in made[0].glob("part-*")
    }
    assert not list(out.glob(".part*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "scenes"], "--dataset, --root and --out are needed"),
        (["--dataset", "kitti"], "--dataset: no data set 'kitti'"),
        (["--dataset", "folder"], "--classes: say how many"),
        (["--grid", "8"], "--grid is '8': rows x columns"),
        (["--grid", "1x8"], "grid is 1x8: rows x columns, each at least 2"),
        (["--cpp", "4,x"], "--cpp is '4,x': whole numbers"),
        (["--cpp", "0"], "cpp is 0: each scale"),
        (["--cpp", "4,6"], "cpp is 4,6: each scale must be a multiple of the one before, e.g. 4,8,16"),
        (["--lambda", "inf"], "smoothness is inf: a finite number, 0 or more"),
        (["--lambda", "nan"], "smoothness is nan: a finite number, 0 or more"),
        (["--lambda", "-1"], "smoothness is -1.0: a finite number, 0 or more"),
        (["--dataset", "folder", "--classes", "255"], "less than or equal to 254 "),
        (["--root", "[/x]"], "[/x]: nothing of the split"),
        (["--target-classes", "pole,tree"], "'tree' is no class of scenes: road, sidewalk,"),
        (["--split", "none"], "--split is 'none': scenes has all"),
        (["--root", "nowhere"], "nowhere: nothing of the split"),
        (["--workers", "0"], "'0' is no number of workers"),
        (["--out", "/dev/null/x"], "/dev/null"),
        (["--out", "ftp://host/x"], "ftp://host/x"),
    ],
)
def test_mistakes_are_one_clear_error_before_work(root, tmp_path, arguments, message):
    given = {"--dataset": "scenes", "--root": root, "--out": tmp_path / "out", "--split": SPLIT}
    if arguments == ["--dataset", "scenes"]:
        given = {}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    result = targets(*[word for pair in given.items() for word in pair])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("out/part*"))


def test_faulty_maps_are_named_and_the_rest_is_done(root, tmp_path):
    for path in sorted(root.glob("*/00*.png")):
        (tmp_path / "root" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path.relative_to(root)).write_bytes(path.read_bytes())
    cv2.imwrite(str(tmp_path / "root/labels/003.png"), np.full((150, 260), 19, np.uint8))
    (tmp_path / "root/images/004.png").unlink()
    (tmp_path / "root/images/[").mkdir()
    (tmp_path / "root/images/[/x].png").write_bytes((root / "images/000.png").read_bytes())
    asked = ["--dataset", "scenes", "--root", tmp_path / "root", "--target-classes", "pole,rider,pole", *GRID]
    result = targets(*asked, "--out", tmp_path / "out")
    assert result.exit_code == 1
    told = " ".join(result.stderr.split())
    assert "labels/003.png: label ids [19] don't belong to scenes" in told
    assert "labels/004.png: no image" in told
    assert "images/[/x].png: no label map" in told
    assert "targets of 8 label maps" in result.stdout
    assert "3 left out" in result.stdout
    settings = json.loads((tmp_path / "out/_targets.json").read_text())
    assert settings["target_classes"] == ["pole", "rider"]
    assert targets(*asked, "--out", tmp_path / "strict", "--strict").exit_code == 2
