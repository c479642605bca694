"""A real cluster of Ray of several nodes on this machine. Needs the extra ray."""

from __future__ import annotations

import os
from typing import Any

import psutil

NODE: dict[str, Any] = {"num_cpus": 1, "memory": 3 << 30, "object_store_memory": 80 << 20}


class Nodes:
    """A cluster: a head without room for tasks, and nodes of one core each."""

    def __init__(self, n_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "RAY_worker_niceness": "0",
        }
        head = {**NODE, "num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(n_nodes)]
        self.address = self.cluster.address

    def processes(self, mark: str) -> list[psutil.Process]:
        """Those of the cluster whose command line has `mark`."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if any(mark in argument for argument in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found
