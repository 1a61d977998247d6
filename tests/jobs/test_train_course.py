"""`fullres train` from files that extend others: what a run leaves of its course, and how it goes on."""

import json
import math
import re
import tomllib

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import fullres
from fullres.jobs.cli import app
from fullres.models.weights import load_network
from fullres.pipeline.data.images import read_image, write_png
from fullres.pipeline.data.pictures import colour, stacked
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.review.evaluate import evaluate
from fullres.pipeline.train import checkpoint
from fullres.pipeline.train.engine import PlainEngine
from fullres.pipeline.train.objectives import SegmentationLoss
from tests.scenes import render_scene


def one_line(result):
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.strip().endswith(line)
    return line


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set with splits, as a folder."""
    root = tmp_path_factory.mktemp("root")
    for split, seeds in (("train", (1, 2, 3)), ("val", (4, 5))):
        for seed in seeds:
            image, labels = render_scene(seed, 64, 96)
            write_png(root / f"images/{split}/{seed}.png", image)
            write_png(root / f"labels/{split}/{seed}.png", labels)
    return root


BASE = """
out = "{out}"
steps = 6
batch_size = 2
crop = [64, 64]
learning_rate = 1e-3
schedule = "poly"
report_every = 2
checkpoint_every = 2
evaluate_every = 3

[model]
name = "smp18"
width = 0.0625

[data]
dataset = "folder"
classes = 19
root = "{root}"
validation = "val"
workers = 1

[augmentation]
scale = [0.5, 2.0]
class_uniform = 0.5
"""


@pytest.fixture
def run(root, tmp_path):
    """A configuration that extends another, in folders of their own."""
    (tmp_path / "configs/own").mkdir(parents=True)
    (tmp_path / "configs/base.toml").write_text(BASE.format(out=tmp_path / "run", root=root))

    def run(*changes, own="", options=("--threads", "1")):
        path = tmp_path / "configs/own/config.toml"
        path.write_text(f'base = "../base.toml"\n{own}')
        changed = [word for change in changes for word in ("--set", change)]
        return CliRunner().invoke(app, ["train", str(path), *changed, *options])

    return run


MEASURED = {"images_per_second", "waiting", "memory"}


def metrics_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if name not in MEASURED} for line in lines]


def test_a_run_leaves_its_course(run, tmp_path):
    result = run()
    assert result.exit_code == 0, result.output
    out = tmp_path / "run"
    course = metrics_of(out)
    assert [line["step"] for line in course] == [2, 3, 4, 6, 6]
    scored = [line for line in course if "mean_iou" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert len(scored[0]["class_iou"]) == 19
    rates = [line["learning_rate"] for line in course if "loss" in line]
    assert rates == pytest.approx([1e-3 * (1 - step / 6) ** 0.9 for step in (1, 3, 5)])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mean_iou"] == scored[1]["mean_iou"]
    assert summary["best_mean_iou"] == max(line["mean_iou"] for line in scored)
    assert list((out / "tensorboard").iterdir())
    best, info = load_network("smp18", out / "best.safetensors")
    assert info.num_classes == 19
    last = load_file(out / "weights.safetensors")["classifier.weight"]
    assert best.classifier.weight.equal(last) == (scored[1]["mean_iou"] > scored[0]["mean_iou"])


def test_the_score_is_that_of_predict_and_evaluate(run, root, tmp_path):
    assert run().exit_code == 0
    network, _ = load_network("smp18", tmp_path / "run/weights.safetensors")
    for path in sorted((root / "images/val").iterdir()):
        write_png(tmp_path / "labels" / path.name, fullres.predict(path, network, precision="fp32"))
    found = evaluate(tmp_path / "labels", root / "labels/val", folder(19))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["mean_iou"] == pytest.approx(found.mean_iou)


def test_an_evaluation_leaves_a_picture_of_image_truth_and_prediction(run, root, tmp_path):
    assert run().exit_code == 0
    pictures = sorted((tmp_path / "run/pictures").iterdir())
    assert [path.name for path in pictures] == ["step-00000003.png", "step-00000006.png"]
    network, _ = load_network("smp18", tmp_path / "run/weights.safetensors")
    known = folder(19)
    rows = []
    for image in sorted((root / "images/val").iterdir()):
        truth = known.read(root / "labels/val" / image.name)
        found = fullres.predict(image, network, precision="fp32")
        labels = [colour(each, known.palette) for each in (truth, found)]
        rows.append(np.hstack([read_image(image), *labels]))
    assert (read_image(pictures[1]) == stacked(rows)).all()
    (events,) = (tmp_path / "run/tensorboard").iterdir()
    assert all(path.read_bytes() in events.read_bytes() for path in pictures)
    pictures[1].rename(pictures[1].with_name("step-00000009.png"))  # as of a run that was stopped
    assert run().exit_code == 0
    assert [path.name for path in (tmp_path / "run/pictures").iterdir()] == ["step-00000003.png"]


def test_stopped_anywhere_it_leaves_the_same_course(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "check_space", lambda *a: None)
    assert run().exit_code == 0
    whole = metrics_of(tmp_path / "run")
    step, stopped = PlainEngine.step, []

    def interrupted(self, number, *others):
        if number in (3, 5) and number not in stopped:
            stopped.append(number)
            raise KeyboardInterrupt
        return step(self, number, *others)

    (tmp_path / "run").rename(tmp_path / "whole")
    monkeypatch.setattr(PlainEngine, "step", interrupted)
    for _ in range(2):
        assert run().exit_code != 0
    assert run().exit_code == 0
    assert stopped == [3, 5]
    assert metrics_of(tmp_path / "run") == whole
    for name in ("weights.safetensors", "best.safetensors", "summary.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run().exit_code == 0  # what is done stays
    assert (tmp_path / "run/summary.json").read_bytes() == (tmp_path / "whole/summary.json").read_bytes()


def test_from_scratch_begins_afresh(run, tmp_path):
    assert run("seed=1").exit_code == 0
    assert "of another configuration" in one_line(run())
    assert run(options=("--threads", "1", "--from-scratch")).exit_code == 0
    assert run(f"out={tmp_path}/other").exit_code == 0
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "other")
    for name in ("weights.safetensors", "best.safetensors", "summary.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_dry_run_prints_what_would_be_trained(run, root, tmp_path):
    result = run(
        "data.workers=3",
        "augmentation.scale=[0.75, 1.25]",
        own="[model]\nwidth = 0.125\n",
        options=("--dry-run",),
    )
    assert result.exit_code == 0, result.output
    said = tomllib.loads(result.stdout)
    assert said["model"] == {"name": "smp18", "width": 0.125, "auxiliary": "cross_entropy", "freeze": []}
    assert (said["data"]["workers"], said["data"]["root"]) == (3, str(root))
    assert said["augmentation"]["scale"] == [0.75, 1.25]
    assert "19 classes; 3 images, 4.0 epochs" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "own", "message"),
    [
        (["steps"], "", "--set is 'steps': field=value"),
        (["stepps=3"], "", "stepps: no such field (did you mean steps?)"),
        (["model.name=smp19"], "", "model.name is 'smp19': one of smp18"),
        (["data.root=nowhere"], "", "nowhere: no such folder"),
        (["data.split=test"], "", "nothing of the split test of folder"),
        (["data.validation=none"], "", "data.validation is 'none': folder has all, train, val, test"),
    ],
)
def test_mistakes_of_extended_files(run, tmp_path, changes, own, message):
    result = run(*changes, own=own)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_layout_is_told_before_it_runs(run):
    shared = ("parallel.split=2", "phases=[1, 2, 2, 1]")
    result = run(*shared, "parallel.zero=2", options=("--dry-run", "--workers", "4"))
    assert result.exit_code == 0, result.output
    assert "4 workers: 2 parts of every batch, 2 share the phases of each" in result.stderr
    assert tomllib.loads(result.stdout)["parallel"] == {
        "split": 2, "pipeline": 1, "zero": 2, "offload": False,
    }  # fmt: skip
    result = run(*shared, options=("--dry-run",))
    assert "2 workers: 1 parts of every batch, 2 share" in result.stderr
    result = run("batch_size=6", options=("--dry-run", "--workers", "1-5"))
    assert "3 (or 1, 2) workers: 3 parts of every batch" in result.stderr
    of_stages = [line.split()[-1] for line in result.stderr.splitlines() if line.startswith("ZeRO ")]
    assert [memory.isdecimal() for memory in of_stages] == [True] * 4


def test_stages_and_batches_are_of_what_is_sampled(run, tmp_path):
    """As if the crops were of that size."""
    staged = ("model.name=unet", "parallel.pipeline=2")
    lines = []
    for sizes in (("crop=[32, 48]",), ("crop=[64, 96]", "sampling.size=[32, 48]"), ("crop=[64, 96]",)):
        result = run(*staged, *sizes, options=("--dry-run",))
        assert result.exit_code == 0, result.output
        lines.append([line for line in result.stderr.splitlines() if line.startswith("stage ")])
    assert lines[0] == lines[1] != lines[2]
    assert len(lines[0]) == 2
    one = ("model.name=deeplabv3plus-mobilenet", "batch_size=1", "crop=[64, 96]")
    message = one_line(run(*one, "sampling.size=[16, 24]"))
    assert "one value a channel at 24x16 pixels; 2 or more" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (["parallel.split=2"], ("--dry-run",), "phases are (1, 1, 1, 1): 2 workers can't share them evenly"),
        (["parallel.split=8", "phases=[1, 1, 3, 4]"], (), "8 workers can't share them evenly"),
        (["parallel.split=2", "model.name=unet"], (), "parallel.split is 2: only an SMP splits, not unet"),
        (
            ["parallel.split=2", "phases=[2, 1, 1, 1]", "crop=[64, 80]"], (),
            "crop is (64, 80): with parallel.split multiples of 32",
        ),
        (["parallel.pipeline=2", "crop=[64, 80]"], (), "with parallel.pipeline multiples of 32"),
        (["parallel.pipeline=2", "parallel.zero=2"], (), "parallel.pipeline is 2: with split 1, zero 0 or 1"),
        (
            ["parallel.pipeline=99"], ("--dry-run",),
            "parallel.pipeline is 99: the network has 21 stages at most",
        ),
        (
            ["parallel.pipeline=2", "model.freeze=['backbone']"], ("--dry-run",),
            "parallel.pipeline is 2: stage 0 has nothing to train with model.freeze ['backbone']",
        ),
        (
            ["parallel.pipeline=2", "parallel.data=2"], ("--workers", "3"),
            "workers is 3: parallel asks for data 2 times pipeline 2",
        ),
        (["parallel.offload=true"], (), "parallel.offload is true: needs zero, 1 to 3"),
        (["parallel.zero=4"], (), "parallel.zero = 4: Input should be 0, 1, 2 or 3"),
        (["parallel.zro=1"], (), "parallel.zro: no such field (did you mean zero?)"),
        (
            ["parallel.split=2", "phases=[2, 1, 1, 1]"], ("--workers", "3"),
            "workers is 3: parallel asks for a multiple of split 2",
        ),
        (["parallel.data=2"], ("--workers", "3"), "workers is 3: parallel asks for data 2 times split 1"),
        (["parallel.least=3"], (), "parallel.least is 3: needs data, and no less than that"),
        (["batch_size=3"], ("--dry-run", "--workers", "2"), "batch_size is 3: no multiple of 2 workers"),
    ],
)  # fmt: skip
def test_layouts_that_are_none(run, tmp_path, changes, options, message):
    result = run(*changes, options=options)
    assert message in one_line(result)
    assert not (tmp_path / "run").exists()


def test_a_base_has_no_base_and_must_be_there(run, tmp_path):
    (tmp_path / "configs/base.toml").write_text('base = "other.toml"')
    assert "which has a base of its own: one file extends one other" in run().stderr
    (tmp_path / "configs/base.toml").unlink()
    assert re.search(r"base is '\S*base\.toml': no such file", run().stderr)


def test_accumulated_parts_make_up_the_batch(run, tmp_path):
    """Without batch norm's statistics of each part, they would differ by nothing but rounding."""
    asked = ("model.freeze=['batch_norm']", "batch_size=4", "gradient_clipping=0.5", "optimizer=sgd")
    losses = {}
    for parts in (1, 2, 4):
        assert run(*asked, f"accumulation={parts}", f"out={tmp_path}/{parts}").exit_code == 0
        losses[parts] = [line["loss"] for line in metrics_of(tmp_path / f"{parts}") if "loss" in line]
    assert losses[1] != losses[2]
    assert losses[2] == pytest.approx(losses[1], rel=0.1)


def test_a_loss_that_is_no_number_names_step_and_files(run, tmp_path, monkeypatch):
    forward = SegmentationLoss.forward
    calls = []

    def diverging(self, *arguments):
        calls.append(None)
        return forward(self, *arguments) * (math.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(SegmentationLoss, "forward", diverging)
    line = one_line(run())
    assert re.search(r"loss is nan at step 3: lower learning_rate .* batch: \S+/\d\.png, \S+/\d\.png", line)
    last = max((tmp_path / "run/checkpoints").iterdir())
    assert last.name == "step-00000003.pt"  # that of the evaluation
