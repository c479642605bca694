"""A cluster whose nodes share no disk: parts go to an object store, and what is killed costs no byte of the output."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import clean_environment
from support.outputs import written
from support.s3 import Bucket, Start

ray = pytest.importorskip("ray", reason="the extra ray is not installed: make ray")

import tokmill  # noqa: E402  behind what it needs

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

NODE: dict[str, Any] = {"num_cpus": 1, "memory": 3 << 30, "object_store_memory": 80 << 20}
URL = "s3://bucket/sets/one"
OPTIONS = ["--separator", "\\n\\n", "--val-fraction", "0.05", "--part-bytes", "1500kB", "--engine", "tiktoken"]


@pytest.fixture(scope="module")
def bucket(server: Bucket) -> Bucket:
    server.names()
    return server


@pytest.fixture(scope="module")
def cluster(bucket: Bucket) -> Iterator[Any]:
    """Two nodes, which have the store's address and keys of their own environment."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    made.add_node(**NODE)
    made.add_node(**NODE)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 MB: four parts."""
    path = tmp_path_factory.mktemp("corpus") / "a.txt"
    words = [
        word for source in sorted(Path(os.__file__).parent.glob("*.py"))[:80] for word in source.read_text("utf-8").split("\n\n")
    ]
    path.write_text("\n\n".join(words)[:6_000_000])
    return path


@pytest.fixture(scope="module")
def one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    out = tmp_path_factory.mktemp("one")
    tokmill.tokenize(corpus, out, separator="\\n\\n", val_fraction=0.05)
    return written(out)


def driver(corpus: Path, cluster: Any, stage: Path) -> subprocess.Popen[str]:
    arguments = ["tokenize", str(corpus), "--out", URL, "--ray", cluster.address, "--stage", str(stage), "--json", *OPTIONS]
    return subprocess.Popen(
        [sys.executable, "-m", "tokmill", *arguments],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def result(process: subprocess.Popen[str]) -> tuple[str, str]:
    said, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    return said, shown


def wait_for(process: subprocess.Popen[str], condition: Any) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_one_run(bucket: Bucket, one: tuple[bytes, bytes]) -> bool:
    names = bucket.names()
    sides = tuple(b"".join(bucket.get(name) for name in names if f"/{side}_" in name) for side in ("train", "val"))
    assert not [name for name in names if ".tokmill" in name]
    return sides == one and tokmill.verify(URL).ok


def complete(bucket: Bucket) -> list[str]:
    return [name for name in bucket.names() if name.endswith("/manifest.json") and "/parts/" in name]


def test_nodes_that_share_the_store_alone_make_one_run(
    bucket: Bucket, cluster: Any, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path
) -> None:
    bucket.empty()
    said, _ = result(driver(corpus, cluster, tmp_path))
    assert f'"out": "{URL}"' in said or f'"out":"{URL}"' in said
    assert is_one_run(bucket, one)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    again, _ = result(driver(corpus, cluster, tmp_path))
    assert '"already_complete":true' in again.replace(" ", "")


def test_a_driver_and_a_node_are_killed(
    bucket: Bucket, cluster: Any, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path
) -> None:
    bucket.empty()

    def slowly(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        time.sleep(0.2 if "/parts/" in request["PATH_INFO"] else 0)
        return None

    bucket.fault, bucket.faulty = slowly, {"PUT"}
    first = driver(corpus, cluster, tmp_path)
    wait_for(first, lambda: complete(bucket))
    first.kill()
    first.communicate()
    before = complete(bucket)
    second = driver(corpus, cluster, tmp_path)
    wait_for(second, lambda: len(complete(bucket)) > len(before))
    cluster.remove_node(min(cluster.worker_nodes, key=str), allow_graceful=False)
    cluster.add_node(**NODE)
    bucket.fault = None
    result(second)
    assert is_one_run(bucket, one)
