"""A training on nodes that are lost and that join is the undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from tests.cluster.trainings import (
    assert_close,
    assert_equal,
    checkpoints,
    configuration,
    workers_of_training,
    write_root,
)
from tests.clusters import cluster_of, node_of

pytestmark = pytest.mark.slow

# Steps that are long enough for Ray to notice what happens to nodes.
CHANGES = ("steps=60", "crop=[160, 160]", "model.name=fcn8s18", "model.width=0.125")
SLOWLY = "learning_rate=3e-7"  # other numbers of workers round otherwise, of which learning makes more


@pytest.fixture
def cluster():
    """Its head has room for one worker."""
    cluster = cluster_of(1, 128)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def train(cluster, root, tmp_path):
    def run(out, workers, *changes):
        asked = arguments(tmp_path, out, root, cluster, workers, *changes)
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 0, result.output

    return run


def arguments(folder, out, root, cluster, workers, *changes):
    config = configuration(folder, out, root)
    asked = ["train", str(config), "--workers", workers, "--address", cluster.address]
    return [*asked, *(word for change in (*CHANGES, *changes) for word in ("--set", change))]


@contextmanager
def meanwhile(run, out):
    """What is inside happens while `run` trains, behind its first checkpoint in `out`. Nodes are added by the
    main thread alone."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        until(lambda: running.done() or checkpoints(out))
        assert not running.done()
        yield running
        running.result()


def until(true):
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_below(node):
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return {child.pid for child in raylet.children(recursive=True)} & set(workers_of_training())


def lose(node, running):
    """Its raylet and its workers, at work, at once."""
    assert workers_below(node)
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (raylet, *raylet.children(recursive=True)):
        os.kill(process.pid, signal.SIGKILL)
    assert not running.done()


def lose_raylet(node, running, buried=True):
    """Alone: its workers train on until they notice. They do not where it is not `buried`, as in containers
    whose first process leaves the dead where they are."""
    assert workers_below(node)
    raylet = node.all_processes["raylet"][0].process
    raylet.kill()
    if buried:
        raylet.wait()
    assert not running.done()


@pytest.mark.parametrize("lose", [lose, lose_raylet])
def test_a_lost_node_is_waited_for(cluster, train, tmp_path, lose):
    """Two workers, one of them on a node that is lost and comes again."""
    node = cluster.add_node(**node_of(1, 128))
    train("undisturbed", "2")

    with meanwhile(lambda: train("disturbed", "2"), tmp_path / "disturbed") as running:
        lose(node, running)
        time.sleep(5)
        cluster.add_node(**node_of(1, 128))
    assert_equal(tmp_path / "disturbed", tmp_path / "undisturbed")


def test_a_lost_nodes_workers_go_elsewhere(cluster, train, tmp_path):
    nodes = [cluster.add_node(**node_of(2, 128)) for _ in range(2)]
    train("undisturbed", "2")

    with meanwhile(lambda: train("disturbed", "2"), tmp_path / "disturbed") as running:
        lose(next(node for node in nodes if workers_below(node)), running)
    assert_equal(tmp_path / "disturbed", tmp_path / "undisturbed")


def test_workers_that_outlive_their_node_write_no_more(cluster, train, tmp_path):
    """They stand still while others begin elsewhere, and come back when these have written a checkpoint."""
    nodes = [cluster.add_node(**node_of(2, 128)) for _ in range(2)]
    train("undisturbed", "2", "report_every=1")

    out = tmp_path / "disturbed"
    with meanwhile(lambda: train("disturbed", "2", "report_every=1"), out) as running:
        node = max(nodes, key=lambda node: len(workers_below(node)))
        outliving = [psutil.Process(pid) for pid in workers_below(node)]
        for worker in outliving:
            worker.suspend()
        before = checkpoints(out)
        lose_raylet(node, running, buried=False)
        until(lambda: checkpoints(out) - before)
        for worker in outliving:
            worker.resume()
    for worker in outliving:
        worker.kill()
    assert_equal(out, tmp_path / "undisturbed")


def test_fewer_workers_go_on_without_a_lost_node(cluster, train, tmp_path):
    """Of one to three workers two, as three do not divide the batch; then one."""
    node = cluster.add_node(**node_of(2, 128))
    train("undisturbed", "2", SLOWLY)
    with meanwhile(lambda: train("disturbed", "1-3", SLOWLY), tmp_path / "disturbed") as running:
        assert len(workers_of_training()) == 2
        lose(node, running)
    assert_close(tmp_path / "disturbed", tmp_path / "undisturbed")


def test_a_node_that_joins_is_used(cluster, root, tmp_path):
    """While a training lasts, which this one does for as long as it takes Ray to count its nodes."""
    out = tmp_path / "run"
    with command(arguments(tmp_path, "run", root, cluster, "1-2", "steps=100000")) as process:
        until(lambda: checkpoints(out))
        node = cluster.add_node(**node_of(1, 128))
        until(lambda: workers_below(node))
        before = max(checkpoints(out))
        until(lambda: max(checkpoints(out)) > before)
        assert process.poll() is None
        assert len(workers_of_training()) == 2


@contextmanager
def command(arguments):
    """`fullres` as a process of its own, killed at the end."""
    process = subprocess.Popen([sys.executable, "-m", "fullres.jobs.cli", *arguments])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_command_goes_on_after_its_own_death(cluster, train, root, tmp_path):
    cluster.add_node(**node_of(1, 128))
    train("undisturbed", "2")
    with command(arguments(tmp_path, "disturbed", root, cluster, "2")):
        until(lambda: checkpoints(tmp_path / "disturbed"))
    assert not (tmp_path / "disturbed/weights.safetensors").exists()
    until(lambda: not workers_of_training())
    train("disturbed", "2")
    assert_equal(tmp_path / "disturbed", tmp_path / "undisturbed")
