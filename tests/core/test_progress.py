"""Who watches from Python is told how far the work is, and can end it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import clean_environment
from support.corpora import write_corpus
from support.outputs import written

import tokmill
from tokmill.core.errors import UsageError

pytestmark = pytest.mark.usefixtures("workers_in_process")
TEXTS = [f"Document {i}. " * (i % 7 + 1) for i in range(200)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", TEXTS)


def test_a_function_gets_bytes_done_and_bytes_of_all(corpus: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    tokmill.tokenize(corpus, tmp_path / "out", observers=[tokmill.on_progress(lambda *numbers: told.append(numbers))])
    size = corpus.stat().st_size
    assert told[0] == (0, size)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    told.clear()
    tokmill.verify(tmp_path / "out", observers=[tokmill.on_progress(lambda *numbers: told.append(numbers))])
    assert told[0] == (0, sum(map(len, written(tmp_path / "out"))))


def test_events_are_public_objects(corpus: Path, tmp_path: Path) -> None:
    events: list[object] = []

    class Watching:
        def on_event(self, event: object) -> None:
            events.append(event)

    tokmill.tokenize(corpus, tmp_path / "out", observers=[Watching()])
    kinds = [type(event) for event in events]
    assert {tokmill.Started, tokmill.Progress, tokmill.Finished} <= {*kinds}
    (finished,) = [event for event in events if isinstance(event, tokmill.Finished)]
    assert finished.counts.documents == len(TEXTS)


STOPPED = """
import sys, tokmill

def stop(done, total):
    raise ZeroDivisionError

try:
    tokmill.tokenize(sys.argv[1], sys.argv[2], observers=[tokmill.on_progress(stop)])
except ZeroDivisionError:
    print("stopped")
"""


def test_what_an_observer_raises_ends_the_run_and_the_same_call_goes_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = [sys.executable, "-c", STOPPED, str(corpus), str(out)]
    done = subprocess.run(program, env=clean_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "stopped\n"
    assert not (out / "manifest.json").exists()
    tokmill.tokenize(corpus, out)
    tokmill.tokenize(corpus, tmp_path / "one")
    assert written(out) == written(tmp_path / "one")


untyped: Any = tokmill


def documents_of_a_word(_corpus: Path, out: Path) -> Any:
    with untyped.open(out) as data:
        return data.document("train", "first")


def decoded_word(_corpus: Path, out: Path) -> Any:
    with untyped.open(out) as data:
        return data.decode("word")


@pytest.mark.parametrize(
    "call",
    [
        lambda corpus, _: untyped.tokenize(corpus, "x", observers=[print]),
        lambda corpus, _: untyped.tokenize(corpus, "x", observers=[untyped.on_progress(5)]),
        lambda corpus, _: untyped.tokenize(corpus, "x", threads="two"),
        lambda corpus, _: untyped.tokenize(corpus, "x", separator=None),
        lambda corpus, _: untyped.tokenize(corpus, "x", val_fraction="0.1"),
        lambda corpus, _: untyped.tokenize(corpus, "x", val_input=5),
        lambda corpus, _: untyped.tokenize(corpus, "x", val_input=[5]),
        lambda _, out: untyped.verify(out, sources=5),
        lambda _, out: untyped.verify(out, sources=False),
        lambda _, out: untyped.repair(out, sources=5),
        lambda _, out: untyped.convert(out, "x", format=5),
        lambda _, out: untyped.shuffle(out, "x", seed=1, memory=1.5),
        lambda _, out: untyped.mix({str(out): 1}, "x", seed=1, memory=1.5),
        lambda _, out: untyped.report(out, 5),
        documents_of_a_word,
        decoded_word,
    ],
)
def test_a_wrong_type_is_an_error_of_tokmill(call: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    untyped.tokenize(corpus, tmp_path / "out")
    with pytest.raises(UsageError):
        call(corpus, tmp_path / "out")
    assert not (tmp_path / "x").exists()
