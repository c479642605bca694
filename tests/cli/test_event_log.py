"""`--events` appends what happens as JSON lines that decode to the events, and never stands in a run's way."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import time
from pathlib import Path

import msgspec
import pytest
from support.corpora import write_corpus

import tokmill
from tokmill.cli.app import run
from tokmill.cli.event_log import EventLog
from tokmill.core.errors import UsageError
from tokmill.core.events import AnyEvent, Finished, Notice, Progress, Started
from tokmill.core.records import Counts

pytestmark = pytest.mark.usefixtures("workers_in_process")

ROOT = Path(__file__).parents[2]


class Hearer:
    def __init__(self) -> None:
        self.events: list[AnyEvent] = []

    def on_event(self, event: AnyEvent) -> None:
        self.events.append(event)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "c.txt", ["Some text. " * 20] * 50)


def progress(i: int) -> Progress:
    return Progress(elapsed_s=float(i), position_bytes=i, counts=Counts(bytes_in=i), rss_bytes=1)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_the_first_event_says_whether_an_input_is_compressed(tmp_path: Path, name: str) -> None:
    data = b"Some words. " * 50
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    hearer = Hearer()
    tokmill.tokenize(tmp_path / name, tmp_path / "o", threads=1, observers=[hearer])
    (started,) = (event for event in hearer.events if isinstance(event, Started))
    assert started.is_packed == name.endswith(".gz")


def test_every_line_is_an_event_with_its_time_and_decodes_to_it(corpus: Path, tmp_path: Path) -> None:
    hearer, before_s = Hearer(), time.time()
    with EventLog(str(tmp_path / "e"), hearer) as log:
        tokmill.tokenize(corpus, tmp_path / "o", threads=1, observers=[log, hearer])
    lines = (tmp_path / "e").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=AnyEvent) for line in lines] == hearer.events
    assert any(isinstance(event, Started) for event in hearer.events)
    times = [json.loads(line)["at"] for line in lines]
    assert times == sorted(times)
    assert before_s - 1 <= times[0] <= times[-1] <= time.time() + 1


def test_a_line_is_there_before_the_next_event_and_later_runs_append(tmp_path: Path) -> None:
    for n in (1, 2):
        with EventLog(str(tmp_path / "e"), Hearer()) as log:
            log.on_event(Notice(text="\x1b[2J\u202e"))
            assert (tmp_path / "e").read_bytes().count(b"\n") == n


@pytest.mark.parametrize("command", ["tokenize", "merge", "convert", "reshard"])
def test_each_command_that_makes_an_output_writes_them(command: str, corpus: Path, tmp_path: Path) -> None:
    tokmill.tokenize(corpus, tmp_path / "o", threads=1, val_fraction=0.2)
    given = {"tokenize": [str(corpus)], "convert": [str(tmp_path / "o"), "--format", "llmc"]}.get(command, [str(tmp_path / "o")])
    events = tmp_path / "events.jsonl"
    assert run([command, *given, "--out", str(tmp_path / "new"), "--events", str(events), "--quiet"]) == 0
    found = [name for line in events.read_text().splitlines() if (name := json.loads(line)["type"]) not in {"Notice", "Detail"}]
    assert (found[0], found[-1]) == ("Started", "Finished")


def test_a_full_disk_is_said_once_and_the_run_goes_on(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenize", str(corpus), "--out", str(tmp_path / "o"), "--events", "/dev/full"]) == 0
    said = capsys.readouterr().err
    assert said.count("events are no longer written to /dev/full (No space left on device); the run continues without them") == 1
    tokmill.verify(tmp_path / "o").raise_for_damage()


def test_a_reader_that_goes_away_is_said_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    hearer = Hearer()
    with EventLog(str(tmp_path / "pipe"), hearer) as log:
        os.close(reader)
        for i in range(3):
            log.on_event(progress(i))
    assert [re.sub(r".*\((.*)\).*", r"\1", e.text) for e in hearer.events if isinstance(e, Notice)] == ["Broken pipe"]


def test_an_open_descriptor_can_be_named(tmp_path: Path) -> None:
    read, write = os.pipe()
    with EventLog(f"/dev/fd/{write}", Hearer()) as log:
        log.on_event(progress(1))
    os.close(write)
    assert msgspec.json.decode(os.read(read, 1000), type=AnyEvent) == progress(1)
    os.close(read)


def test_a_file_that_cannot_be_opened_is_an_error_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--events"):
        EventLog(str(tmp_path / "no" / "e"), Hearer())
    assert run(["tokenize", str(corpus), "--out", str(tmp_path / "o"), "--events", str(tmp_path), "-q"]) == 2
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["c.txt", "again.txt", "o/train.bin", "o/val_000001.bin", "o/manifest.json", "o/.tokmill/journal"])
def test_events_are_not_written_into_an_input_or_an_output(name: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "again.txt").symlink_to(corpus)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    before = corpus.read_bytes()
    given = ["tokenize", str(tmp_path / "c*.txt"), "--out", str(tmp_path / "o"), "-q"]
    assert run([*given, "--events", str(tmp_path / name)]) == 2
    assert corpus.read_bytes() == before
    assert [path for path in (tmp_path / "o").rglob("*") if path.is_file()] == []


def test_events_are_not_written_into_what_merge_and_convert_read(corpus: Path, tmp_path: Path) -> None:
    tokmill.tokenize(corpus, tmp_path / "o", threads=1, val_fraction=0)
    empty = tmp_path / "o" / "val.bin"
    assert empty.read_bytes() == b""
    for command in (["merge"], ["convert", "--format", "llmc"], ["reshard", "--shard-tokens", "1M"]):
        assert run([*command, str(tmp_path / "o"), "--out", str(tmp_path / "new"), "--events", str(empty), "-q"]) == 2
    bare = ["--from-format", "raw", "--from-dtype", "uint16", "--from-eot", "after", "--from-eot-id", "50256", "--format", "llmc"]
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "o" / "train.bin").read_bytes())
    assert run(["convert", str(copy), *bare, "--out", str(tmp_path / "new"), "--events", str(copy), "-q"]) == 2
    assert copy.read_bytes() == (tmp_path / "o" / "train.bin").read_bytes()
    assert empty.read_bytes() == b""


@pytest.mark.parametrize("text", ["Notes of mine.\n", '{"type": "Nothing"}\n', "\n", "\xff\xfe"])
def test_a_file_of_something_else_is_not_appended_to(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(UsageError, match="something other than events"):
        EventLog(str(path), Hearer())
    assert path.read_text() == text


def test_a_pipe_that_nobody_reads_is_an_error_and_not_a_wait(corpus: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="nobody reads this pipe"):
        EventLog(str(tmp_path / "pipe"), Hearer())


def test_a_slow_reader_makes_the_run_wait_and_loses_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    hearer, found = Hearer(), list[bytes]()

    def read_late() -> None:
        time.sleep(0.2)
        with open(reader, "rb") as file:
            found.append(file.read())

    with EventLog(str(tmp_path / "pipe"), hearer) as log:
        assert os.get_blocking(log._fd)
        slow = threading.Thread(target=read_late)
        slow.start()
        for i in range(2000):
            log.on_event(progress(i))
    slow.join()
    assert (found[0].count(b"\n"), hearer.events) == (2000, [])


def test_the_documentation_names_every_event_and_every_field() -> None:
    said = (ROOT / "docs" / "events.md").read_text()
    for kind in (*AnyEvent.__args__, Counts):
        assert f"`{kind.__name__}`" in said, kind
        missing = [name for name in kind.__struct_fields__ if f"`{name}`" not in said]
        assert missing == [], kind
    assert Finished in AnyEvent.__args__
