"""`fullres predict` under `ray job submit`, its code shipped as a wheel to a head of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.images import read_labels, write_png
from tests.networks import narrow, random_image

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build leaves traces in the tree it builds
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
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


@pytest.fixture
def head(tmp_path):
    """The addresses of a real head's job server and of its control service; its session ends with the test."""
    gcs, dashboard, *agents = free_ports(5)
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    command = [
        RAY, "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1", "--num-cpus=3",
        f"--dashboard-port={dashboard}", "--object-store-memory=134217728", f"--temp-dir={short(tmp_path)}",
        f"--dashboard-agent-listen-port={agents[0]}", f"--dashboard-agent-grpc-port={agents[1]}",
        f"--runtime-env-agent-port={agents[2]}",
    ]  # fmt: skip
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    yield f"http://127.0.0.1:{dashboard}"
    process.send_signal(signal.SIGTERM)  # ends what it started
    process.wait(60)
    log.close()
    shutil.rmtree(short(tmp_path), ignore_errors=True)
