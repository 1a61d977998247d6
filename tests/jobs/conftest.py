"""One Ray cluster for all jobs of a test process: starting one takes as long as many of them."""

import pytest

from tests.clusters import cluster_of


@pytest.fixture(scope="session")
def cluster():
    """Of three CPUs; jobs run on it one after the other, with `--address` or RAY_ADDRESS."""
    cluster = cluster_of(3)
    yield cluster
    cluster.shutdown()
