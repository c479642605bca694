"""The sampling process: `python -m tokmill.run.estimate.sampler JOB_FD EVENT_FD`.

It is a process of its own so that the parent never loads an engine or numpy, and survives whatever an engine does.

A small corpus is read and encoded whole. Of a larger one, text and JSON lines that are not compressed are sampled in windows from
all over; everything else is read as a run reads it, as far as the time allows, and every n-th batch is a window.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import time
from bisect import bisect_right
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, BudgetTerms, Resources
from tokmill.core.records import Cursor, Location
from tokmill.core.skipping import n_bad_records
from tokmill.core.spans import RecordRanges
from tokmill.core.system.process import serve_once
from tokmill.core.text import counted
from tokmill.encode import cutter_of, disable_awkward, load_encoder
from tokmill.read import CorpusReader, NotARecordError, RecordParser, clean, open_seekable, stored_groups
from tokmill.run.estimate.statistics import Group, SampleRequest, SampleResult, Window, ended_after, share_of, totals
from tokmill.store import read_range, register_urls, serves_ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokmill.core.records import Batch, Input
    from tokmill.read import StoredGroup

WINDOW_BYTES = 64 << 10
REACH_BYTES = 128 << 10
"""Longest document that belongs whole to the window in which it begins; each window has a part of a longer one."""
_FEWEST = 16
_MOST = 2000
"""Windows of one group: small files make small windows, of which more are needed."""
_MOST_REQUESTS = 48
"""Windows of remote objects; each request is waited for."""
_MOST_READ = 64
"""Files that are read from their beginning."""
_LEAST_BYTES = 1 << 20
"""Bytes of such a file that are read whatever time it takes."""
_PART_BYTES = 1 << 20
_MOST_FOLLOWED_BYTES = 1 << 30
"""Lines longer than a window are followed to their ends, so far in all, to see whether the run can hold them."""
_TIMED_BYTES = 1 << 20
"""Less text than this says nothing about speed."""
_QUOTE = re.compile(rb'(?<!\\)(?:\\\\)*"')
_LONGEST_ESCAPE = 13
r"""Bytes of `\ud83d\ude00`, and one."""
_RESOURCES = Resources(
    budget_bytes=256 * MIB,
    child_bytes=256 * MIB,
    terms=BudgetTerms(n_threads=1),
    batch_bytes=WINDOW_BYTES,
    arena_bytes=0,
    spare_bytes=0,
    max_piece_bytes=64 * MIB,
    reset_above_bytes=256 * MIB,
)
"""What a reader of samples may use: small batches, which are windows."""


class Sampler:
    """Answers one request."""

    def __init__(self, request: SampleRequest) -> None:
        self._request = request
        # What is not chosen cannot be told from a window; the sums are those of the share.
        self._content = msgspec.structs.replace(request.job.content, sample=msgspec.UNSET)
        self._has_eot = self._content.eot != "none"
        self._parser = RecordParser(self._content.text_key)
        self._n_bad = 0
        self._n_invalid = 0
        self._notices: list[str] = []
        self._decompressed: dict[int, tuple[int, bool]] = {}
        self._serves_ranges: dict[str, bool] = {}
        self._followed = ("", 0, 0)
        """The last line that was followed: its file, and where in it."""
        self._left_to_follow = _MOST_FOLLOWED_BYTES

    def answer(self) -> SampleResult:
        """Sample, encode and count. Raises TokmillError if an input cannot be read or the engine fails."""
        inputs = {i: source for i, source in enumerate(self._content.inputs) if source.size_bytes is not None}
        plain = {i: source for i, source in inputs.items() if self._is_readable_anywhere(source)}
        n_bytes, sample_bytes = _size(inputs.values()), self._request.sample_bytes
        is_slow = len(plain) > _MOST_REQUESTS and any(source.is_remote for source in plain.values())
        groups = []
        if plain and n_bytes <= sample_bytes and not is_slow:
            groups.append(self._read_files(tuple(plain.values()), math.inf, sample_bytes))
        else:
            for input_format in ("text", "jsonl"):
                files = [source for source in plain.values() if source.format == input_format]
                if _size(files):
                    groups.append(self._windows(files, sample_bytes * _size(files) // n_bytes))
        groups += self._read_all({i: source for i, source in inputs.items() if i not in plain})
        rate = self._encode(groups)
        self._note_bad(sum(len(group.windows) for group in groups))
        is_known, share, found = len(inputs) == len(self._content.inputs), self._request.job.content.sample or 1.0, totals(groups)
        if self._content.max_tokens:
            limited = ended_after(share_of(found, share), self._content.max_tokens)
        else:
            limited = share_of(found, share)
        return SampleResult(
            totals=limited if is_known else None,
            is_exact=is_known and limited == found and all(group.is_whole for group in groups),
            decompressed=self._decompressed,
            engine_bytes_per_s=rate,
            notices=self._notices,
        )

    def _is_readable_anywhere(self, source: Input) -> bool:
        if source.compression != "none" or source.encoding or source.format not in ("text", "jsonl"):
            return False
        if not source.is_remote:
            return True
        # One object of a server speaks for all.
        host = source.path.split("/", 3)[2]
        if host not in self._serves_ranges:
            self._serves_ranges[host] = serves_ranges(source)
        return self._serves_ranges[host]

    # ---- windows of files that can be read anywhere ----

    def _windows(self, files: Sequence[Input], n_bytes: int) -> Group:
        """Return windows of a grid in each file, at equal steps from a random start: long windows are likelier than short."""
        total = _size(files)
        ends = list(accumulate(source.size_bytes or 0 for source in files))
        n_places = sum(-(-(source.size_bytes or 0) // WINDOW_BYTES) for source in files)
        most = _MOST_REQUESTS if any(source.is_remote for source in files) else _MOST
        n = max(_FEWEST, min(most, n_bytes * n_places // total))
        # The seed is fixed: the same corpus gives the same answer.
        start = random.Random(0).random()  # noqa: S311  a sample, no secret
        windows = []
        drawn: set[tuple[int, int]] = set()
        for k in range(n):
            at = min(int((k + start) * total / n), total - 1)
            i = bisect_right(ends, at)
            offset = at - (ends[i - 1] if i else 0)
            begin = offset - offset % WINDOW_BYTES
            windows.append(self._window(files[i], begin))
            windows[-1].is_again = (i, begin) in drawn
            drawn.add((i, begin))
        # The last document of each text file is in no window's count.
        return Group(windows, total, extra_documents=len(files) if files[0].format == "text" else 0)

    def _window(self, source: Input, begin: int) -> Window:
        """Return the documents that begin in a window, and what lies in it of those that are too long.

        If a document longer than a window belonged to the window in which it begins, a few of them would decide everything.
        """
        is_text, size = source.format == "text", source.size_bytes or 0
        separator = (self._content.separator or "").encode() if is_text else b"\n"
        low, end = max(0, begin - REACH_BYTES), min(begin + WINDOW_BYTES, size)
        data, first, last = _read(source, low, min(end + REACH_BYTES, size)), begin - low, end - low
        window = Window(chance=float(last - first))
        before = data.rfind(separator, 0, first) if separator else -1
        at = before + len(separator) if before >= 0 else 0
        while at < last:
            found = data.find(separator, at) if separator else -1
            stop, n_after = (found, len(separator)) if found >= 0 else (len(data), 0)
            if stop - at > REACH_BYTES:
                part = data[_character(data, max(at, first)) : _character(data, min(stop, last))]
                is_end = first <= stop < last if n_after else stop == last
                text: bytes | None = part if is_text else _text_of_part(part)
                if not is_text and not self._fits(source, low + at, low + stop, before < 0 < low and not at, found < 0):
                    text = None
                    self._n_bad += is_end
                    window.documents += is_end
                window.raw_bytes += len(part) + n_after * is_end
            elif at >= first:
                text, is_end = data[at:stop] if is_text else self._parsed(data[at:stop], window, at_start=low == at == 0), True
                window.raw_bytes += stop - at + n_after
            else:
                text, is_end = None, False
            if text:
                window.texts.append(text)
            if is_end and text is not None:
                # The last document of a text file is counted with the files.
                window.documents += bool(n_after or not is_text)
                window.tokens += self._has_eot and bool(text or self._content.keep_empty)
            at = stop + max(1, n_after)
        return window

    def _fits(self, source: Input, begin: int, end: int, is_open_before: bool, is_open_after: bool) -> bool:  # noqa: FBT001
        """Return whether a line, of which a part is known, is one that the run holds. Raises MemoryBudgetError: that ends it."""
        if source.is_remote:
            return True
        settings, size = self._reader((source,)).settings, source.size_bytes or 0
        most, (path, known_begin, known_end) = settings.most_record_bytes, self._followed
        if path == source.path and known_begin <= begin < known_end:
            return known_end - known_begin <= most
        while is_open_after and end < size and end - begin <= most and self._left_to_follow > 0:
            part = _read(source, end, min(end + _PART_BYTES, size))
            at = part.find(b"\n")
            is_open_after = at < 0 and bool(part)
            end += at if at >= 0 else len(part)
            self._left_to_follow -= _PART_BYTES
        while is_open_before and end - begin <= most and self._left_to_follow > 0:
            low = max(0, begin - _PART_BYTES)
            at = _read(source, low, begin).rfind(b"\n")
            begin, is_open_before = low + at + 1, at < 0 < low
            self._left_to_follow -= _PART_BYTES
        self._followed = source.path, begin, end
        if end - begin > most and self._content.on_error == "stop":
            where = Location(path=source.path, offset=None if is_open_before else begin)
            raise settings.too_long("a line", where, is_record=True)
        return end - begin <= most

    def _parsed(self, line: bytes, window: Window, *, at_start: bool) -> bytes | None:
        """Return the text of a line of JSON; None for a blank line, which is no document, and a bad one, which is counted here."""
        if not line or line.isspace():
            return None
        try:
            return self._parser.parse(line, self._content.encoding_errors, at_start=at_start)[0]
        except NotARecordError:
            self._n_bad += 1
            window.documents += 1
            return None

    # ---- everything else ----

    def _read_all(self, inputs: dict[int, Input]) -> list[Group]:
        """Read files from their beginning; return a group for each format."""
        looked = sorted(random.Random(0).sample(list(inputs), min(len(inputs), _MOST_READ)))  # noqa: S311  the same
        until_s = time.monotonic() + self._request.decode_s
        seen: dict[int, Group] = {}
        for n_left, i in zip(range(len(looked), 0, -1), looked, strict=True):
            share_s = (until_s - time.monotonic()) / n_left
            seen[i] = self._read_files((inputs[i],), share_s, self._request.sample_bytes // len(looked))
        n_part = sum(one.unseen_bytes > 0 for one in seen.values())
        if n_part:
            self._notices.append(f"of {counted(n_part, 'file')} only the beginning was read: the rest may be different")
        if len(seen) < len(inputs):
            self._notices.append(f"{len(seen):,} of {counted(len(inputs), 'file')} were read")
        return [self._pooled(inputs, seen, each) for each in dict.fromkeys(inputs[i].format for i in looked)]

    def _pooled(self, inputs: dict[int, Input], seen: dict[int, Group], input_format: str) -> Group:
        """Return one group of the inputs of a format; those that were not read are taken to be as well compressed."""
        sizes = {i: source.size_bytes or 0 for i, source in inputs.items() if source.format == input_format}
        read = {i: seen[i] for i in sizes if i in seen}
        n_seen, n_unseen = (sum(one.seen_bytes for one in read.values()), sum(one.unseen_bytes for one in read.values()))
        factor = (n_seen + n_unseen) / (sum(sizes[i] for i in read) or 1)
        self._decompressed |= {i: (one.seen_bytes + one.unseen_bytes, not one.unseen_bytes) for i, one in read.items()}
        others = {i: int(factor * size) for i, size in sizes.items() if i not in read}
        self._decompressed |= {i: (n_bytes, False) for i, n_bytes in others.items()}
        is_whole = not others and all(one.is_whole for one in read.values())
        windows = [window for one in read.values() for window in one.windows]
        return Group(windows, n_seen, n_unseen + sum(others.values()), is_whole)

    def _read_files(self, sources: tuple[Input, ...], seconds: float, most_bytes: int) -> Group:
        """Read files as far as the time allows and keep every n-th batch, of at most so much text."""
        reader, is_text = self._reader(sources), sources[0].format == "text"
        size, until_s = _size(sources), time.monotonic() + seconds
        stored = []
        if sources[0].format == "parquet":
            stored = [group for group in stored_groups(sources[0], reader.settings) if group.n_rows]
        if len(stored) >= _FEWEST and sum(group.stored_bytes for group in stored) > most_bytes:
            return self._row_groups(reader, stored, until_s, most_bytes)
        windows: list[Window] = []
        stride, n_kept_bytes, n_seen, n_unseen, n_raw, n_records = 1, 0, 0, 0, 0, 0
        for n_met, batches in enumerate(_whole_records(reader.batches(Cursor()), is_text=is_text)):
            window = self._window_of(batches)
            n_records += window.documents
            # The end of a Parquet file is read first.
            position = size * n_records // sum(g.n_rows for g in stored) if stored else batches[-1].position_bytes
            # A stream is left when it reads more from the disk: what it had read before was all delivered.
            if time.monotonic() > until_s and n_seen >= _LEAST_BYTES and position > n_raw:
                n_unseen = max(1, (size - n_raw) * n_seen // max(1, n_raw))
                break
            n_seen, n_raw = n_seen + window.raw_bytes, position
            if n_met % stride == 0:
                windows.append(window)
                n_kept_bytes += sum(map(len, window.texts))
            while n_kept_bytes > most_bytes and len(windows) > 4:
                windows, stride = windows[::2], stride * 2
                n_kept_bytes = sum(len(text) for kept in windows for text in kept.texts)
        for window in windows:
            window.chance = 1 / stride
        return Group(windows, n_seen, n_unseen, is_whole=not n_unseen and stride == 1)

    def _row_groups(self, reader: CorpusReader, stored: Sequence[StoredGroup], until_s: float, most_bytes: int) -> Group:
        """Read the first rows of row groups in random order, as far as the time allows; each is a window."""
        windows: list[tuple[int, Window]] = []
        n_drawn = n_kept_bytes = 0
        for group in random.Random(0).sample(stored, len(stored)):  # noqa: S311  the same
            if len(windows) >= _FEWEST and (time.monotonic() > until_s or n_kept_bytes > most_bytes):
                break
            window = Window()
            for batches in _whole_records(reader.batches(Cursor(record=group.first)), is_text=False):
                window += self._window_of(batches)
                if window.documents >= group.n_rows or window.raw_bytes * len(stored) >= most_bytes:
                    break
            # The last batch of a row group may hold rows of the next.
            window.chance = max(1, window.documents) / group.n_rows
            windows.append((group.first, window))
            n_drawn += group.n_rows
            n_kept_bytes += window.raw_bytes
        n_seen = int(sum(window.raw_bytes / window.chance for _, window in windows))
        n_unseen = n_seen * (sum(group.n_rows for group in stored) - n_drawn) // n_drawn
        return Group([window for _, window in sorted(windows, key=itemgetter(0))], n_seen, n_unseen)

    def _reader(self, sources: tuple[Input, ...]) -> CorpusReader:
        """Return a reader with the budget of the run, and small batches."""
        content = msgspec.structs.replace(self._content, inputs=sources, on_error="skip")
        job = self._request.job.resources
        budget = {name: getattr(job, name) for name in ("budget_bytes", "max_piece_bytes", "spare_bytes", "terms")}
        reader = CorpusReader(content, msgspec.structs.replace(_RESOURCES, **budget), cutter_of(content.tokenizer))
        if self._content.on_error == "stop":
            # What does not fit ends the run, and the plan.
            reader.skip_long(RecordRanges({}))
        return reader

    def _window_of(self, batches: Sequence[Batch]) -> Window:
        window, content = Window(), self._content
        for batch in batches:
            texts = [text for text in batch.documents if text]
            window.texts += texts
            window.raw_bytes += batch.counts.bytes_in
            window.documents += batch.counts.documents
            n_ended = (len(batch.documents) if content.keep_empty else len(texts)) - batch.tail_open
            window.tokens += n_ended * self._has_eot
            self._n_bad += n_bad_records(batch.counts)
        return window

    # ---- encoding ----

    def _encode(self, groups: Sequence[Group]) -> float | None:
        """Count the tokens of all windows, and leave out those for which there is no time; return the engine's bytes a second."""
        encoder = load_encoder(self._content.tokenizer, self._request.job.resources.engine)
        # In random order, so that what is left out for lack of time is left out everywhere.
        windows = [window for group in groups for window in group.windows]
        random.Random(1).shuffle(windows)  # noqa: S311  the same
        timed: list[tuple[int, float]] = []
        until_s = time.monotonic() + self._request.encode_s
        for n_done, window in enumerate(windows):
            if n_done >= _FEWEST and time.monotonic() > until_s:
                self._notices.append(f"the engine is slow here: {n_done:,} of {counted(len(windows), 'window')} were encoded")
                left_out = set(map(id, windows[n_done:]))
                for group in groups:
                    kept = [window for window in group.windows if id(window) not in left_out]
                    group.windows, group.is_whole = kept, group.is_whole and len(kept) == len(group.windows)
                break
            texts = [self._valid(text) for text in window.texts]
            window.text_bytes = sum(map(len, texts))
            began_s = time.perf_counter()
            window.tokens += len(encoder.encode(texts)[0])
            timed.append((window.text_bytes, max(time.perf_counter() - began_s, 1e-9)))
        n_bytes = sum(n for n, _ in timed)
        # A window of a few bytes says nothing about speed.
        rates = [n / seconds for n, seconds in timed if 2 * n * len(timed) >= n_bytes]
        # The median of the second half: warmed up, and of no moment in which another program had the processor.
        return statistics.median(rates[len(rates) // 2 :]) if n_bytes >= _TIMED_BYTES else None

    def _valid(self, text: bytes) -> bytes:
        try:
            text.decode()
        except UnicodeDecodeError:
            self._n_invalid += 1
            policy = self._content.encoding_errors
            return clean(text, "ignore" if policy == "strict" else policy)[0]
        return text

    def _note_bad(self, n_windows: int) -> None:
        content, where = self._content, f"in {counted(n_windows, 'window')}"
        stops = content.on_error != "skip"
        policy = "tokenize will stop at the first, and name it" if stops else "tokenize will skip such documents, and count them"
        if self._n_bad:
            what = f"{counted(self._n_bad, 'bad record')} {where}, without a text where it should be"
            self._notices.append(f"{what}: {policy}" + ("; --on-error skip leaves such records out" if stops else ""))
        if self._n_invalid:
            what = f"{counted(self._n_invalid, 'piece of text', 'pieces of text')} {where} that UTF-8 does not allow"
            if content.encoding_errors != "strict":
                policy = f"--encoding-errors {content.encoding_errors} will repair it"
            elif stops:
                policy += "; --encoding says what it is written in, or --encoding-errors replace puts a sign in place of it"
            self._notices.append(f"{what}: {policy}")


def _size(sources: Iterable[Input]) -> int:
    return sum(source.size_bytes or 0 for source in sources)


def _whole_records(batches: Iterator[Batch], *, is_text: bool) -> Iterator[list[Batch]]:
    """Yield batches, those of one record together: what was read of it is counted in the last. Pieces of text count themselves."""
    record: list[Batch] = []
    for batch in batches:
        record.append(batch)
        if batch.after is not None or is_text:
            yield record
            record = []


def _character(data: bytes, at: int) -> int:
    """Return where the first character begins at or after a byte."""
    return next((i for i in range(at, min(at + 4, len(data))) if data[i] & 0xC0 != 0x80), at)


def _text_of_part(part: bytes) -> bytes:
    """Return the text of a part of a JSON line: its longest string, without an escape that was cut at either end."""
    text = max(_QUOTE.split(part), key=len).decode("utf-8", "ignore")
    for front in range(_LONGEST_ESCAPE):
        for back in range(_LONGEST_ESCAPE):
            try:
                value: str = json.loads(f'"{text[front : len(text) - back]}"', strict=False)
            except ValueError:
                continue
            return value.encode("utf-8", "ignore")
    return text.encode()


def _read(source: Input, begin: int, end: int) -> bytes:
    """Return bytes of a file. Raises DamagedInputError, ChangedError."""
    if source.is_remote:
        return read_range(source, begin, end)
    with open_seekable(source) as file:
        file.seek(begin)
        return file.read(end - begin)


def _answer(line: bytes) -> SampleResult:
    request = msgspec.json.decode(line, type=SampleRequest)
    register_urls(request.job.urls)
    return Sampler(request).answer()


if __name__ == "__main__":
    disable_awkward()
    serve_once(_answer)
