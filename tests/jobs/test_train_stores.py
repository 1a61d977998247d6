"""`fullres train` with `out` in an object store."""

import json

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import write_png
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.train.checkpoint import saved
from fullres.pipeline.train.engine import PlainEngine
from tests.pipeline.data.object_stores import BUCKETS
from tests.scenes import render_scene

CONFIG = """
out = "{0}/local"
steps = 6
batch_size = 2
crop = [64, 64]
report_every = 2
checkpoint_every = 2
evaluate_every = 3
[model]
name = "smp18"
width = 0.0625
[data]
dataset = "folder"
classes = 19
root = "{0}/root"
validation = "val"
workers = 1
[augmentation]
class_uniform = 0.5
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train into a folder; None: the local one, which is there already."""
    folder = tmp_path_factory.mktemp("training")
    for split, seed in (("train", 1), ("train", 2), ("val", 3)):
        image, labels = render_scene(seed, 64, 96)
        write_png(folder / f"root/images/{split}/{seed}.png", image)
        write_png(folder / f"root/labels/{split}/{seed}.png", labels)
    (folder / "config.toml").write_text(CONFIG.format(folder))

    def run(out, *options):
        changed = ["--set", f"out={out}"]
        arguments = ["train", str(folder / "config.toml"), "--threads", "1", *changed, *options]
        return CliRunner().invoke(app, arguments)

    assert run(folder / "local").exit_code == 0
    run.local = Storage(str(folder / "local"))
    return run


def course_of(out):
    measured = {"images_per_second", "waiting", "memory"}
    lines = map(json.loads, out.read("metrics.jsonl").splitlines())
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


@pytest.mark.parametrize("store", BUCKETS)
def test_a_run_leaves_there_what_it_leaves_here(run, store, monkeypatch):
    step = PlainEngine.step

    def interrupted(self, number, *others):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, *others)

    with BUCKETS[store]() as uri:
        out = Storage(uri.format("some/run"))
        with monkeypatch.context() as patch:
            patch.setattr(PlainEngine, "step", interrupted)
            assert run(out.location).exit_code != 0
        assert saved(out) == [3, 4]
        assert [line["step"] for line in course_of(out)] == [2, 3, 4]
        result = run(out.location)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == out.locate("weights.safetensors")
        assert saved(out) == saved(run.local)
        assert course_of(out) == course_of(run.local)
        for name in ("weights.safetensors", "best.safetensors", "summary.json"):
            assert out.read(name) == run.local.read(name)
        # The name of an event file is the second of its beginning.
        events = {*out.names("tensorboard")}
        assert {*out.names()} - events == {*run.local.names()} - {*run.local.names("tensorboard")}
        assert b"mean_iou" in b"".join(map(out.read, out.names("tensorboard")))
        assert run(out.location, "--set", "seed=1").exit_code == 2
        assert run(out.location, "--set", "seed=1", "--from-scratch", "--set", "steps=2").exit_code == 0
        assert saved(out) == [2]


def test_a_store_that_cannot_be_written_is_one_line_before_the_first_step(run, monkeypatch):
    monkeypatch.setattr(PlainEngine, "step", lambda *_: pytest.fail("it began"))
    result = run("ftp://host/run")
    assert result.exit_code == 2
    assert result.stderr.strip().startswith("error: ftp://host/run: ")
    with BUCKETS["s3"]() as uri:
        result = run(uri.replace("bucket/", "nowhere/").format("run"))
    assert result.exit_code == 2
    assert "nowhere/run" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
