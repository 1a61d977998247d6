"""One Ray cluster for all jobs of a test process: starting one takes as long as many of them."""

import os

import pytest
from ray.cluster_utils import Cluster


@pytest.fixture(scope="session")
def cluster():
    """Of three CPUs; jobs run on it one after the other, with `--address` or RAY_ADDRESS."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 256 << 20})
    yield cluster
    cluster.shutdown()
