"""A real cluster of several nodes on this machine: whatever is killed in it, the output is that of one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.commands import clean_environment
from support.outputs import written

ray = pytest.importorskip("ray", reason="the extra ray is not installed: make ray")

from support.nodes import NODE, Nodes  # noqa: E402
from support.outputs import part_path  # noqa: E402

import tokmill  # noqa: E402  behind what it needs
from tokmill.core.errors import LockedError, UsageError  # noqa: E402
from tokmill.core.events import AnyEvent, Progress, Started  # noqa: E402
from tokmill.core.manifest import load_manifest  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

OPTIONS = ["--separator", "\\n\\n", "--val-fraction", "0.05"]
SLOW = ["--engine", "tiktoken", "--part-bytes", "6MB"]
"""The ids are the same, and there is time to kill something."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 MB in two files: eight parts of 6 MB."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [word for path in sorted(Path(os.__file__).parent.glob("*.py"))[:80] for word in path.read_text("utf-8").split("\n\n")]
    text = "\n\n".join(words)
    for name, n_bytes in (("a.txt", 30_000_000), ("b.txt", 18_000_000)):
        numbered = "".join(f"{text}\n\n# copy {i}\n\n" for i in range(n_bytes // len(text) + 1))
        (folder / name).write_text(numbered.encode()[:n_bytes].decode("utf-8", "ignore"))
    return folder


@pytest.fixture(scope="session")
def one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The files of one run."""
    out = tmp_path_factory.mktemp("one")
    tokmill.tokenize(corpus, out, separator="\\n\\n", val_fraction=0.05)
    return written(out)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes(2)
    yield made
    ray.shutdown()
    made.cluster.shutdown()


class Driver:
    """`tokmill tokenize --ray` in a process of its own."""

    def __init__(self, corpus: Path, out: Path, address: str, *more: str) -> None:
        arguments = ["tokenize", str(corpus), "--out", str(out), "--ray", address, "--json", *OPTIONS, *(more or SLOW)]
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokmill", *arguments],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def result(self, *, code: int = 0) -> tuple[dict[str, Any], str]:
        said, shown = self.process.communicate(timeout=240)
        assert self.process.returncode == code, shown
        return json.loads(said), shown

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def begun(self) -> list[Path]:
        """Parts under way, whether they have committed something or not."""
        return [path.parents[1] for path in (self.out / ".tokmill" / "parts").glob("*/.tokmill/journal")]

    def committed(self) -> list[Path]:
        """Parts under way that have committed something."""
        return [part for part in self.begun() if _n_lines(part / ".tokmill" / "journal") > 1]

    def complete(self) -> list[Path]:
        return list((self.out / ".tokmill" / "parts").glob("*/manifest.json"))


def _n_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def side_bytes(out: Path) -> tuple[bytes, bytes]:
    return tuple(b"".join(p.read_bytes() for p in sorted(out.glob(f"{side}*.bin"))) for side in ("train", "val"))  # type: ignore[return-value]


def is_one_run(out: Path, corpus: Path, one: tuple[bytes, bytes], scratch: Path) -> bool:
    tokmill.merge(out, scratch)
    assert not (out / ".tokmill").exists()
    return side_bytes(out) == written(scratch) == one and tokmill.verify(out, sources=str(corpus)).ok


def test_on_several_nodes_it_is_one_run_and_all_parts_are_seen_together(
    nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path
) -> None:
    events: list[AnyEvent] = []

    class Noting:
        def on_event(self, event: AnyEvent) -> None:
            events.append(event)

    out = tmp_path / "out"
    summary = tokmill.tokenize(
        corpus, out, separator="\\n\\n", val_fraction=0.05, ray=nodes.address, part_bytes="6MB", observers=[Noting()]
    )
    assert is_one_run(out, corpus, one, tmp_path / "merged")
    n_bytes = sum(path.stat().st_size for path in corpus.iterdir())
    assert summary.bytes_in == n_bytes
    assert load_manifest(out).content.n_parts == 8
    (started,) = [event for event in events if isinstance(event, Started)]
    positions = [event.position_bytes for event in events if isinstance(event, Progress)]
    assert started.total_bytes == positions[-1] == n_bytes
    assert len(positions) > 2
    again = tokmill.tokenize(corpus, out, separator="\\n\\n", val_fraction=0.05, ray=nodes.address, part_bytes="6MB")
    assert again.already_complete


def test_a_worker_is_killed(nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path) -> None:
    driver = Driver(corpus, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: bool(driver.committed()))
    killed = nodes.processes("_make_part")
    killed[0].kill()
    _, shown = driver.result()
    assert "WorkerCrashedError, part" in shown
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_the_process_that_tokenizes_is_killed(nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path) -> None:
    driver = Driver(corpus, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: bool(driver.committed()))
    nodes.processes("tokmill.run.coordinator")[0].kill()
    _, shown = driver.result()
    assert "a process of it was lost (killed by SIGKILL)" in shown
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_a_node_is_killed_in_the_middle_of_a_job(nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path) -> None:
    # Parts that take longer than a worker lives on without its node.
    driver = Driver(corpus, tmp_path / "out", nodes.address, "--engine", "tiktoken", "--part-bytes", "16MB")
    driver.wait_for(lambda: len(driver.committed()) > 1)
    complete = {path: path.stat().st_ino for path in driver.complete()}
    nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
    nodes.nodes.append(nodes.cluster.add_node(**NODE))
    _, shown = driver.result()
    assert "Died" in shown or "Crashed" in shown
    assert complete.keys() <= {part_path(driver.out, i) / "manifest.json" for i in range(8)}
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_the_driver_is_killed_and_what_was_done_is_not_done_again(
    nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path
) -> None:
    driver = Driver(corpus, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: len(driver.complete()) > 1)
    driver.process.kill()
    driver.process.communicate()
    before = {path: path.stat().st_mtime_ns for path in driver.complete()}
    again = Driver(corpus, tmp_path / "out", nodes.address)
    again.wait_for(lambda: len(again.complete()) > len(before))
    assert all(path.stat().st_mtime_ns == mtime_ns for path, mtime_ns in before.items())
    said, shown = again.result()
    assert said["resumed"]
    assert "are in the output already" in shown
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_an_interrupted_driver_leaves_checkpoints(nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path) -> None:
    driver = Driver(corpus, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: bool(driver.committed()))
    driver.process.send_signal(signal.SIGTERM)
    _, shown = driver.result(code=130)
    assert "every part keeps what it committed" in shown
    Driver(corpus, tmp_path / "out", nodes.address).result()
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_a_straggler_holds_up_no_other_part(nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path) -> None:
    driver = Driver(corpus, tmp_path / "out", nodes.address)
    driver.wait_for(lambda: bool(nodes.processes("tokmill.run.coordinator")) and bool(driver.committed()))
    slow = nodes.processes("tokmill.run.coordinator")[0]
    slow.suspend()
    try:
        driver.wait_for(lambda: len(driver.complete()) == 7)
        assert driver.process.poll() is None
    finally:
        slow.resume()
    driver.result()
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_two_drivers_on_one_output_are_refused(nodes: Nodes, corpus: Path, one: tuple[bytes, bytes], tmp_path: Path) -> None:
    driver = Driver(corpus, tmp_path / "out", nodes.address)
    driver.wait_for((tmp_path / "out" / ".tokmill" / "plan").exists)
    second = Driver(corpus, tmp_path / "out", nodes.address)
    _, shown = second.result(code=LockedError.exit_code)
    assert "another run is writing" in shown
    driver.result()
    assert is_one_run(driver.out, corpus, one, tmp_path / "merged")


def test_a_bad_record_ends_the_job_and_names_its_part(nodes: Nodes, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {i}"}) for i in range(1000)]
    lines[700] = "no JSON"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    driver = Driver(tmp_path / "a.jsonl", tmp_path / "out", nodes.address, "--part-bytes", "5kB")
    _, shown = driver.result(code=1)
    assert "part 3 of 5: " in shown
    assert "byte" in shown
    Driver(tmp_path / "a.jsonl", tmp_path / "skipping", nodes.address, "--part-bytes", "5kB", "--on-error", "skip").result()
    (skip,) = (tmp_path / "skipping" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skip)["record"] == 701


def test_bad_records_of_all_parts_together_are_held_against_the_limit(nodes: Nodes, tmp_path: Path) -> None:
    lines = ["no JSON" if i % 200 == 0 else json.dumps({"text": f"text {i}"}) for i in range(1000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    skipping = ["--part-bytes", "5kB", "--on-error", "skip", "--max-skipped"]
    _, shown = Driver(tmp_path / "a.jsonl", tmp_path / "out", nodes.address, *skipping, "4").result(code=15)
    assert "skipped: 5 bad records" in shown
    assert not (tmp_path / "out" / "manifest.json").exists()
    Driver(tmp_path / "a.jsonl", tmp_path / "out", nodes.address, *skipping, "5").result()
    assert load_manifest(tmp_path / "out").counts.skipped == {"invalid_json": 5}


def test_a_task_for_which_no_node_has_room_is_refused(nodes: Nodes, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no node of the cluster has 4 cores"):
        tokmill.tokenize(corpus, tmp_path / "out", ray=nodes.address, threads=4)
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        tokmill.tokenize(corpus, tmp_path / "out", ray="127.0.0.1:1")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_without_an_address_it_runs_on_this_machine_and_tells_nobody(
    corpus: Path, one: tuple[bytes, bytes], tmp_path: Path
) -> None:
    made = Driver(corpus, tmp_path / "out", "local", "--part-bytes", "16MB")
    made.wait_for((tmp_path / "out" / ".tokmill" / "parts").exists)
    commands = [" ".join(p.cmdline()) for p in psutil.Process(made.process.pid).children(recursive=True)]
    assert all("--disable-frontend" in command for command in commands if "dashboard/dashboard.py" in command)
    made.result()
    assert is_one_run(tmp_path / "out", corpus, one, tmp_path / "merged")
