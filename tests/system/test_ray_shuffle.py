"""Shuffle and mix on a real cluster: whatever is killed in it, the files are those of one machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.outputs import files_in

ray = pytest.importorskip("ray", reason="the extra ray is not installed: make ray")

from support.nodes import NODE, Driver, Nodes  # noqa: E402  behind what it needs

import tokmill  # noqa: E402
from tokmill.core.errors import TokmillError, UsageError  # noqa: E402
from tokmill.core.events import Failed  # noqa: E402
from tokmill.core.system.process import error_of  # noqa: E402
from tokmill.run.parts import ray as cluster  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes(2)
    yield made
    ray.shutdown()
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 million ids in some thousand documents, four segments."""
    base = tmp_path_factory.mktemp("source")
    texts = [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:80]]
    for i in range(4):
        words = [f"{text} {i} {n}" for n in range(20_000_000 // sum(map(len, texts))) for text in texts]
        (base / f"{i}.txt").write_text("<|endoftext|>".join(words))
        tokmill.tokenize(base / f"{i}.txt", base / f"part{i}", val_fraction=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokmill.derive.engine.COMMIT_BYTES", 1)
        tokmill.merge([base / f"part{i}" for i in range(4)], base / "source")
    return base / "source"


@pytest.fixture(scope="module")
def mixed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one machine makes."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    tokmill.mix([(source, 1)], out, seed=3, max_epochs=3, shard_tokens="5M")
    return files_in(out)


def mix(source: Path, out: Path, address: str) -> Driver:
    arguments = ["mix", f"{source}=1", "--max-epochs", "3", "--seed", "3", "--shard-tokens", "5M", "--memory", "512MiB"]
    return Driver(arguments, out, address, "portion_??????.part")


def test_on_several_nodes_the_files_are_those_of_one_machine(
    nodes: Nodes, source: Path, mixed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "mixed"
    tokmill.mix([(source, 1)], out, seed=3, max_epochs=3, shard_tokens="5M", ray=nodes.address, memory="512MiB")
    assert files_in(out) == mixed
    assert tokmill.verify(out).ok
    tokmill.shuffle(source, tmp_path / "one", seed=3, format="megatron")
    tokmill.shuffle(source, tmp_path / "many", seed=3, format="megatron", ray=nodes.address)
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")
    assert not (tmp_path / "many" / ".tokmill").exists()


def test_workers_are_killed(nodes: Nodes, source: Path, mixed: dict[str, bytes], tmp_path: Path) -> None:
    driver = mix(source, tmp_path / "out", nodes.address)
    for _ in range(2):
        driver.wait_for(lambda: nodes.processes("ray::_answer"))
        for process in nodes.processes("ray::_answer"):
            process.kill()
    driver.result()
    assert files_in(driver.out) == mixed


def test_a_node_is_killed(nodes: Nodes, source: Path, mixed: dict[str, bytes], tmp_path: Path) -> None:
    driver = mix(source, tmp_path / "out", nodes.address)
    driver.wait_for(driver.files)
    nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
    nodes.nodes.append(nodes.cluster.add_node(**NODE))
    driver.result()
    assert files_in(driver.out) == mixed
    assert tokmill.verify(driver.out).ok


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver_is_ended_and_what_was_done_is_not_done_again(
    how: signal.Signals, nodes: Nodes, source: Path, mixed: dict[str, bytes], tmp_path: Path
) -> None:
    driver = mix(source, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: len(driver.files()) > 1)
    driver.process.send_signal(how)
    driver.process.communicate()
    made = driver.files()
    again = mix(source, tmp_path / "out", nodes.address)
    again.wait_for(lambda: list((again.out / ".tokmill").glob("train_*.part")))
    assert made.items() <= again.files().items()
    again.result()
    assert files_in(driver.out) == mixed


@pytest.mark.parametrize(("function", "what"), [("operator:truediv", "TypeError"), (f"{__name__}:full_memory", "memory")])
def test_whatever_goes_wrong_on_a_node_is_one_error_of_tokmill(function: str, what: str) -> None:
    is_answer, data = cluster._answer(function, b"")
    assert not is_answer
    error = error_of(msgspec.json.decode(data, type=Failed))
    assert isinstance(error, TokmillError)
    assert what in str(error)


def full_memory(_question: bytes) -> bytes:
    raise MemoryError


def test_while_the_last_node_is_replaced_its_tasks_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 3.0, "memory": 1e9}}
    nodes = [node]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    slots, new = cluster._Slots(1, 1000), cluster._Slots(1, 1000)
    assert slots.now() == 3
    nodes.clear()
    assert slots.now() == 3
    with pytest.raises(UsageError):
        new.now()
    monkeypatch.setattr(cluster, "_PATIENCE_S", -1.0)
    with pytest.raises(UsageError):
        slots.now()
    nodes.append(node)
    assert slots.now() == 3
