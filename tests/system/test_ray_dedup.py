"""Dedup on a real cluster: whatever is killed in it, the files are those of one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.outputs import files_in

ray = pytest.importorskip("ray", reason="the extra ray is not installed: make ray")

from support.nodes import NODE, Driver, Nodes  # noqa: E402  behind what it needs

import tokmill  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes(2)
    yield made
    ray.shutdown()
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 million ids in some thousand documents, four segments: half of them copies, or copies but for a few words."""
    base = tmp_path_factory.mktemp("source")
    texts = [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:80]]
    n_times = 20_000_000 // sum(map(len, texts))
    for i in range(4):
        words = [f"{n % 7} {i % 2} {text[n % 3 * 1000 :]} {i // 2}" for n in range(n_times) for text in texts]
        (base / f"{i}.txt").write_text("<|endoftext|>".join(words))
        tokmill.tokenize(base / f"{i}.txt", base / f"part{i}", val_fraction=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokmill.derive.engine.COMMIT_BYTES", 1)
        tokmill.merge([base / f"part{i}" for i in range(4)], base / "source")
    return base / "source"


@pytest.fixture(scope="module")
def unique(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one machine makes."""
    out = tmp_path_factory.mktemp("unique") / "out"
    removal = tokmill.dedup(source, out, near=0.8, shard_tokens="500k").removal
    assert removal is not None
    assert removal.sources[0].copies > 50
    assert removal.sources[0].near_copies > 50
    return files_in(out)


def dedup(source: Path, out: Path, address: str) -> Driver:
    arguments = ["dedup", str(source), "--near", "0.8", "--shard-tokens", "500k", "--memory", "512MiB"]
    return Driver(arguments, out, address, "task_*_??????.part")


def has(driver: Driver, name: str) -> bool:
    """Whether tasks of a pass have left files."""
    return any(name in each for each in driver.files())


def test_on_several_nodes_the_files_are_those_of_one_machine(
    nodes: Nodes, source: Path, unique: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "unique"
    tokmill.dedup(source, out, near=0.8, shard_tokens="500k", ray=nodes.address, memory="512MiB")
    assert files_in(out) == unique
    assert tokmill.verify(out).ok
    tokmill.dedup(source, tmp_path / "one", compare=True, format="megatron")
    tokmill.dedup(source, tmp_path / "many", compare=True, format="megatron", ray=nodes.address)
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")
    assert not (tmp_path / "many" / ".tokmill").exists()


def test_workers_are_killed(nodes: Nodes, source: Path, unique: dict[str, bytes], tmp_path: Path) -> None:
    driver = dedup(source, tmp_path / "out", nodes.address)
    for name in ("take_digests", "take_bands"):
        driver.wait_for(partial(has, driver, name))
        driver.wait_for(lambda: nodes.processes("ray::_answer"))
        for process in nodes.processes("ray::_answer"):
            process.kill()
    driver.result()
    assert files_in(driver.out) == unique


def test_a_node_is_killed(nodes: Nodes, source: Path, unique: dict[str, bytes], tmp_path: Path) -> None:
    driver = dedup(source, tmp_path / "out", nodes.address)
    driver.wait_for(partial(has, driver, "take_bands"))
    nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
    nodes.nodes.append(nodes.cluster.add_node(**NODE))
    driver.result()
    assert files_in(driver.out) == unique
    assert tokmill.verify(driver.out).ok


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver_is_ended_and_what_was_done_is_not_done_again(
    how: signal.Signals, nodes: Nodes, source: Path, unique: dict[str, bytes], tmp_path: Path
) -> None:
    driver = dedup(source, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: sum("take_bands" in each for each in driver.files()) > 1)
    driver.process.send_signal(how)
    driver.process.communicate()
    made = {name: number for name, number in driver.files().items() if "take_bands" in name and len(name) < 30}
    again = dedup(source, tmp_path / "out", nodes.address)
    again.wait_for(partial(has, again, "find_candidates"))
    bands = {name: number for name, number in again.files().items() if "take_bands" in name}
    assert not bands or made.items() <= bands.items()
    again.result()
    assert files_in(driver.out) == unique
