"""The exit status is the tests': threads of Ray and torch can crash the interpreter after the last one.
Hypothesis draws the same examples each time: a test must not fail by chance."""

import os
import sys

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

_status = 0


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint to a file that goes when the test ends: some have hundreds of megabytes."""
    path = tmp_path / "w.pth"

    def write(content):
        torch.save(content, path)
        return path

    yield write
    path.unlink(missing_ok=True)


def pytest_sessionfinish(session, exitstatus):
    global _status
    _status = int(exitstatus)


def pytest_unconfigure(config):
    if hasattr(config, "workerinput"):  # a process of pytest-xdist: it still has to report
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
