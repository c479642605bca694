"""Progress is calm on a terminal, rare elsewhere, absent when asked, and says what a person needs."""

from __future__ import annotations

import io
import re

import msgspec
import pytest

from tokmill.cli.progress import Bar, Lines, Nothing, Phrase, ProgressObserver, make_progress
from tokmill.core.events import CachesReset, Finished, Notice, Progress, Restarted, Started
from tokmill.core.records import Counts
from tokmill.core.text import format_bytes, format_duration, format_memory, format_rate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(written: str) -> list[str]:
    """The lines that stay of what was written: the cursor only ever goes to the beginning of its line and erases from there."""
    rows = [""]
    for token in re.findall(r"\x1b\[J|\x1b\[[0-9;]*m|\r|\n|[^\x1b\r\n]+", written):
        if token == "\x1b[J":
            rows[-1] = ""
        elif token == "\n":
            rows.append("")
        elif token[0] not in "\x1b\r":
            rows[-1] += token
    return rows


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def started(total: int | None = 100_000_000, resumed: int = 0) -> Started:
    return Started(total_bytes=total, resumed_bytes=resumed, position_bytes=0, n_threads=2, batch_bytes=1, budget_bytes=1 << 30)


def progress(elapsed_s: float, position: int) -> Progress:
    counts = Counts(bytes_in=position, tokens_train=position // 4)
    return Progress(elapsed_s=elapsed_s, position_bytes=position, counts=counts, rss_bytes=512 << 20)


def lines(*events: object, seconds: float = 301, verbose: bool = False) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    observer = ProgressObserver(Lines(stream), verb="tokenizing", verbose=verbose, clock=clock)
    for event in events:
        clock.now_s += seconds
        observer.on_event(event)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_a_line_says_share_rate_memory_of_budget_and_time_left() -> None:
    found = lines(started(), progress(0, 0), progress(1, 25_000_000))
    assert found[0] == "tokmill: tokenizing 100.0 MB, 2 threads, at most 1.0 GiB of memory"
    assert found[-1] == ("tokmill: 25 % · 25.0 MB of 100.0 MB · 25 MB/s · 6.2 Mtokens/s · about 0:03 left · 512 MiB of 1.0 GiB")


def test_the_first_line_comes_within_a_second_the_next_in_five_and_the_others_thirty_seconds_apart() -> None:
    events = [progress(i / 10, i * 1000) for i in range(680)]
    found = lines(started(), *events, seconds=0.1)
    assert [line.split(" · ")[1].split(" of ")[0] for line in found[1:]] == ["9.0 kB", "50.0 kB", "350.0 kB", "650.0 kB"]


def test_as_long_as_nothing_came_there_is_no_line_that_says_so_but_after_a_while() -> None:
    found = lines(started(), *(progress(i / 5, 0) for i in range(45)), seconds=0.2)
    assert len(found) == 1
    found = lines(started(), *(progress(i / 5, 0) for i in range(75)), seconds=0.2)
    assert found[1:] == ["tokmill: 0 % · 0 B of 100.0 MB · no output for 0:10 · 512 MiB of 1.0 GiB"]
    found = lines(started(), *(progress(i / 5, 0) for i in range(30)), progress(6, 1_000_000), seconds=0.2)
    assert len(found) == 2
    assert "about 0:20 left" in found[1]


def test_a_log_of_a_week_can_still_be_read() -> None:
    events = [progress(i * 10.0, i * 1000) for i in range(7 * 24 * 360)]
    assert len(lines(started(), *events, seconds=10)) < 2300


def test_what_comes_before_the_first_bytes_does_not_slow_the_time_left() -> None:
    found = lines(started(), *(progress(i / 5, 0) for i in range(50)), progress(10, 5_000_000), progress(11, 10_000_000))
    assert "about 0:04 left" in found[-2], "5 MB in the 0.2 s since there was none"
    assert "about 0:16 left" in lines(started(), progress(0, 0), progress(10, 0), progress(11, 6_000_000))[-1]


def test_the_time_left_is_a_guess_at_first_and_then_follows_the_last_minute() -> None:
    fast = [progress(float(i), i * 1_000_000) for i in range(60)]
    slow = [progress(60.0 + i, 60_000_000 + i * 100_000) for i in range(1, 121)]
    found = lines(started(), *fast, *slow)
    assert "about 1:39 left" in found[1]
    assert "· 1:20 left" in found[20]
    assert "· 4:40 left" in found[-1], "28 MB at the last minute's 0.1 MB/s, not at the mean of 0.4"


def test_a_run_that_stands_still_says_for_how_long_instead_of_a_time_left() -> None:
    found = lines(started(), progress(0, 0), progress(1, 1_000_000), *(progress(float(i), 1_000_000) for i in range(2, 70)))
    assert "nothing new for 1:08" in found[-1]
    assert "left" not in found[-1]


def test_a_share_of_a_hundred_is_all() -> None:
    assert "99 %" in lines(started(), progress(0, 0), progress(1, 99_999_999))[-1]
    assert "100 %" in lines(started(), progress(0, 0), progress(1, 100_000_000))[-1]


def test_rates_of_a_resumed_run_count_only_what_it_did_itself() -> None:
    found = lines(started(resumed=50_000_000), progress(0, 50_000_000), progress(2, 60_000_000))
    assert "; 50.0 MB are in the output already" in found[0]
    assert " 5 MB/s" in found[-1]


def test_bytes_that_are_no_share_of_the_compressed_total_are_called_decompressed() -> None:
    packed = msgspec.structs.replace(started(resumed=50_000_000), is_packed=True)
    assert lines(packed)[0].endswith("; 50.0 MB (decompressed) are in the output already")


def test_standard_input_has_counters_and_no_share() -> None:
    found = lines(started(total=None), progress(0, 0), progress(1, 10_000_000))
    assert "standard input" in found[0]
    assert found[-1].startswith("tokmill: 10.0 MB · 10 MB/s")
    assert "%" not in found[-1]
    assert "left" not in found[-1]


def test_restarts_and_notices_are_always_told_and_cache_resets_only_when_verbose() -> None:
    events = [
        Restarted(cause="killed by SIGKILL", attempt=2, batch_bytes=1),
        CachesReset(elapsed_s=1, rss_before_bytes=2 << 20, rss_after_bytes=1 << 20),
        Notice(text="3 files \x1b[2J were\npassed over"),
    ]
    found = lines(*events)
    assert found[0] == "tokmill: a process of the run was lost (killed by SIGKILL): continuing from the last commit, attempt 2"
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
    assert "\x1b[Jtokmill: [bold]a notice[/bold]\n" in shown
    assert shown.endswith("\r\x1b[J")
    assert on_screen(shown) == [
        "tokmill: tokenizing 100.0 MB, 2 threads, at most 1.0 GiB of memory", "tokmill: [bold]a notice[/bold]", "",
    ]  # fmt: skip


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
    stream, coloured = Terminal(), Terminal()
    bar = Bar(stream)
    monkeypatch.delenv("NO_COLOR")
    Bar(coloured).update([Phrase("words", 1)], 1, 2)
    bar.update([Phrase("words", 1)], 1, 2)
    bar.close()
    assert "\x1b[3" in coloured.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*m", stream.getvalue())


PARTS = [
    Phrase("25.0 MB of 100.0 MB", 3), Phrase("25 MB/s", 2), Phrase("6.2 Mtokens/s", 6), Phrase("about 0:03 left", 1),
    Phrase("512 MiB of 1.0 GiB", 5),
]  # fmt: skip


@pytest.mark.parametrize("columns", [1, 8, 20, 30, 40, 60, 80, 100, 200])
def test_a_narrow_terminal_gets_the_more_important_words_on_one_line(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    Bar(stream).update(PARTS, 25, 100)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).removeprefix("\r\x1b[J").removesuffix("\r")
    assert len(shown) <= max(columns - 1, 2)
    wanted = {
        20: "  25 %", 30: "  25 % · about 0:03 left", 40: "  25 % · 25 MB/s · about 0:03 left",
        60: "  25 % · 25.0 MB/100.0 MB · 25 MB/s · about 0:03 left",
    }  # fmt: skip
    assert shown == wanted.get(columns, shown)
    if columns >= 100:
        assert "━━━─────── 25 %" in shown
        assert "512 MiB" in shown


def test_a_stream_that_cannot_write_lines_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Bar(stream).update(PARTS, 25, 100)
    assert raw.getvalue() == b"\r\x1b[J  ###------- 25 % | 25.0 MB/100.0 MB | 25 MB/s | about 0:03 left\r"


def test_a_full_disk_or_a_lost_terminal_is_no_reason_to_end_a_run() -> None:
    with open("/dev/full", "w") as stream:
        Lines(stream).message("unheard")
        Lines(stream).message("unheard")


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
    assert [format_rate(n) for n in (20, 9_900, 29_000, 2.5e6, 337e6)] == [
        "0.02 kB/s", "9.9 kB/s", "0.029 MB/s", "2.5 MB/s", "337 MB/s",
    ]  # fmt: skip
    assert [format_duration(s) for s in (3, 65, 3723)] == ["0:03", "1:05", "1:02:03"]
