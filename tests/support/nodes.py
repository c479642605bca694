"""A real cluster of Ray of several nodes on this machine, and commands that ask it for tasks. Needs the extra ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from support.commands import clean_environment

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


class Driver:
    """A command with `--ray` in a process of its own."""

    def __init__(self, arguments: Sequence[str], out: Path, address: str, pattern: str) -> None:
        """pattern: of the names of files that its tasks leave each other."""
        self.out = out
        self._pattern = pattern
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokmill", *arguments, "--out", str(out), "--ray", address],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def result(self, *, code: int = 0) -> str:
        said, shown = self.process.communicate(timeout=240)
        assert self.process.returncode == code, shown
        return said + shown

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def files(self) -> dict[str, int]:
        """Inodes of what tasks have left, by name."""
        found = {}
        for path in (self.out / ".tokmill").glob(self._pattern):
            try:
                found[path.name] = path.stat().st_ino
            except FileNotFoundError:
                continue
        return found
