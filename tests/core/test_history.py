"""The history of a run is small however long it takes, speaks of what is committed alone, and never stands in a run's way."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from support.records import a_content

from tokmill import __version__
from tokmill.core.errors import DamageError
from tokmill.core.events import CachesReset, Notice, Progress, Started
from tokmill.core.history import MOST_ATTEMPTS, MOST_NOTICES, MOST_SAMPLES, Attempt, History, Thinned, filled, is_sane, until
from tokmill.core.manifest import MANIFEST_NAME, load_manifest
from tokmill.core.records import Counts, Cursor
from tokmill.output.directory import Output, open_output
from tokmill.output.run_history import RunHistoryRecorder, load_history
from tokmill.output.state_dir import history_of, state_of

STARTED = Started(total_bytes=100, resumed_bytes=0, position_bytes=0, n_threads=2, batch_bytes=1, budget_bytes=1 << 30)


def progress(elapsed_s: float, n_bytes: int = 0, rss: int = 1) -> Progress:
    counts = Counts(bytes_in=n_bytes, tokens_train=n_bytes // 4)
    return Progress(elapsed_s=elapsed_s, position_bytes=n_bytes, counts=counts, rss_bytes=rss)


def an_output(directory: Path) -> Output:
    output = open_output(directory, a_content(), __version__, fresh=False)
    assert isinstance(output, Output)
    return output


def test_a_week_takes_as_many_samples_as_a_minute() -> None:
    samples = Thinned()
    for i in range(200_000):
        samples.add(i * 0.2, i * 10, i, 1000 if i == 77_777 else 5)
    rows = samples.rows()
    assert MOST_SAMPLES // 2 <= len(rows) <= MOST_SAMPLES
    assert rows[0] == (0.0, 0, 0, 5)
    assert rows[-1][0] == pytest.approx(199_999 * 0.2)
    assert max(row[3] for row in rows) == 1000
    assert all(a[0] < b[0] for a, b in pairwise(rows))


def test_the_whole_history_stays_small(tmp_path: Path) -> None:
    for attempt in range(MOST_ATTEMPTS + 5):
        output = an_output(tmp_path / "o")
        recorder = RunHistoryRecorder(output)
        recorder.on_event(STARTED)
        for i in range(1000):
            recorder.on_event(progress(i * 0.2, i * 123_456_789, 1 << 30))
            recorder.on_event(Notice(text="x" * 10_000))
        output.file("train.bin").append(b"\1\0")
        output.commit(Cursor(offset=attempt + 1), Counts(bytes_in=attempt), {}, output.elapsed_before_s + 200.0)
        output.settle()
        recorder.save()
        output.close()
    found = load_history(tmp_path / "o")
    assert found is not None
    assert is_sane(found)
    assert (len(found.attempts), found.n_attempts, len(found.notices)) == (MOST_ATTEMPTS, MOST_ATTEMPTS + 5, MOST_NOTICES)
    assert history_of(tmp_path / "o").lstat().st_size < 48 << 10


def test_a_resumed_run_goes_on_with_what_was_committed_alone(tmp_path: Path) -> None:
    output = an_output(tmp_path / "o")
    recorder = RunHistoryRecorder(output)
    recorder.on_event(STARTED)
    for i in range(10):
        recorder.on_event(progress(float(i), i * 100))
    recorder.on_event(CachesReset(elapsed_s=1, rss_before_bytes=2, rss_after_bytes=1))
    output.file("train.bin").append(b"\1\0")
    output.commit(Cursor(offset=4), Counts(bytes_in=400), {}, 4.0)
    output.settle()
    recorder.save()
    output.close()
    resumed = an_output(tmp_path / "o")
    again = RunHistoryRecorder(resumed)
    again.on_event(STARTED)
    again.on_event(progress(1.0, 500))
    first, second = again.history().attempts
    assert first.n_bytes == (0, 100, 200, 300, 400)
    assert (first.begin_s, second.begin_s, second.n_bytes[-1], again.history().n_attempts) == (0.0, 4.0, 500, 2)
    resumed.close()


def test_a_history_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    output = an_output(tmp_path / "o")
    (state_of(tmp_path / "o") / "history.new").mkdir()
    recorder = RunHistoryRecorder(output)
    recorder.on_event(STARTED)
    recorder.on_event(progress(5.0, 5))
    recorder.save()
    assert recorder.history().attempts[0].n_bytes[-1] == 5
    assert load_history(tmp_path / "o") is None
    output.close()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"attempts":[],"n_attempts":-1}', b'{"attempts":[{"begin_s":1e999}],"n_attempts":1}']
)
def test_a_history_that_makes_no_sense_is_none(tmp_path: Path, data: bytes) -> None:
    state_of(tmp_path).mkdir()
    Path(str(history_of(tmp_path))).write_bytes(data)
    assert load_history(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"elapsed_s": (2.0, 1.0)},
        {"n_bytes": (1,)},
        {"rss_bytes": (1, -1)},
        {"begin_s": -1.0},
        {"n_tokens": (0, 1 << 63)},
    ],
)
def test_a_manifest_with_a_history_that_no_run_has_had_is_damage(tmp_path: Path, changes: dict[str, object]) -> None:
    from support.corpora import write_corpus
    from support.outputs import rewrite_manifest, write_output

    manifest = write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", ["a", "b"]))
    attempt = filled(Attempt(begin_s=0.0), [(0.0, 0, 0, 1), (1.0, 5, 1, 1)])
    rewrite_manifest(tmp_path / "o", manifest, history=History(attempts=(attempt,), n_attempts=1))
    assert load_manifest(tmp_path / "o").history == History(attempts=(attempt,), n_attempts=1)
    wrong = History(attempts=(msgspec.structs.replace(attempt, **changes),), n_attempts=1)
    rewrite_manifest(tmp_path / "o", manifest, history=wrong)
    with pytest.raises(DamageError):
        load_manifest(tmp_path / "o")
    assert MANIFEST_NAME == "manifest.json"


def test_nothing_is_left_of_a_run_that_committed_nothing() -> None:
    attempt = filled(Attempt(begin_s=0.0), [(0.0, 0, 0, 1)])
    assert until(History(attempts=(attempt,), n_attempts=1), 0.0) == History(attempts=(), n_attempts=0)
