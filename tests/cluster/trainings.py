"""Trainings on Ray workers for tests, and what to hold their results against."""

import json
import os
import signal
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fullres.pipeline.data.images import write_png
from tests.scenes import render_scene

STEPS = 10


def configuration(folder, out, root, model="smp18", width=0.0625):
    """A file in `folder` for a training of a narrow network that leaves its results in `folder`/`out`."""
    path = folder / f"{out}.toml"
    path.write_text(f"""
out = "{folder / out}"
steps = {STEPS}
batch_size = 4
crop = [64, 64]
optimizer = "sgd"
learning_rate = 1e-3
schedule = "poly"
checkpoint_every = 3
[model]
name = "{model}"
width = {width}
[data]
dataset = "folder"
classes = 19
root = "{root}"
workers = 0
""")
    return path


def write_root(root):
    """Scenes of which some have hardly a labelled pixel, so that workers' counts differ."""
    for split, count in (("train", 7), ("val", 3)):
        for i in range(count):
            image, labels = render_scene(i, 72, 88)
            if i % 3 == 0:
                labels[8:] = 255
            write_png(root / f"images/{split}/{i}.png", image)
            write_png(root / f"labels/{split}/{i}.png", labels)
    return root


def course_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


MEASURED = {"images_per_second", "waiting", "memory"}


def without_measured(folder):
    return [{name: v for name, v in line.items() if name not in MEASURED} for line in course_of(folder)]


def assert_equal(folder, reference):
    assert without_measured(folder) == without_measured(reference)
    for name in ("weights.safetensors", "summary.json"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()


def assert_close(folder, reference):
    """But for rounding. A pixel on the edge between two classes changes the mean IoU."""
    for line, expected in zip(course_of(folder), course_of(reference), strict=True):
        for name, tolerance in {"loss": 1e-5, "mean_iou": 1e-2}.items():
            assert line.get(name, 0) == pytest.approx(expected.get(name, 0), rel=tolerance)
    ours, theirs = (load_file(f / "weights.safetensors") for f in (folder, reference))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-4)


def workers_of_training():
    """Process ids of Ray Train's workers on this test's clusters."""
    return [p.pid for p in psutil.Process().children(recursive=True) if _trains(p)]


def _trains(process):
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def checkpoints(folder):
    """Without those that are being written."""
    return set(folder.glob("checkpoints/step-*.pt"))


def kill_a_worker_of(folder, killed):
    """Once it has a checkpoint."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not checkpoints(folder):
        time.sleep(0.01)
    killed.extend(workers_of_training()[:1])
    os.kill(killed[0], signal.SIGKILL)


def one_line(result):
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return line
