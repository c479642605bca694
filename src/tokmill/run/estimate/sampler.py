"""The sampling process: `python -m tokmill.run.estimate.sampler JOB_FD EVENT_FD`.

It is a process of its own so that the parent never loads an engine or numpy, and survives whatever an engine does.

Files that can be read anywhere (text and JSON lines, not compressed) are sampled in windows from all over. Everything else is read
as a run reads it, as far as the time allows, and every n-th batch is a window: from the beginning, but of large Parquet files row
groups in random order, measured in bytes of the stored column, which the file's footer counts exactly.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.config import MIB, Resources
from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Cursor, text_to_path
from tokmill.core.skipping import OTHER_FILE
from tokmill.core.system.process import serve_once
from tokmill.core.text import counted
from tokmill.encode import cutter_of, disable_awkward, load_encoder
from tokmill.read import CorpusReader, clean
from tokmill.run.estimate import windows
from tokmill.run.estimate.statistics import Group, SampleRequest, SampleResult, Window
from tokmill.run.estimate.windows import Cut, Excerpt, View, cut_of
from tokmill.store import register_urls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokmill.core.config import Content
    from tokmill.core.records import Batch, Input

_FEWEST = 16
_MOST = 2000
"""Windows of one group: small files make small windows, of which more are needed."""
_MOST_READ = 64
"""Files that are read from their beginning."""
_LEAST_BYTES = 1 << 20
"""Bytes of such a file that are read whatever time it takes."""
_MOST_REQUESTS = 48
"""Ranges of remote objects; each request is waited for."""
_CHUNK_BYTES = 256 << 10
"""Text encoded between two looks at the clock."""
_TIMED_BYTES = 1 << 20
"""Less text than this says nothing about speed."""

_Sampled = tuple[Group, list[Excerpt]]
"""A group whose windows are still to be encoded."""


@dataclass(slots=True)
class _Seen:
    """What was read of one file."""

    excerpts: list[Excerpt]
    n_bytes: int
    """Decompressed; of Parquet, stored."""
    n_raw: int
    """On disk."""
    is_complete: bool
    """It was read to its end."""
    is_whole: bool
    """The excerpts are all of it."""


class Sampler:
    """Answers one request."""

    def __init__(self, request: SampleRequest) -> None:
        self._request = request
        self._content = request.job.content
        self._cutter = cutter_of(request.job.content.tokenizer)
        self._n_invalid = 0
        self._notices: list[str] = []
        self._decompressed: list[tuple[int, int, bool]] = []
        self._serves_ranges: dict[str, bool] = {}

    def answer(self) -> SampleResult:
        """Sample, encode and count. Raises TokmillError if an input cannot be read or the engine fails."""
        content = self._content
        inputs = [(i, source) for i, source in enumerate(content.inputs) if source.size_bytes is not None]
        anywhere = {i for i, source in inputs if self._is_readable_anywhere(source)}
        texts = [source for i, source in inputs if i in anywhere]
        n_bytes = _size(source for _, source in inputs) or 1
        found: list[_Sampled] = []
        for input_format in ("text", "jsonl"):
            files = [source for source in texts if source.format == input_format and source.size_bytes]
            if files:
                found.append(self._windows(files, input_format, self._request.sample_bytes * _size(files) // n_bytes))
        found += self._read([(i, source) for i, source in inputs if i not in anywhere])
        # A text file without a byte is an empty document.
        n_empty = sum(source.format == "text" and not source.size_bytes for source in texts)
        n_eot = n_empty if content.keep_empty and content.eot != "none" else 0
        found.append((Group(windows=[], seen_bytes=0, is_whole=True, extra_documents=n_empty, extra_tokens=n_eot), []))
        excerpts = [excerpt for _, of_group in found for excerpt in of_group]
        encoded, rate = self._encode(excerpts)
        self._note_bad(sum(excerpt.n_bad for excerpt in excerpts), len(excerpts))
        return SampleResult(
            groups=[self._counted(group, of_group, encoded) for group, of_group in found],
            decompressed=sorted(self._decompressed),
            n_unknown=len(content.inputs) - len(inputs),
            engine_bytes_per_s=rate,
            notices=self._notices,
        )

    def _is_readable_anywhere(self, source: Input) -> bool:
        if source.compression != "none" or source.format not in ("text", "jsonl"):
            return False
        if not source.is_remote:
            return True
        from tokmill.store import serves_ranges

        # One object of a server speaks for all.
        host = source.path.split("/", 3)[2]
        if host not in self._serves_ranges:
            self._serves_ranges[host] = serves_ranges(source)
        return self._serves_ranges[host]

    # ---- files that can be read anywhere ----

    def _windows(self, files: Sequence[Input], input_format: str, n_bytes: int) -> _Sampled:
        """Return all of the files, or windows: one at random from each of equal stretches, long windows likelier than short."""
        total, is_remote = _size(files), any(source.is_remote for source in files)
        is_whole = total <= n_bytes and not (is_remote and len(files) > _MOST_REQUESTS)
        if is_whole:
            cut = cut_of(self._content, input_format, self._cutter, reach_bytes=sys.maxsize)
            excerpts = [_excerpt(source, 0, source.size_bytes or 0, cut, 0) for source in files]
        else:
            place, reach = windows.PLACE_BYTES, windows.REACH_BYTES if input_format == "jsonl" else windows.PLACE_BYTES // 4
            cut = cut_of(self._content, input_format, self._cutter, reach_bytes=reach)
            ends = list(accumulate(source.size_bytes or 0 for source in files))
            n_places = sum(-(-(source.size_bytes or 0) // place) for source in files)
            n = max(_FEWEST, min(_MOST_REQUESTS if is_remote else _MOST, n_bytes * n_places // total))
            # The seed is fixed: the same corpus gives the same answer.
            rng = random.Random(0)  # noqa: S311  a sample, no secret
            excerpts = []
            for k in range(n):
                at = min(int((k + rng.random()) * total / n), total - 1)
                i = bisect_right(ends, at)
                offset = at - (ends[i - 1] if i else 0)
                begin = offset - offset % place
                excerpts.append(_excerpt(files[i], begin, min(begin + place, files[i].size_bytes or 0), cut, reach))
        # The last document of each text file is in no window's count.
        n_last = len(files) if input_format == "text" else 0
        return Group(windows=[], seen_bytes=total, is_whole=is_whole, extra_documents=n_last), excerpts

    # ---- everything else ----

    def _read(self, inputs: Sequence[tuple[int, Input]]) -> list[_Sampled]:
        if not inputs:
            return []
        looked = sorted(random.Random(0).sample(range(len(inputs)), min(len(inputs), _MOST_READ)))  # noqa: S311  the same
        most_bytes = self._request.sample_bytes // len(looked)
        until_s = time.monotonic() + self._request.decode_s
        seen: dict[int, _Seen] = {}
        for n_done, k in enumerate(looked):
            now = time.monotonic()
            seen[k] = self._read_one(inputs[k][1], now + max(0.0, until_s - now) / (len(looked) - n_done), most_bytes)
        self._note_unseen(inputs, seen)
        formats = dict.fromkeys(source.format for _, source in inputs)
        return [self._read_group(inputs, seen, each) for each in formats if any(inputs[k][1].format == each for k in seen)]

    def _read_one(self, source: Input, until_s: float, most_bytes: int) -> _Seen:
        """Read a file as far as the time allows and keep every n-th batch, of at most so much text."""
        alone = msgspec.structs.replace(self._content, inputs=(source,), on_error="skip")
        reader = CorpusReader(alone, _resources(), self._cutter)
        kept: list[tuple[int, Excerpt]] = []
        seen, stride, n_met, n_kept_bytes, is_late = _Seen([], 0, 0, is_complete=True, is_whole=True), 1, 0, 0, False
        stretches = _row_groups(source, alone, self._request.sample_bytes)
        for start, n_rows, n_stored in stretches:
            rows = n_read = 0
            for stretch in _stretches(reader.batches(start), source.format):
                position = stretch[-1].position_bytes
                # A stream is left when it reads more from the disk: what it had read before was all delivered.
                is_late = time.monotonic() > until_s and n_read + seen.n_bytes >= _LEAST_BYTES
                is_late = is_late and (n_rows > 0 or position > seen.n_raw)
                if is_late or (n_rows and rows >= n_rows):
                    break
                excerpt = _excerpt_of(stretch, alone)
                rows += excerpt.documents
                if n_rows:
                    excerpt.raw_bytes = n_stored * excerpt.documents // n_rows
                n_read, seen.n_raw = n_read + excerpt.raw_bytes, position
                if n_met % stride == 0:
                    kept.append(((start.record or 0) + rows, excerpt))
                    n_kept_bytes += excerpt.text_bytes
                while n_kept_bytes > most_bytes and len(kept) > 4:
                    kept, stride = kept[::2], stride * 2
                    n_kept_bytes = sum(excerpt.text_bytes for _, excerpt in kept)
                n_met += 1
            seen.n_bytes += min(n_read, n_stored) if n_rows else n_read
            if is_late:
                break
        seen.is_complete = not is_late
        seen.is_whole = seen.is_complete and stride == 1 and len(stretches) == 1
        if source.format == "parquet":
            seen.n_raw = (source.size_bytes or 0) * seen.n_bytes // max(1, sum(n_stored for *_, n_stored in stretches))
        for _, excerpt in kept:
            excerpt.chance, excerpt.text_bytes = 1 / stride, 0
        seen.excerpts = [excerpt for _, excerpt in sorted(kept, key=lambda each: each[0])]
        return seen

    def _read_group(self, inputs: Sequence[tuple[int, Input]], seen: dict[int, _Seen], input_format: str) -> _Sampled:
        of_format = {k: one for k, one in seen.items() if inputs[k][1].format == input_format}
        n_seen = sum(one.n_bytes for one in of_format.values())
        factor = n_seen / (sum(one.n_raw for one in of_format.values()) or 1)
        n_unseen = 0
        for k, (i, source) in enumerate(inputs):
            if source.format != input_format:
                continue
            size, one = source.size_bytes or 0, of_format.get(k)
            if one is None:
                rest = int(size * factor)
            else:
                rest = 0 if one.is_complete else int((size - one.n_raw) * one.n_bytes / max(1, one.n_raw))
            n_unseen += rest
            self._decompressed.append((i, rest + (one.n_bytes if one else 0), one is not None and one.is_complete))
        is_whole = not n_unseen and all(one.is_whole for one in of_format.values())
        group = Group(windows=[], seen_bytes=n_seen, unseen_bytes=n_unseen, is_whole=is_whole, is_stored=input_format == "parquet")
        return group, [excerpt for one in of_format.values() for excerpt in one.excerpts]

    # ---- encoding ----

    def _encode(self, excerpts: Sequence[Excerpt]) -> tuple[set[int], float | None]:
        """Count the tokens of the excerpts. Returns the identities of those encoded, and the engine's bytes a second."""
        encoder = load_encoder(self._content.tokenizer, self._request.job.resources.engine)
        # In random order, so that what is left out for lack of time is left out everywhere.
        order = random.Random(1).sample(excerpts, len(excerpts))  # noqa: S311  the same
        place = {id(excerpt): i for i, excerpt in enumerate(order)}
        rates: list[float] = []
        n_bytes = 0
        until_s = time.monotonic() + self._request.encode_s
        for chunk in _chunks(order):
            n_done = place[id(chunk[0][0])]
            if n_done >= _FEWEST and time.monotonic() > until_s:
                self._notices.append(f"the engine is slow here: {n_done:,} of {counted(len(order), 'window')} were encoded")
                order = order[:n_done]
                break
            texts = [self._valid(text) for _, text in chunk]
            lengths = list(map(len, texts))
            began_s = time.perf_counter()
            _, offsets = encoder.encode(texts)
            rates.append(sum(lengths) / max(time.perf_counter() - began_s, 1e-9))
            n_bytes += sum(lengths)
            for (excerpt, _), length, n_tokens in zip(chunk, lengths, np.diff(offsets).tolist(), strict=True):
                excerpt.text_bytes += length
                excerpt.tokens += n_tokens
        # The median of the second half: warmed up, and of no moment in which another program had the processor.
        rate = statistics.median(rates[len(rates) // 2 :]) if n_bytes >= _TIMED_BYTES else None
        return set(map(id, order)), rate

    def _valid(self, text: bytes) -> bytes:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            # Where a window cut a character, nothing is wrong; inside, the input is.
            self._n_invalid += 4 <= error.start < len(text) - 4
            policy = self._content.encoding_errors
            return clean(text, "ignore" if policy == "strict" else policy)[0]
        return text

    def _counted(self, group: Group, excerpts: Sequence[Excerpt], encoded: set[int]) -> Group:
        has_eot = self._content.eot != "none"
        found = [
            Window(e.chance, e.raw_bytes, e.text_bytes, e.tokens + e.n_eot * has_eot, e.documents)
            for e in excerpts
            if id(e) in encoded
        ]
        return msgspec.structs.replace(group, windows=found, is_whole=group.is_whole and len(found) == len(excerpts))

    # ---- notices ----

    def _note_unseen(self, inputs: Sequence[tuple[int, Input]], seen: dict[int, _Seen]) -> None:
        n_part = sum(not one.is_complete for one in seen.values())
        if n_part:
            part = "a part" if any(source.format == "parquet" for _, source in inputs) else "the beginning"
            self._notices.append(f"of {counted(n_part, 'file')} only {part} was read: the rest may be different")
        if len(seen) < len(inputs):
            self._notices.append(f"{len(seen):,} of {counted(len(inputs), 'file')} were read")

    def _note_bad(self, n_bad: int, n_windows: int) -> None:
        where = f"in {counted(n_windows, 'window')}"
        if n_bad:
            what = f"{counted(n_bad, 'bad record')} {where}, without a text where it should be"
            self._notices.append(f"{what}: {skip_policy_text(self._content)}")
        if self._n_invalid:
            what = f"{counted(self._n_invalid, 'piece of text', 'pieces of text')} {where} that UTF-8 does not allow"
            self._notices.append(f"{what}: {skip_policy_text(self._content, is_text=True)}")


def skip_policy_text(content: Content, *, is_text: bool = False) -> str:
    """Return what tokenize will do with bad records. is_text: with text that is not UTF-8."""
    if is_text and content.encoding_errors != "strict":
        return f"--encoding-errors {content.encoding_errors} will repair it"
    if content.on_error == "skip":
        return "tokenize will skip such documents, and count them"
    instead = "--encoding-errors replace repairs it" if is_text else "--on-error skip leaves such records out"
    return f"tokenize will stop at the first, and name it; {instead}"


def _size(sources: Iterable[Input]) -> int:
    return sum(source.size_bytes or 0 for source in sources)


def _resources() -> Resources:
    """Return what a reader of samples may use: small batches, which are windows."""
    return Resources(
        budget_bytes=256 * MIB,
        worker_bytes=256 * MIB,
        n_threads=1,
        batch_bytes=windows.PLACE_BYTES,
        in_flight_bytes=MIB,
        max_piece_bytes=64 * MIB,
        reset_above_bytes=256 * MIB,
    )


def _row_groups(source: Input, content: Content, whole_bytes: int) -> list[tuple[Cursor, int, int]]:
    """Return where to begin, the rows there and their stored bytes (both 0 where nobody knows), of the whole file.

    Of a Parquet file of more than `whole_bytes`: of each row group, in random order. Raises TokmillError.
    """
    if source.format != "parquet":
        return [(Cursor(), 0, 0)]
    from tokmill.read import stored_groups

    groups = [(Cursor(record=g.first), g.n_rows, g.stored_bytes) for g in stored_groups(source, content.text_key)]
    n_rows, n_stored = sum(n for _, n, _ in groups), sum(n for *_, n in groups)
    if n_stored <= whole_bytes:
        return [(Cursor(), n_rows, n_stored)]
    return random.Random(0).sample(groups, len(groups))  # noqa: S311  the same


def _stretches(batches: Iterator[Batch], input_format: str) -> Iterator[list[Batch]]:
    """Yield batches, those of one record together: what was read of it is counted in the last. Pieces of text count themselves."""
    stretch: list[Batch] = []
    for batch in batches:
        stretch.append(batch)
        if batch.after is not None or input_format == "text":
            yield stretch
            stretch = []


def _excerpt_of(stretch: Sequence[Batch], content: Content) -> Excerpt:
    found = Excerpt()
    for batch in stretch:
        texts = [text for text in batch.documents if text]
        found.texts += texts
        found.text_bytes += sum(map(len, texts))
        found.raw_bytes += batch.counts.bytes_in
        found.documents += batch.counts.documents
        found.n_eot += (len(batch.documents) if content.keep_empty else len(texts)) - batch.tail_open
        found.n_bad += sum(n for reason, n in batch.counts.skipped.items() if reason != OTHER_FILE)
    return found


def _excerpt(source: Input, begin: int, end: int, cut: Cut, reach: int) -> Excerpt:
    low, high = max(0, begin - reach), min(source.size_bytes or 0, end + reach)
    data = _read(source, low, high)
    excerpt = cut(View(data, begin - low, end - low, at_start=low == 0, at_end=high == source.size_bytes))
    excerpt.chance = float(end - begin)
    return excerpt


def _read(source: Input, begin: int, end: int) -> bytes:
    """Return bytes of a file. Raises DamagedInputError, ChangedError."""
    if source.is_remote:
        from tokmill.store import read_range

        return read_range(source, begin, end) if begin < end else b""
    try:
        with open(text_to_path(source.path), "rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    except OSError as error:
        raise DamagedInputError(
            f"cannot be read: {error.strerror or error}",
            where=source.path,
            allowed="a file that can be read from beginning to end",
            next_step="check the path and its permissions",
        ) from error


def _chunks(excerpts: Sequence[Excerpt]) -> Iterator[list[tuple[Excerpt, bytes]]]:
    """Yield all texts with their excerpts, about `_CHUNK_BYTES` at a time."""
    chunk: list[tuple[Excerpt, bytes]] = []
    n_bytes = 0
    for excerpt in excerpts:
        for text in excerpt.texts:
            chunk.append((excerpt, text))
            n_bytes += len(text)
            if n_bytes >= _CHUNK_BYTES:
                yield chunk
                chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def _answer(line: bytes) -> SampleResult:
    request = msgspec.json.decode(line, type=SampleRequest)
    register_urls(request.job.urls)
    return Sampler(request).answer()


if __name__ == "__main__":
    disable_awkward()
    serve_once(_answer)
