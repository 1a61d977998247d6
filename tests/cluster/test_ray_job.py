"""Jobs under `ray job submit`, their code shipped as a wheel to a head of its own."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ray.job_submission import JobStatus, JobSubmissionClient

from fullres.models.weights import WeightsInfo, load_network, save_weights
from fullres.pipeline.data.images import read_labels, write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.targets.compute import TargetSpec, targets_of
from tests.cluster.streams import in_process
from tests.networks import narrow, random_image
from tests.scenes import render_scene

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    """Below those that the kernel gives out by itself, so that nobody else gets one before it is used."""
    free: list[int] = []
    while len(free) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if port not in free and probe.connect_ex(("127.0.0.1", port)) != 0:
                free.append(port)
    return free


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build leaves traces in the tree it builds
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in tracked:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Where a head of its own takes jobs. It and all that it started end with the tests."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie in it: their paths must be short
    gcs, dashboard, *agents = free_ports(5)
    command = [
        RAY, "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1", "--num-cpus=2",
        f"--dashboard-port={dashboard}", f"--object-store-memory={128 << 20}", f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={agents[0]}", f"--dashboard-agent-grpc-port={agents[1]}",
        f"--runtime-env-agent-port={agents[2]}",
    ]  # fmt: skip
    # Ray installs the wheel with pip: without this, torch and all the rest with it
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PIP_NO_DEPS": "1"}
    # The dashboard gives up after half a minute, which a busy machine may need.
    environment |= {"RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "280"}
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"  # jobs run this Python
    with (tmp_path_factory.mktemp("head") / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield client_of(f"http://127.0.0.1:{dashboard}")
        finally:
            process.terminate()  # ends what it started
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)  # a process that ends may still write there


def client_of(address: str) -> JobSubmissionClient:
    """Once the head takes jobs."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def logs_of(client: JobSubmissionClient, wheel: Path, arguments: str) -> str:
    """What `fullres` with these arguments prints as a job that succeeds."""
    job = client.submit_job(
        entrypoint=f"python -m fullres.jobs.cli {arguments}", runtime_env={"py_modules": [str(wheel)]}
    )
    deadline = time.monotonic() + 300
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.2)
    logs = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, logs
    return logs


def test_predict_on_a_head_that_gets_the_wheel(head, wheel, tmp_path):
    save_weights(
        narrow("smp18", 1 / 16, 11), tmp_path / "w.safetensors", WeightsInfo("smp18", 1 / 16, 11, "camvid")
    )
    image = random_image(360, 480)
    write_png(tmp_path / "frame.png", image)
    logs = logs_of(
        head,
        wheel,
        f"predict {tmp_path}/frame.png --weights {tmp_path}/w.safetensors --precision fp32 --workers 2"
        f" --out {tmp_path}/out",
    )
    assert "1 image labelled" in logs
    told = json.loads((tmp_path / "out/summary.json").read_text())
    assert len(told["workers"]) == 2
    expected = in_process(load_network("smp18", tmp_path / "w.safetensors")[0], {"frame": image})["frame"]
    assert (read_labels(tmp_path / "out/frame.png") == expected).all()


@pytest.mark.slow
def test_targets_on_a_head_that_gets_the_wheel(head, wheel, tmp_path):
    image, labels = render_scene(0, 90, 120)
    write_png(tmp_path / "images/0.png", image)
    write_png(tmp_path / "labels/0.png", labels)
    logs = logs_of(head, wheel, f"targets --dataset scenes --root {tmp_path} --out {tmp_path}/out --grid 4x4")
    assert "targets of 1 label map in" in logs
    phi = pq.read_table(tmp_path / "out")["phi"].combine_chunks().to_numpy_ndarray()
    expected = targets_of(labels, dataset("scenes"), TargetSpec((4, 4)))["phi"]
    np.testing.assert_array_equal(phi[0], expected)
