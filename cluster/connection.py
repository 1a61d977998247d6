"""The connection to a Ray cluster: one that runs, or one of this machine's own."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager

import ray

from fullres.ops.errors import FullresError

_STORE = 2 << 30  # bytes of a local cluster's object store


class ClusterError(FullresError):
    """No cluster to run on; one line."""


@contextmanager
def ray_cluster(address: str | None, cpus: int | None) -> Iterator[None]:
    """Connect to the cluster at `address` ('auto', 'host:port'); without one start one here, with at least
    `cpus` workers' worth of CPUs. Where this process is connected already, that cluster is taken and left.

    Raises ClusterError.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    inside_job = "RAY_JOB_ID" in os.environ or "RAY_ADDRESS" in os.environ
    try:
        # Ray puts the folder it is started in before the workers' own packages: one without any.
        with chdir("/"):
            if address is None and not inside_job:
                ray.init(
                    address="local", num_cpus=max(cpus or 0, os.cpu_count() or 1), include_dashboard=False,
                    log_to_driver=False, logging_level=logging.ERROR, object_store_memory=_STORE,
                )  # fmt: skip
            else:
                _check_listening(address or os.environ.get("RAY_ADDRESS", ""))
                ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS")
        raise ClusterError(f"no Ray cluster at '{where}' ({first_line(error)})") from error
    try:
        yield
    finally:
        ray.shutdown()


def first_line(error: BaseException) -> str:
    """Of its message; its kind where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_listening(address: str) -> None:
    """Raise OSError where nobody listens at 'host:port': Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()
