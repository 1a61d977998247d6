"""Clusters of this machine's own where it is short of something, and when they die."""

import os
import signal
import subprocess
import sys

import pytest

from fullres.cluster.connection import ClusterError, ray_cluster

LONG = "a-long-name-of-a-folder-for-temporary-files-that-somebody-has-chosen"

SHORT_OF_EVERYTHING = """
import ray
import fullres.cluster.connection as connection

connection.available_bytes = lambda: 200 << 20
with connection.ray_cluster(None, 1):
    print(ray.get(ray.put("here")), int(ray.cluster_resources()["object_store_memory"]) >> 20)
"""

WAITING = """
import os
import time
from fullres.cluster.connection import ray_cluster

def is_own(pid, name):
    stat = open(f"/proc/{pid}/stat").read()
    return f"({name})" in stat and int(stat.rpartition(")")[2].split()[1]) == os.getpid()

with ray_cluster(None, 1):
    print(next(pid for pid in os.listdir("/proc") if pid.isdigit() and is_own(pid, "raylet")), flush=True)
    time.sleep(300)
"""


def test_a_long_tmpdir_and_little_memory(tmp_path):
    folder = tmp_path / LONG
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_EVERYTHING],
        env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "here 80\n"


def test_a_node_that_dies_is_one_line():
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout
        os.kill(int(driver.stdout.readline()), signal.SIGKILL)
        out, err = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert out == ""
    (line,) = [line for line in err.splitlines() if line]
    assert line.startswith("error: Ray's node on this machine has died")
    assert "the same command goes on" in line


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379", "nonsense"])
def test_no_cluster_at_an_address(address):
    with pytest.raises(ClusterError, match=f"no Ray cluster at '{address}'"), ray_cluster(address, 1):
        pass
