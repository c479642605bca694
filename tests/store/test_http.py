"""Remote inputs from a real web server, faults in the middle included."""

from __future__ import annotations

import gzip
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.commands import wait_until
from support.web import Handler, Site, serving

from tokmill.core.errors import ChangedError, DamagedInputError, TokmillError, UsageError
from tokmill.core.records import Input
from tokmill.core.system.budget import REMOTE_BLOCKS_HELD
from tokmill.read.inputs import find_inputs
from tokmill.read.sniff import check_files
from tokmill.read.stream import open_stream
from tokmill.store import download, http
from tokmill.store.download import RemoteStream, RetryPolicy

FIRST, BLOCK = 4 << 10, 64 << 10
DATA = random.Random(0).randbytes(FIRST + 6 * BLOCK + 77)
QUICK = RetryPolicy(attempts=4, first_s=0.01, most_s=0.05)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_BYTES", FIRST)
    monkeypatch.setattr(download, "REMOTE_BLOCK_BYTES", BLOCK)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


def find(url: str) -> Input:
    (found,) = find_inputs([url], glob=None, input_format=None).inputs
    return found


def read(source: Input, patience: RetryPolicy = QUICK, skip: int = 0) -> bytes:
    stream = RemoteStream(source, patience)
    try:
        stream.skip(skip)
        return b"".join(iter(lambda: stream.read(10_000), b""))
    finally:
        stream.close()


def fetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch-")]


def drain(stream: RemoteStream) -> None:
    while stream.read(100):
        pass


def answers(n: int, how: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    """Faults in the first n answers to requests that read."""
    left = [n]

    def fault(handler: Handler) -> bool:
        if left[0] == 0:
            return False
        left[0] -= 1
        return how(handler)

    return fault


def status(code: int) -> Callable[[Handler], bool]:
    def answer(handler: Handler) -> bool:
        return handler.status(code)

    return answer


def cut(n_bytes: int) -> Callable[[Handler], bool]:
    def answer(handler: Handler) -> bool:
        path = handler.path.partition("?")[0]
        handler.answer(handler.site.files[path], handler.site.etags.get(path), cut_after=n_bytes)
        return True

    return answer


ENDS = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + BLOCK, FIRST + BLOCK + 1, len(DATA)]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", ENDS)
def test_the_bytes_are_those_that_the_server_has(site: Site, size: int, ranges: bool) -> None:
    site.ranges = ranges
    source = find(site.put("/a.txt", DATA[:size]))
    assert source.size_bytes == size
    assert read(source) == DATA[:size]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("skip", [1, FIRST, FIRST + BLOCK + 5, len(DATA)])
def test_what_is_skipped_does_not_arrive(site: Site, skip: int, ranges: bool) -> None:
    site.ranges = ranges
    source = find(site.put("/a.txt", DATA))
    site.log.clear()
    assert read(source, skip=skip) == DATA[skip:]
    begins = [int(asked.removeprefix("bytes=").partition("-")[0]) for _, asked in site.log if asked]
    assert min(begins, default=skip) == skip
    assert len(begins) == len(set(begins)), "nothing is asked for twice"


def test_a_skip_in_the_middle_goes_on_there(site: Site) -> None:
    stream = RemoteStream(find(site.put("/a.txt", DATA)), QUICK)
    assert stream.read(10) == DATA[:10]
    stream.skip(5)
    assert stream.read(10) == DATA[15:25]
    stream.skip(2 * BLOCK)
    at = 25 + 2 * BLOCK
    assert stream.read(10) == DATA[at : at + 10]
    assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == DATA[at + 10 :]
    assert stream.offset == stream.raw_position() == len(DATA)
    stream.close()


def test_a_run_that_was_further_than_the_object_is_long_is_refused(site: Site) -> None:
    with pytest.raises(ChangedError):
        read(find(site.put("/a.txt", DATA)), skip=len(DATA) + 1)


def test_compressed_objects_are_known_by_suffix_and_decompressed_here(site: Site) -> None:
    source = find(site.put("/a.jsonl.gz", gzip.compress(DATA)) + "?id=1")
    assert (source.format, source.compression) == ("jsonl", "gzip")
    stream = open_stream(source)
    assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == DATA
    stream.close()


def test_an_object_that_the_server_calls_encoded_is_read_as_it_is_stored(site: Site) -> None:
    packed = gzip.compress(DATA)
    url = site.put("/a.txt.gz", packed)
    site.headers["Content-Encoding"] = "gzip"
    assert read(find(url)) == packed


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_an_object_that_is_encoded_and_not_called_so_is_refused(site: Site, encoding: str) -> None:
    url = site.put("/a.txt", gzip.compress(DATA))
    site.headers["Content-Encoding"] = encoding
    with pytest.raises(UsageError, match=f"compressed \\({encoding}\\)") as caught:
        find(url)
    assert all((caught.value.where, caught.value.allowed, caught.value.next_step))
    del site.headers["Content-Encoding"]
    source = find(url)
    site.headers["Content-Encoding"] = encoding
    with pytest.raises(UsageError, match="the server sends it compressed"):
        read(source)


@pytest.mark.parametrize("encoding", ["identity", "aws-chunked", ""])
def test_an_encoding_that_changes_nothing_is_none(site: Site, encoding: str) -> None:
    site.headers["Content-Encoding"] = encoding
    assert read(find(site.put("/a.txt", DATA))) == DATA


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("n_bytes", [0, 1, 3000])
def test_a_connection_that_is_cut_is_taken_up_at_the_missing_byte(site: Site, n_bytes: int, ranges: bool) -> None:
    site.ranges = ranges
    source = find(site.put("/a.txt", DATA))
    site.log.clear()
    site.fault = answers(3, cut(n_bytes))
    assert read(source) == DATA
    assert [asked for _, asked in site.log[:2]] == [f"bytes=0-{FIRST - 1}", f"bytes={n_bytes}-{FIRST - 1}"]


def test_a_server_that_cuts_every_answer_is_read_as_long_as_it_gets_further(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PROGRESS_BYTES", 1000)
    source = find(site.put("/a.txt", DATA))
    site.fault = cut(BLOCK // 7)
    assert read(source) == DATA


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(site: Site, code: int) -> None:
    source = find(site.put("/a.txt", DATA))
    site.fault = answers(3, status(code))
    assert read(source) == DATA


def test_a_server_that_fails_for_ever_is_one_error_with_url_and_byte(site: Site) -> None:
    source = find(site.put("/a.txt", DATA))
    stream = RemoteStream(source, QUICK)
    assert stream.read(100) == DATA[:100]
    site.log.clear()
    site.fault = status(500)
    with pytest.raises(DamagedInputError) as caught:
        drain(stream)
    stream.close()
    assert stream.offset == FIRST, "what was there is handed on first"
    error = caught.value
    assert error.where == f"{source.path}, byte {FIRST:,}"
    assert "HTTP 500" in error.what
    assert f"{QUICK.attempts} times" in error.what
    assert error.allowed
    assert error.resumes
    asked = [a for _, a in site.log]
    assert max(asked.count(a) for a in asked) == QUICK.attempts


@pytest.mark.parametrize(
    ("code", "error"), [(403, DamagedInputError), (401, DamagedInputError), (404, ChangedError), (451, DamagedInputError)]
)
def test_what_will_not_pass_is_an_error_at_once(site: Site, code: int, error: type[TokmillError]) -> None:
    source = find(site.put("/a.txt", DATA))
    site.log.clear()
    site.fault = status(code)
    with pytest.raises(error) as caught:
        read(source)
    assert len(site.log) == 1
    assert str(code) in caught.value.what or code == 404


@pytest.mark.parametrize("code", [403, 404, 500])
def test_errors_are_found_before_the_run(site: Site, code: int) -> None:
    url = site.put("/a.txt", DATA)
    site.fault = status(code)
    began_s = time.monotonic()
    with pytest.raises((UsageError, DamagedInputError)) as caught:
        find(url)
    assert caught.value.where == url
    assert len(site.log) == (download.PLANNING.attempts if code == 500 else 1)
    assert time.monotonic() - began_s < 5


def test_pauses_grow_up_to_a_limit_and_differ() -> None:
    patience = RetryPolicy(attempts=20, first_s=1.0, most_s=10.0)
    pauses = [[patience.pause_s(n, 0.0) for _ in range(50)] for n in range(1, 20)]
    for n, some in enumerate(pauses):
        full = min(10.0, 2.0**n)
        assert full / 2 <= min(some) < max(some) <= full
    assert patience.pause_s(1, 5.0) == 5.0
    assert patience.pause_s(1, 5000.0) == 10.0


def short(handler: Handler) -> bool:
    """An answer that says itself that it is only a part of what was asked for, and lasts."""
    data = handler.site.files["/a.txt"]
    begin = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
    part = data[begin : begin + 20_000]
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
    handler.send_header("Content-Length", str(len(part)))
    handler.send_header("ETag", handler.site.etags["/a.txt"])
    handler.end_headers()
    handler.wfile.write(part)
    return True


def test_an_answer_that_is_shorter_than_asked_is_not_taken_for_all(site: Site) -> None:
    source = find(site.put("/a.txt", DATA))
    site.fault = short
    assert read(source) == DATA


def other_range(handler: Handler) -> bool:
    handler.headers.replace_header("Range", "bytes=5-100")
    return False


def test_other_bytes_than_those_asked_for_are_refused(site: Site) -> None:
    source = find(site.put("/a.txt", DATA))
    site.fault = other_range
    with pytest.raises(DamagedInputError, match="answered with others"):
        read(source)


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_another_version_is_refused_whether_the_server_compares_or_not(site: Site, conditions: bool, ranges: bool) -> None:
    site.conditions, site.ranges = conditions, ranges
    source = find(site.put("/a.txt", DATA))
    site.put("/a.txt", DATA[::-1])
    with pytest.raises(ChangedError) as caught:
        read(source)
    assert caught.value.where == source.path
    assert caught.value.exit_code == 12


@pytest.mark.parametrize("size", [len(DATA), len(DATA) - 1, len(DATA) + 1])
@pytest.mark.parametrize("conditions", [True, False])
def test_an_object_that_is_replaced_while_it_is_read_is_refused(site: Site, conditions: bool, size: int) -> None:
    site.conditions = conditions
    stream = RemoteStream(find(site.put("/a.txt", DATA)), QUICK)
    assert stream.read(FIRST) == DATA[:FIRST]
    site.put("/a.txt", (DATA[::-1] + b"more")[:size])
    with pytest.raises(ChangedError):
        drain(stream)
    stream.close()


def test_without_an_etag_the_time_tells_and_without_both_a_notice(site: Site) -> None:
    url = site.put("/a.txt", DATA)
    del site.etags["/a.txt"]
    assert find(url).version == "modified Tue, 01 Jul 2025 00:00:00 GMT"
    site.hidden.add("Last-Modified")
    found = find_inputs([url], glob=None, input_format=None)
    assert found.inputs[0].version is None
    assert "only its size" in found.notices()[0]
    assert read(found.inputs[0]) == DATA
    site.files["/a.txt"] = DATA + b"more"
    with pytest.raises(ChangedError):
        read(found.inputs[0])


def test_a_weak_etag_is_compared_here(site: Site) -> None:
    url = site.put("/a.txt", DATA)
    site.etags["/a.txt"] = 'W/"1"'
    source = find(url)
    assert read(source) == DATA
    site.etags["/a.txt"] = 'W/"2"'
    with pytest.raises(ChangedError):
        read(source)


class Noted(RetryPolicy):
    """Says when an attempt has failed."""

    failed = threading.Event()

    def pause_s(self, n_failed: int, after_s: float) -> float:
        self.failed.set()
        return super().pause_s(n_failed, after_s)


def test_a_server_that_is_killed_and_started_again_is_waited_for() -> None:
    site = Site()
    Noted.failed.clear()
    with serving(site):
        stream = RemoteStream(find(site.put("/a.txt", DATA)), Noted(attempts=9, first_s=0.1, most_s=0.5))
        text = stream.read(FIRST)
    port = site.port

    def again() -> None:
        assert Noted.failed.wait(20)
        with serving(site, port):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=again)
    thread.start()
    try:
        assert text + b"".join(iter(lambda: stream.read(BLOCK), b"")) == DATA
    finally:
        done.set()
        thread.join()
        stream.close()


def test_a_server_that_falls_silent_is_asked_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SILENCE_S", 0.2)

    done = threading.Event()

    def silent(handler: Handler) -> bool:
        done.wait(20)
        return handler.reset()

    source = find(site.put("/a.txt", DATA))
    site.fault = answers(2, silent)
    try:
        assert read(source) == DATA
    finally:
        done.set()


def test_a_slow_server_is_read_to_the_end(site: Site) -> None:
    source = find(site.put("/a.txt", DATA[: 2 * BLOCK]))
    site.bytes_per_s = 400_000
    assert read(source) == DATA[: 2 * BLOCK]


def test_no_more_is_read_ahead_than_is_held(site: Site) -> None:
    data = DATA * 3
    stream = RemoteStream(find(site.put("/a.txt", data)), QUICK)
    site.forget()
    stream.read(1)
    assert not fetching(), "nothing before the first block is used up"
    assert site.sent_bytes == FIRST
    stream.read(FIRST)
    stream.read(1)
    wait_until(lambda: site.sent_bytes - FIRST >= REMOTE_BLOCKS_HELD * BLOCK)
    assert site.sent_bytes - FIRST == REMOTE_BLOCKS_HELD * BLOCK
    stream.close()
    wait_until(lambda: not fetching())


def test_a_look_at_the_first_line_costs_one_small_request(site: Site) -> None:
    source = find(site.put("/a.txt", b"one line\n" + DATA))
    site.forget()
    assert check_files([source], "text") == []
    assert site.sent_bytes == FIRST


def test_closing_ends_the_threads_that_wait_to_ask_again(site: Site) -> None:
    stream = RemoteStream(find(site.put("/a.txt", DATA)), RetryPolicy(attempts=9, first_s=30, most_s=30))
    stream.read(FIRST)
    second = f"bytes={FIRST + BLOCK}-"
    site.fault = lambda handler: handler.headers["Range"].startswith(second) and status(500)(handler)
    assert stream.read(1)
    wait_until(fetching)
    stream.close()
    wait_until(lambda: not fetching())


def test_lists_and_patterns_of_a_web_server_are_refused(site: Site) -> None:
    site.put("/a.txt", DATA)
    for path in ("/", "/*.txt", "/[a].txt"):
        with pytest.raises(UsageError, match="no directories and patterns"):
            find(site.url(path))


def test_two_urls_that_differ_in_secrets_only_are_refused(site: Site) -> None:
    url = site.put("/a.txt", DATA)
    with pytest.raises(UsageError, match="differ only in user, password or signature"):
        find_inputs([f"{url}?sig=1", f"{url}?sig=2"], glob=None, input_format=None)
    assert find_inputs([url, url, url], glob=None, input_format=None).repeated == ((url, 3),)


def test_a_password_with_a_slash_is_to_be_escaped() -> None:
    with pytest.raises(UsageError, match="the password has a slash") as caught:
        find("https://user:pa/ss@host/a.txt")
    assert caught.value.next_step == "write each / of the password as %2F"
    assert "pa/ss" not in str(caught.value)


def test_a_host_that_is_not_there_is_an_error_that_quotes_no_secret() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(DamagedInputError) as caught:
            find(f"http://user:HIDDEN@127.0.0.1:{port}/a.txt?sig=HIDDEN")
    assert "HIDDEN" not in str(caught.value)
    assert caught.value.where == f"http://127.0.0.1:{port}/a.txt"


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://host:port/a.txt", "https:///a.txt"])
def test_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(TokmillError) as caught:
        find(url)
    assert caught.value.where
