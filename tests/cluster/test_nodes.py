"""Nodes that come and go: several Ray nodes on this machine."""

import logging
import threading

import pytest
import ray
import torch

from fullres.cluster import crew
from fullres.cluster.coordinator import Coordinator
from fullres.pipeline.predict.engines import SplitMerge
from tests.cluster.streams import assert_same_bytes, images_of, in_process, options, run
from tests.clusters import cluster_of, node_of
from tests.networks import narrow

torch.set_num_threads(1)


@pytest.fixture
def cluster():
    cluster = cluster_of(1, 128)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_node_joins_and_is_lost(cluster, monkeypatch):
    monkeypatch.setattr(crew, "_CLUSTER_POLL", 0.5)
    network = narrow("smp18")
    images = images_of([(192, 256)] * 24)
    running = Coordinator(SplitMerge(network), options(None))
    assert len(running.progress.workers) == 1
    node = None
    joined, gone = threading.Event(), threading.Event()

    def report(progress):
        nonlocal node
        if node is None and progress.grains_done:
            node = cluster.add_node(**node_of(2, 128))
        added = [w for w in progress.workers if w.info is not None and node and w.info.node == node.node_id]
        if len(added) == 2:
            joined.set()
        if not gone.is_set() and sum(w.grains for w in added) > 40 and any(w.held for w in added):
            cluster.remove_node(node, allow_graceful=False)
            gone.set()

    # no more than four images are begun before the first is written
    results = run(running, images, report, before_write=lambda: joined.wait(60))
    assert_same_bytes(results, in_process(network, images))
    assert gone.is_set()
    progress = running.progress
    assert progress.done == 24
    assert progress.grains_rerun >= 1
    assert progress.grains_done == 24 * 16
    assert sorted(w.info is not None for w in progress.workers) == [False, False, True]
    assert all(w.grains for w in progress.workers)
    # either node gets an image once, however many of its grains it works on
    assert progress.image_bytes < progress.bytes_out <= 2 * progress.image_bytes
    running.close()
