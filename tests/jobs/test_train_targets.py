"""`fullres train` on the frames that `fullres targets` made targets of."""

import shutil

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import write_png
from fullres.pipeline.train.config import Augmentation, DataConfig
from fullres.pipeline.train.samples import Frames, Samples
from tests.scenes import render_scene

CONFIG = """
out = "{0}/run"
steps = 2
batch_size = 2
crop = [64, 64]
evaluate_every = 2
[model]
name = "smp18"
width = 0.0625
[data]
dataset = "folder"
classes = 19
root = "{0}/root"
validation = "val"
targets = "{0}/targets"
workers = 0
"""


@pytest.fixture(scope="module")
def made(cluster, tmp_path_factory):
    """A data set with a label map that cannot be used and an image without label map, and its targets."""
    folder = tmp_path_factory.mktemp("made")
    for split, count in (("train", 5), ("val", 1)):
        for seed in range(count):
            image, labels = render_scene(seed, 64, 96)
            write_png(folder / f"root/images/{split}/{seed}.png", image)
            write_png(folder / f"root/labels/{split}/{seed}.png", labels)
    shutil.copytree(folder / "root", folder / "sound")
    write_png(folder / "root/images/train/9.png", image)
    for place in ("sound/images", "sound/labels"):
        (folder / place / "train/3.png").unlink()
    (folder / "root/labels/train/3.png").write_bytes(b"\x89PNG")
    options = ["--dataset", "folder", "--classes", "19", "--root", str(folder / "root"), "--split", "train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        result = CliRunner().invoke(app, ["targets", *options, "--out", str(folder / "targets")])
    assert result.exit_code == 1, result.output  # two are left out, and named
    return folder


@pytest.fixture
def train(made, tmp_path):
    def run(*changes, options=("--threads", "1")):
        (tmp_path / "config.toml").write_text(CONFIG.format(made))
        changed = [word for change in (f"out={tmp_path}/run", *changes) for word in ("--set", change)]
        return CliRunner().invoke(app, ["train", str(tmp_path / "config.toml"), *changed, *options])

    return run


def test_frames_without_targets_are_left_out(train, tmp_path):
    assert "4 images" in train(options=("--dry-run",)).stderr
    result = train()
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/best.safetensors").exists()


def test_samples_are_those_of_the_sound_frames(made):
    def drawn(root, **more):
        data = DataConfig(dataset="folder", classes=19, root=str(made / root), **more)
        return Samples(Frames(data), Augmentation(scale=(0.5, 2)), (48, 64), 0)

    found, expected = drawn("root", targets=str(made / "targets")), drawn("sound")
    for number in range(8):
        assert [part.tobytes() for part in found[number][:2]] == [
            part.tobytes() for part in expected[number][:2]
        ]


def assert_refused(result, message):
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_targets_that_are_not_of_these_frames_are_refused(train, made, tmp_path):
    assert_refused(
        train("data.split=val"), "targets of folder, split train, 19 classes, not of folder, split"
    )
    assert_refused(train("data.classes=20"), "19 classes, not of folder, split train, 20 classes")
    assert_refused(train(f"data.targets={tmp_path}"), "no targets here; _targets.json is missing")
    write_png(tmp_path / "root/images/train/0.png", render_scene(0, 64, 96)[0])
    write_png(tmp_path / "root/labels/train/0.png", render_scene(0, 64, 96)[1])
    result = train(f"data.root={tmp_path}/root")
    assert result.exit_code == 2
    assert "targets of frames that are not there (3):" in result.stderr
    assert not (tmp_path / "run").exists()


def test_targets_that_are_not_whole_are_refused(train, made, tmp_path):
    shutil.copytree(made / "targets", tmp_path / "targets")
    part = next((tmp_path / "targets").glob("part-*.parquet"))
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    assert_refused(
        train(f"data.targets={tmp_path}/targets"), "a file is damaged: run `fullres targets` again"
    )
    part.unlink()
    assert_refused(train(f"data.targets={tmp_path}/targets"), "1 of 1 files are not there: end `fullres")
    assert not (tmp_path / "run").exists()


def test_targets_need_a_root(train, made):
    lines = [f"data.images={made}/root/images", f"data.labels={made}/root/labels"]
    config = [line for line in CONFIG.splitlines() if not line.startswith(("root", "validation", "evaluate"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "CONFIG", "\n".join(config))
        result = train(*lines)
    assert_refused(result, "data.targets is '")
    assert "of a data set that has a root" in result.stderr
