"""Progress is calm on a terminal, rare elsewhere, absent when asked, and says what a person needs."""

from __future__ import annotations

import io
import re

import pytest

from tokmill.progress import Bar, Lines, Nothing, ProgressObserver, format_bytes, format_duration, format_memory, make_progress
from tokmill.types import Counts, Finished, Notice, Progress, Renewed, Restarted, Started


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def started(total: int | None = 100_000_000, resumed: int = 0) -> Started:
    return Started(total_bytes=total, resumed_bytes=resumed, position_bytes=0, n_threads=2, batch_bytes=1, budget_bytes=1 << 30)


def progress(elapsed_s: float, position: int) -> Progress:
    counts = Counts(bytes_in=position, tokens_train=position // 4)
    return Progress(elapsed_s=elapsed_s, position_bytes=position, counts=counts, rss_bytes=512 << 20)


def lines(*events: object, seconds: float = 31, verbose: bool = False) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    observer = ProgressObserver(Lines(stream), verb="tokenizing", verbose=verbose, clock=clock)
    for event in events:
        clock.now_s += seconds
        observer.on_event(event)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_a_line_says_share_rate_memory_of_budget_and_time_left() -> None:
    found = lines(started(), progress(0, 0), progress(1, 25_000_000))
    assert found[0] == "tokmill: tokenizing 100.0 MB, 2 threads, at most 1.0 GiB of memory"
    assert found[-1] == ("tokmill: 25 % · 25.0 MB of 100.0 MB · 25 MB/s · 6.2 Mtokens/s · 0:03 left · 512 MiB of 1.0 GiB")


def test_lines_are_thirty_seconds_apart() -> None:
    events = [progress(i / 10, i * 1000) for i in range(650)]
    found = lines(started(), *events, seconds=0.1)
    assert len(found) == 1 + 2


def test_rates_of_a_resumed_run_count_only_what_it_did_itself() -> None:
    found = lines(started(resumed=50_000_000), progress(0, 50_000_000), progress(2, 60_000_000))
    assert "going on behind 50.0 MB of an earlier run" in found[0]
    assert " 5 MB/s" in found[-1]


def test_standard_input_has_counters_and_no_share() -> None:
    found = lines(started(total=None), progress(0, 0), progress(1, 10_000_000))
    assert "standard input" in found[0]
    assert found[-1].startswith("tokmill: 10.0 MB · 10 MB/s")
    assert "%" not in found[-1]
    assert "left" not in found[-1]


def test_restarts_and_notices_are_always_told_and_renewals_only_when_verbose() -> None:
    events = [
        Restarted(cause="killed by SIGKILL", attempt=2, batch_bytes=1),
        Renewed(elapsed_s=1, rss_before_bytes=2 << 20, rss_after_bytes=1 << 20),
        Notice(text="3 files \x1b[2J were\npassed over"),
    ]
    found = lines(*events)
    assert found[0] == "tokmill: the worker was lost (killed by SIGKILL): going on from the last commit, attempt 2"
    assert found[1] == "tokmill: 3 files \\x1b[2J were\\npassed over"
    assert lines(*events, verbose=True)[1] == "tokmill: gave back caches: 2 MiB to 1 MiB"


def test_a_terminal_gets_a_bar_at_most_five_times_a_second_and_it_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    observer = ProgressObserver(Bar(stream), verb="tokenizing", clock=clock)
    observer.on_event(started())
    for i in range(100):
        clock.now_s = i / 100
        observer.on_event(progress(i / 100, i * 1_000_000))
    observer.on_event(Notice(text="[bold]a notice[/bold]"))
    observer.on_event(Finished(elapsed_s=1, counts=Counts(), peak_rss_bytes=1, resumed=False))
    shown = stream.getvalue()
    assert 3 <= shown.count("MB/s") <= 6
    assert re.search(r"\d+ % · [\d.]+ MB/100.0 MB · 100 MB/s", shown)
    assert "[bold]a notice[/bold]" in shown
    assert shown.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))


def test_a_bar_without_a_total_is_counters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    with ProgressObserver(Bar(stream), verb="tokenizing", clock=clock) as observer:
        observer.on_event(started(total=None))
        for i in (1, 2):
            clock.now_s = i
            observer.on_event(progress(i, i * 1_000_000))
    assert "2.0 MB · 1 MB/s" in stream.getvalue()
    assert "━" not in stream.getvalue()


def test_no_colour_is_written_when_no_colour_is_wished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    bar = Bar(stream)
    bar.update("words", 1, 2)
    bar.close()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", stream.getvalue())


@pytest.mark.parametrize(
    ("stream", "term", "quiet", "display"),
    [
        (Terminal(), "xterm", False, Bar),
        (Terminal(), "dumb", False, Lines),
        (io.StringIO(), "xterm", False, Lines),
        (Terminal(), "xterm", True, Nothing),
    ],
)
def test_the_display_suits_the_stream(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, term: str, quiet: bool, display: type
) -> None:
    monkeypatch.setenv("TERM", term)
    observer = make_progress(verb="x", quiet=quiet, verbose=False, stream=stream)
    assert isinstance(observer._display, display)


def test_quiet_writes_nothing() -> None:
    stream = io.StringIO()
    with make_progress(verb="x", quiet=True, verbose=False, stream=stream) as observer:
        for event in (started(), progress(100, 5), Notice(text="x")):
            observer.on_event(event)
    assert stream.getvalue() == ""


def test_numbers_are_short_and_have_units() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 999_949, 999_950, 1e9, 5.5e12)] == [
        "0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.0 GB", "5.5 TB",
    ]  # fmt: skip
    assert [format_memory(n) for n in (5 << 20, 1 << 30)] == ["5 MiB", "1.0 GiB"]
    assert [format_duration(s) for s in (3, 65, 3723)] == ["0:03", "1:05", "1:02:03"]
