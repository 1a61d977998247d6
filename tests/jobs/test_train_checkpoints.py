"""The checkpoints of `fullres train`: which there are, and that the training does not wait for them."""

import signal
import subprocess
import sys
import threading

import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.weights import load_network
from fullres.pipeline.data.images import write_png
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.train import checkpoint, loop
from fullres.pipeline.train.checkpoint import name_of, saved
from fullres.pipeline.train.engine import PlainEngine
from tests.scenes import render_scene

CONFIG = """
out = "{0}/run"
steps = 8
batch_size = 2
crop = [64, 64]
learning_rate = 1e-3
checkpoint_every = 2
[model]
name = "smp18"
width = 0.0625
[data]
dataset = "folder"
classes = 19
root = "{0}/root"
workers = 0
"""
KILLED = """
import os, signal, sys, torch
from typer.testing import CliRunner
from fullres.jobs.cli import app
save, calls = torch.save, []
def killed(state, file):
    calls.append(None)
    if len(calls) < 3:
        return save(state, file)
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
CliRunner().invoke(app, sys.argv[1:])
"""


@pytest.fixture
def arguments(tmp_path):
    for split, seed in (("train", 1), ("train", 2), ("val", 3)):
        image, labels = render_scene(seed, 64, 96)
        write_png(tmp_path / f"root/images/{split}/{seed}.png", image)
        write_png(tmp_path / f"root/labels/{split}/{seed}.png", labels)
    (tmp_path / "config.toml").write_text(CONFIG.format(tmp_path))
    return ["train", str(tmp_path / "config.toml"), "--threads", "1"]


@pytest.fixture
def train(arguments):
    def run(*changes, options=()):
        changed = [word for change in changes for word in ("--set", change)]
        return CliRunner().invoke(app, [*arguments, *changed, *options])

    return run


@pytest.fixture
def scores(monkeypatch):
    """What evaluations find, one after the other; the last one again and again."""
    found = []
    score = loop.score

    def scored(*arguments):
        evaluation, picture = score(*arguments)
        value = found.pop(0) if len(found) > 1 else found[0]
        evaluation.__dict__["class_iou"] = evaluation.class_iou * 0 + value
        return evaluation, picture

    monkeypatch.setattr(loop, "score", scored)
    return found


EVALUATED = ("data.validation=val", "evaluate_every=3")


def weights_of(path, state):
    network, _ = load_network("smp18", path)
    return all(t.equal(state[name]) for name, t in network.state_dict().items() if "tracked" not in name)


def test_the_last_and_the_best_are_kept(train, scores, tmp_path):
    scores[:] = [0.5, 0.4, 0.3]
    assert train(*EVALUATED, "keep_checkpoints=1").exit_code == 0
    out = Storage(str(tmp_path / "run"))
    assert saved(out) == [3, 8]
    best = torch.load(tmp_path / "run" / name_of(3), weights_only=True)
    assert (best["course"]["best"], best["course"]["best_step"]) == (pytest.approx(0.5), 3)
    assert weights_of(tmp_path / "run/best.safetensors", best["network"])
    assert train("steps=8", *EVALUATED, "keep_checkpoints=3", "out=" + str(tmp_path / "b")).exit_code == 0
    assert saved(Storage(str(tmp_path / "b"))) == [3, 4, 6, 8]


def test_the_best_weights_are_there_though_their_process_died_before(train, scores, tmp_path, monkeypatch):
    """Their checkpoint is written first."""
    scores[:] = [0.5, 0.6, 0.5]
    assert train(*EVALUATED, f"out={tmp_path}/undisturbed").exit_code == 0
    write, calls = checkpoint.write_weights, []

    def failing(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise OSError("no space left")
        write(*arguments)

    scores[:] = [0.5, 0.6]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_weights", failing)
        result = train(*EVALUATED)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: no space left"
    scores[:] = [0.5]
    assert train(*EVALUATED).exit_code == 0
    for name in ("best.safetensors", "weights.safetensors", "summary.json"):
        found, expected = ((tmp_path / run / name).read_bytes() for run in ("run", "undisturbed"))
        assert found == expected


def test_steps_go_on_while_a_checkpoint_is_written_and_wait_for_the_one_before(train, tmp_path, monkeypatch):
    """The copy that is written is of its own step."""
    fourth, done = threading.Event(), []
    step, save = PlainEngine.step, torch.save

    def noted(self, number, *others):
        done.append(number)
        if number == 3:
            fourth.set()
        return step(self, number, *others)

    def slow(state, file):
        assert fourth.wait(60)
        if state["step"] == 2:
            assert max(done) == 3  # the checkpoint of step 4 waits
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(PlainEngine, "step", noted)
        patch.setattr(torch, "save", slow)
        assert train("keep_checkpoints=9").exit_code == 0
    assert saved(Storage(str(tmp_path / "run"))) == [2, 4, 6, 8]
    weights = tmp_path / "run/weights.safetensors"
    expected = weights.read_bytes()
    for later in (4, 6, 8):
        (tmp_path / "run" / name_of(later)).unlink()
    assert train().exit_code == 0
    assert weights.read_bytes() == expected


def test_killed_while_it_writes_it_goes_on_from_the_one_before(train, arguments, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "run/checkpoints"
    assert saved(Storage(str(tmp_path / "run"))) == [2, 4]
    assert len(list(folder.glob(".step-*"))) == 1
    assert train().exit_code == 0
    assert not list(folder.glob(".step-*"))
    found = (tmp_path / "run/weights.safetensors").read_bytes()
    assert train(options=("--from-scratch",)).exit_code == 0
    assert (tmp_path / "run/weights.safetensors").read_bytes() == found


def test_from_scratch_leaves_nothing_of_the_training_before(train, tmp_path, monkeypatch):
    assert train(*EVALUATED).exit_code == 0
    assert saved(Storage(str(tmp_path / "run")))

    def stop(self, *others):
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainEngine, "step", stop)
    before = {path.name for path in (tmp_path / "run").iterdir()}
    for mistake in ("data.root=nowhere", "model.weights=no.pth"):
        assert train(*EVALUATED, mistake, options=("--from-scratch",)).exit_code == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == before  # all that can be lost is there
    assert train(*EVALUATED, options=("--from-scratch",)).exit_code != 0
    assert saved(Storage(str(tmp_path / "run"))) == []
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == b""
