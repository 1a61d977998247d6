"""Ray clusters of this machine for tests: without a dashboard, and with ports that nobody else has, as other
test processes have theirs at the same time."""

import os
from typing import Any

from ray.cluster_utils import Cluster


def cluster_of(cpus: int, store_mib: int = 256) -> Cluster:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Processes started ahead would be for workers without an environment of their own: few here are.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    return Cluster(
        initialize_head=True, head_node_args={"include_dashboard": False, **node_of(cpus, store_mib)}
    )


def node_of(cpus: int, store_mib: int = 256) -> dict[str, Any]:
    """What `Cluster.add_node` takes."""
    return {"num_cpus": cpus, "object_store_memory": store_mib << 20, "dashboard_agent_listen_port": 0}
