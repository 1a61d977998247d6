"""A training on Ray workers is the one in this process, whatever happens to them."""

import os
import re
import shutil
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import read_image
from fullres.pipeline.data.storage import Storage
from tests.cluster.trainings import (
    STEPS,
    assert_close,
    assert_equal,
    checkpoints,
    configuration,
    kill_a_worker_of,
    one_line,
    write_root,
)
from tests.clusters import cluster_of
from tests.pipeline.data.object_stores import BUCKETS, CREDENTIALS


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():  # workers have the environment of their node
            patch.setenv(name, value)
        cluster = cluster_of(2, 128)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def train_in(folder, cluster, root, out, workers, *changes, **network):
    config = configuration(folder, out, root, **network)
    asked = ["--threads", "1"] if workers is None else ["--workers", workers, "--address", cluster.address]
    changed = [word for change in changes for word in ("--set", change)]
    return CliRunner().invoke(app, ["train", str(config), *changed, *map(str, asked)])


@pytest.fixture
def train(cluster, root, tmp_path):
    return partial(train_in, tmp_path, cluster, root)


# Phases drawn of every split, a scored split, clipped gradients; and what two workers divide of it.
RECIPE = ("phases=[1, 1, 2, 4]", "gradient_clipping=1.0", "data.validation=val", f"evaluate_every={STEPS}")
DIVIDED = ("parallel.split=2", "parallel.zero=3")


@pytest.fixture(scope="module")
def by_two(cluster, root, tmp_path_factory):
    """What two workers leave whom nobody disturbs."""
    folder = tmp_path_factory.mktemp("two")
    result = train_in(folder, cluster, root, "two", 2, *RECIPE, *DIVIDED)
    assert result.exit_code == 0, result.output
    return folder / "two"


@pytest.fixture(scope="module")
def plain(cluster, root, tmp_path_factory):
    """What one process leaves, without Ray."""
    folder = tmp_path_factory.mktemp("plain")
    result = train_in(folder, cluster, root, "plain", None, *RECIPE)
    assert result.exit_code == 0, result.output
    return folder / "plain"


def assert_same_frames_shown(folder, reference):
    pictures = [read_image(run / f"pictures/step-{STEPS:08d}.png") for run in (folder, reference)]
    truths = [picture[:, : picture.shape[1] * 2 // 3] for picture in pictures]  # images and labels
    assert (truths[0] == truths[1]).all()


def test_two_workers_are_one_process_with_the_whole_batch(by_two, plain):
    """They share the phases, and the parameters."""
    assert_close(by_two, plain)
    assert_same_frames_shown(by_two, plain)


@pytest.mark.slow
def test_one_worker_is_one_process(train, plain, tmp_path):
    result = train("one", 1, *RECIPE)
    assert result.exit_code == 0, result.output
    assert_equal(tmp_path / "one", plain)
    assert_same_frames_shown(tmp_path / "one", plain)


@pytest.mark.slow
def test_accumulated_parts_of_a_network_with_dropout_and_auxiliary_losses(train, tmp_path):
    """Two workers differ by rounding, of which a narrow network makes much: they learn slowly."""
    for rate, workers in ((1e-3, 1), (1e-6, 2)):
        for out, count in ((f"plain-{workers}", None), (f"on-{workers}", workers)):
            changes = ("accumulation=2", "steps=3", "head_rate=2", f"learning_rate={rate}")
            result = train(out, count, *changes, model="ocrnet18")
            assert result.exit_code == 0, result.output
    assert_equal(tmp_path / "on-1", tmp_path / "plain-1")
    assert_close(tmp_path / "on-2", tmp_path / "plain-2")


def test_a_killed_worker_changes_nothing(train, by_two, tmp_path):
    killed = []
    thread = threading.Thread(target=kill_a_worker_of, args=(tmp_path / "killed", killed))
    thread.start()
    result = train("killed", 2, *RECIPE, *DIVIDED)
    thread.join()
    assert result.exit_code == 0, result.output
    assert len(killed) == 1
    assert_equal(tmp_path / "killed", by_two)


@pytest.mark.slow
def test_stages_go_on_after_a_kill_and_elsewhere(train, tmp_path):
    """A worker of two stages is killed; and one process goes on from what two stages began."""
    changes = ("accumulation=2", "data.validation=val", f"evaluate_every={STEPS}", "gradient_clipping=1.0")
    staged = (*changes, "parallel.pipeline=2")
    assert train("plain", None, *changes).exit_code == 0
    with first_checkpoint(tmp_path / "undisturbed", tmp_path / "staged-first") as of_stages:
        assert train("undisturbed", 2, *staged).exit_code == 0
    assert_close(tmp_path / "undisturbed", tmp_path / "plain")
    thread = threading.Thread(target=kill_a_worker_of, args=(tmp_path / "killed", []))
    thread.start()
    assert train("killed", 2, *staged).exit_code == 0
    thread.join()
    assert_equal(tmp_path / "killed", tmp_path / "undisturbed")
    (tmp_path / "on/checkpoints").mkdir(parents=True)
    for checkpoint in of_stages.iterdir():
        shutil.copy(checkpoint, tmp_path / "on/checkpoints")
    shutil.copy(tmp_path / "plain/metrics.jsonl", tmp_path / "on")
    assert train("on", None, *changes).exit_code == 0
    assert_close(tmp_path / "on", tmp_path / "plain")


@pytest.mark.slow
def test_another_number_of_workers_goes_on(train, tmp_path):
    """From two to one to none: the same global batches. Each goes on from the first checkpoint that the one
    before wrote."""
    assert train("plain", None).exit_code == 0
    before = None
    for out, workers in (("two", 2), ("one", 1), ("none", None)):
        if before is not None:
            (tmp_path / out / "checkpoints").mkdir(parents=True)
            shutil.copy(before, tmp_path / out / "checkpoints")
        with first_checkpoint(tmp_path / out, tmp_path / f"{out}-first") as copy:
            assert train(out, workers).exit_code == 0
        if workers is not None:
            (before,) = copy.iterdir()
            assert torch.load(before, weights_only=True)["step"] < STEPS
    assert_close(tmp_path / "none", tmp_path / "plain")


@contextmanager
def first_checkpoint(folder, copy):
    """A folder with the first one that is written into another from now on."""
    copy.mkdir()
    before = checkpoints(folder)
    ended = threading.Event()

    def wait():
        while not ended.wait(0.002):
            if new := checkpoints(folder) - before:
                os.link(min(new), copy / min(new).name)  # checkpoints are removed, not written over
                return

    thread = threading.Thread(target=wait)
    thread.start()
    yield copy
    ended.set()
    thread.join()


@pytest.mark.slow
def test_an_object_store_is_gone_on_in(train, tmp_path):
    assert train("plain", 2).exit_code == 0
    with BUCKETS["s3"]() as uri:
        out = Storage(uri.format("run"))
        result = train("plain", 2, f"out={out.location}")
        assert result.exit_code == 0, result.output
        out.remove(f"checkpoints/step-{STEPS:08d}.pt")
        assert train("plain", 2, f"out={out.location}").exit_code == 0
        for name in ("metrics.jsonl", "weights.safetensors", "summary.json"):
            (tmp_path / "stored").mkdir(exist_ok=True)
            (tmp_path / "stored" / name).write_bytes(out.read(name))
    assert_equal(tmp_path / "stored", tmp_path / "plain")


def test_what_cannot_be_read_ends_the_training_with_one_line(train, root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    (tmp_path / "root/images/train/3.png").write_bytes(b"\x89PNG")
    line = one_line(train("run", 2, f"data.root={tmp_path}/root"))
    assert re.search(r"root/images/train/3\.png: ", line)
    assert not (tmp_path / "run/weights.safetensors").exists()


@pytest.mark.slow
def test_a_loss_that_diverges_ends_the_training_with_one_line(train, tmp_path):
    line = one_line(train("run", 2, "learning_rate=1e30", "schedule=constant"))
    assert re.search(r"at step \d+: lower learning_rate \(now 1e\+30\)", line)
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_a_start_that_is_not_there_leaves_the_training_before(cluster, root, tmp_path):
    before = tmp_path / "run/checkpoints/step-00000003.pt"
    before.parent.mkdir(parents=True)
    before.write_bytes(b"kept")
    config = configuration(tmp_path, "run", root)
    asked = ["--workers", "2", "--address", cluster.address, "--set", "model.weights=nowhere.safetensors"]
    line = one_line(CliRunner().invoke(app, ["train", str(config), "--from-scratch", *asked]))
    assert "weights nowhere.safetensors: no such file" in line
    assert before.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("workers", "change", "said"),
    [
        (3, "batch_size=6", "workers is 3: each takes a CPU, the cluster has 2"),
        (2, "batch_size=5", "batch_size is 5: no multiple of 2 workers"),
        (2, "accumulation=4", "batch_size is 4: no multiple of 2 workers times accumulation 4"),
        ("2-4", "batch_size=5", "batch_size is 5: no multiple of any number of workers from 2 to 4"),
        ("3-4", "batch_size=6", "workers is 3: each takes a CPU, the cluster has 2"),
        ("4-2", "batch_size=4", "--workers is '4-2': a number, or the least and the most, e.g. 2-8"),
        (2, "data.root=nowhere", "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line_before_work(train, tmp_path, workers, change, said):
    assert said in one_line(train("run", workers, change))
    assert not (tmp_path / "run").exists()
