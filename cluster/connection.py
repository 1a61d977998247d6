"""The connection to a Ray cluster: one that runs, or one of this machine's own."""

import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from unittest.mock import patch

import ray

from fullres.cluster.memory import available_bytes
from fullres.ops.errors import FullresError

_STORE = 2 << 30  # bytes of a local cluster's object store, at most
_LEAST_STORE = 80 << 20  # Ray takes no less
# Ray would start some beforehand, of an environment that none of ours has.
_NO_IDLE_WORKERS = {"prestart_worker_first_driver": False}
_NODE_DIED = (
    "Ray's node on this machine has died (killed, or out of memory): what is written stays, and the same "
    "command goes on from there"
)
_LONGEST_FOLDER = 40  # characters: paths of sockets have 107 in all


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
                    log_to_driver=False, logging_level=logging.ERROR, object_store_memory=_store_bytes(),
                    _temp_dir=_short_folder(), _system_config=_NO_IDLE_WORKERS,
                )  # fmt: skip
            else:
                _check_listening(address or os.environ.get("RAY_ADDRESS", ""))
                ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS")
        what = f"no Ray cluster at '{where}'" if where else "no Ray cluster could be started here"
        raise ClusterError(f"{what} ({first_line(error)})") from error
    ended = threading.Event()
    own = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == own)
    at = (node["NodeManagerAddress"], node["NodeManagerPort"])
    threading.Thread(target=_watch_node, args=(at, ended), daemon=True).start()
    try:
        # Ray prints pages of a dead node's logs on standard output, and has no option against it.
        with patch.object(ray._private.worker, "print_to_stdstream", _print_nothing, create=True):
            yield
    finally:
        ended.set()
        ray.shutdown()


def _print_nothing(*arguments: object, **named: object) -> None:
    pass


def _store_bytes() -> int:
    """For images and results on their way: a quarter of the memory that is free, where that is little."""
    return max(_LEAST_STORE, min(_STORE, available_bytes() // 4))


def _short_folder() -> str | None:
    """Ray puts its sockets below TMPDIR, and paths of sockets are short: another folder where it is long."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return None if len(folder) <= _LONGEST_FOLDER else "/tmp/ray"


def _watch_node(at: tuple[str, int], ended: threading.Event) -> None:
    """End this process with one line when Ray's node on this machine, which listens there, has died: Ray
    would end it too, a second later and with pages of logs."""
    while not ended.wait(0.25):
        try:
            socket.create_connection(at, timeout=5).close()
        except ConnectionRefusedError:
            if not ended.wait(0.1):
                sys.stderr.write(f"\nerror: {_NODE_DIED}\n")
                sys.stderr.flush()
                os._exit(1)
        except OSError:
            continue  # too busy to answer


def first_line(error: BaseException) -> str:
    """Of its message; its kind where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_listening(address: str) -> None:
    """Raise OSError where nobody listens at 'host:port': Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()
