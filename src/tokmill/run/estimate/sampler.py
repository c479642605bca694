"""The process that encodes samples of a corpus: `python -m tokmill.run.estimate.sampler JOB_FD EVENT_FD`.

It is a process of its own so that the engine and its arrays never weigh on the process that was typed, and so that whatever the
engine does to it, nothing is lost.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.errors import DamagedInputError
from tokmill.core.records import text_to_path
from tokmill.core.system.process_child import Line, failed_event
from tokmill.core.text import counted
from tokmill.encode import cutter_of, disable_awkward, load_encoder
from tokmill.read import clean, open_stream
from tokmill.run.estimate.statistics import Answer, Group, Question, Window, of_all
from tokmill.run.estimate.survey import GRIDDED, is_gridded, survey_parquet, survey_rows
from tokmill.run.estimate.windows import PLACE_BYTES, Cut, Decoded, Excerpt, View, cut_of, reach_of, sample_stream, skip_policy_text
from tokmill.store import restore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.protocols import Encoder
    from tokmill.core.records import Input

_FEWEST = 16
_MOST = 2000
"""Windows of one group: small files make small windows, of which more are needed."""
_MOST_STREAMS = 64
"""Compressed files that are looked at."""
_MOST_ENDS = 64
"""Files whose ends are looked at, where not all of them are, to see whether they end with a separator."""
_MOST_REQUESTS = 48
"""Of ranges of remote objects, for windows; of ends, a third of that. Each is waited for."""
_CHUNK_BYTES = 256 << 10
"""Text that is encoded between two looks at the clock."""
_TIMED_BYTES = 1 << 20
"""Less text than this says nothing about speed."""
_SMALL_BYTES = 16 << 10
_TOGETHER_S = 0.3
_LARGE_ID = 256
"""Python keeps the ints from -5 to 256 ready-made."""


class Sampler:
    """Answers one question."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._content = question.content
        self._cutter = cutter_of(question.content.tokenizer)
        self._n_invalid = 0
        self._n_bad = 0
        self._notices: list[str] = []
        self._decompressed: list[tuple[int, int, bool]] = []
        self._with_ranges: dict[str, bool] = {}

    def answer(self) -> Answer:
        """Raises TokmillError: an input cannot be read, or the engine fails."""
        inputs = [(i, source) for i, source in enumerate(self._content.inputs) if source.size_bytes is not None]
        streams = {i for i, source in inputs if not is_gridded(source) or not self._has_places(source)}
        plain = [source for i, source in inputs if i not in streams]
        compressed = [(i, source) for i, source in inputs if i in streams]
        n_bytes = sum(source.size_bytes or 0 for _, source in inputs) or 1
        found: list[tuple[Group, list[Excerpt]]] = []
        for input_format in ("text", "jsonl"):
            files = [source for source in plain if source.format == input_format and source.size_bytes]
            if files:
                share = sum(source.size_bytes or 0 for source in files) / n_bytes
                found.append(self._plain(files, input_format, int(self._question.sample_bytes * share)))
        found += self._compressed(compressed)
        # A text file without a byte is an empty document all the same.
        n_empty = sum(source.format == "text" and not source.size_bytes for source in plain)
        n_eot = n_empty * self._content.keep_empty
        found.append((Group(windows=[], seen_bytes=0, is_whole=True, extra_documents=n_empty, extra_tokens=n_eot), []))
        excerpts = [excerpt for _, group in found for excerpt in group]
        for excerpt in excerpts:
            excerpt.texts = [self._valid(text) for text in excerpt.texts]
        windows, rate = self._encoded(excerpts)
        self._note_bad(len(excerpts))
        groups = [self._with_windows(group, [windows.get(id(e)) for e in of_group]) for group, of_group in found]
        return Answer(
            groups=groups,
            decompressed=sorted(self._decompressed),
            n_unknown=len(self._content.inputs) - len(inputs),
            engine_bytes_per_s=rate,
            notices=self._notices,
        )

    def _has_places(self, source: Input) -> bool:
        """Whether windows in the middle can be looked at; one object of a server speaks for all of it."""
        if not source.is_remote:
            return True
        from tokmill.store import serves_ranges

        host = source.path.split("/", 3)[2]
        if host not in self._with_ranges:
            self._with_ranges[host] = serves_ranges(source)
        return self._with_ranges[host]

    # ---- files as they are ----

    def _plain(self, files: Sequence[Input], input_format: str, n_bytes: int) -> tuple[Group, list[Excerpt]]:
        total = sum(source.size_bytes or 0 for source in files)
        is_whole = total <= n_bytes and not (_are_remote(files) and len(files) > _MOST_REQUESTS)
        n_open, error = self._ends(files, all_of_them=is_whole) if input_format == "text" else (0, 0)
        excerpts = self._all(files, input_format) if is_whole else self._drawn(files, input_format, n_bytes, total)
        n_documents = len(files) if input_format == "text" else 0
        group = Group(
            windows=[], seen_bytes=total, is_whole=is_whole, extra_documents=n_documents, extra_tokens=n_open, extra_error=error
        )
        return group, excerpts

    def _all(self, files: Sequence[Input], input_format: str) -> list[Excerpt]:
        cut = cut_of(self._content, input_format, self._cutter, reach_bytes=sys.maxsize)
        found = []
        for source in files:
            data = _read(source, 0, source.size_bytes or 0)
            found.append(cut(View(data, 0, len(data), at_start=True, at_end=True)))
        return found

    def _drawn(self, files: Sequence[Input], input_format: str, n_bytes: int, total: int) -> list[Excerpt]:
        """Windows drawn at random, one from each of equal stretches, with a chance proportional to their length."""
        ends = list(accumulate(source.size_bytes or 0 for source in files))
        n_places = sum(-(-(source.size_bytes or 0) // PLACE_BYTES) for source in files)
        n = max(_FEWEST, min(_MOST_REQUESTS if _are_remote(files) else _MOST, n_bytes * n_places // total))
        # The seed is fixed: the same corpus gives the same answer.
        rng = random.Random(0)  # noqa: S311  a sample, no secret
        cut, reach = cut_of(self._content, input_format, self._cutter), reach_of(input_format)
        found = []
        for k in range(n):
            at = min(int((k + rng.random()) * total / n), total - 1)
            i = bisect_right(ends, at)
            offset = at - (ends[i - 1] if i else 0)
            found.append(_window(files[i], offset - offset % PLACE_BYTES, cut, reach))
        return found

    def _ends(self, files: Sequence[Input], *, all_of_them: bool) -> tuple[int, int]:
        """How many files end in a document that is not empty, by a look at some of the ends, and how far off that may be."""
        most = len(files) if all_of_them else _MOST_REQUESTS // 3 if _are_remote(files) else _MOST_ENDS
        looked = files if most >= len(files) else random.Random(0).sample(files, most)  # noqa: S311  no secret
        separator = (self._content.separator or "").encode()
        n_open = 0
        for source in looked:
            size = source.size_bytes or 0
            n_open += self._is_open(_read(source, max(0, size - len(separator)), size), separator)
        return of_all(n_open, len(looked), len(files))

    def _is_open(self, tail: bytes, separator: bytes) -> bool:
        return self._content.keep_empty or not separator or not tail.endswith(separator)

    # ---- compressed files ----

    def _compressed(self, inputs: Sequence[tuple[int, Input]]) -> list[tuple[Group, list[Excerpt]]]:
        if not inputs:
            return []
        looked = sorted(random.Random(0).sample(range(len(inputs)), min(len(inputs), _MOST_STREAMS)))  # noqa: S311  likewise
        most = max(4, self._question.sample_bytes // PLACE_BYTES // len(looked))
        decoded: dict[int, Decoded] = {}
        until_s = time.monotonic() + self._question.decode_s
        for n_done, k in enumerate(looked):
            source = inputs[k][1]
            now = time.monotonic()
            share_s = max(0.0, until_s - now) / (len(looked) - n_done)
            decoded[k] = self._decode(source, now + share_s, most)
        self._note_unseen(inputs, decoded)
        by_format: dict[str, dict[int, Decoded]] = {}
        for k, one in decoded.items():
            by_format.setdefault(inputs[k][1].format, {})[k] = one
        return [self._decoded_group(inputs, of_format, name) for name, of_format in by_format.items()]

    def _decode(self, source: Input, until_s: float, most: int) -> Decoded:
        if source.format not in GRIDDED:
            survey = survey_parquet if source.format == "parquet" else survey_rows
            return survey(source, self._content, until_s=until_s, most=most)
        stream = open_stream(source)
        try:
            cut = cut_of(self._content, source.format, self._cutter)
            return sample_stream(stream, cut, reach_of(source.format), until_s=until_s, most=most)
        finally:
            stream.close()

    def _decoded_group(
        self, inputs: Sequence[tuple[int, Input]], decoded: dict[int, Decoded], input_format: str
    ) -> tuple[Group, list[Excerpt]]:
        seen = sum(one.n_bytes for one in decoded.values())
        factor = seen / (sum(one.n_raw for one in decoded.values()) or 1)
        unseen, n_files = 0, 0
        for k, (i, source) in enumerate(inputs):
            if source.format != input_format:
                continue
            n_files += 1
            one = decoded.get(k)
            rest = _rest(source.size_bytes or 0, one, factor)
            unseen += rest
            self._decompressed.append((i, rest + (one.n_bytes if one else 0), one is not None and one.is_complete))
        separator = (self._content.separator or "").encode()
        n_open = sum(self._is_open(one.tail, separator) for one in decoded.values() if one.n_bytes)
        is_text = input_format == "text"
        n_open, error = of_all(n_open, len(decoded), n_files)
        excerpts = [excerpt for one in decoded.values() for excerpt in one.excerpts]
        whole = not unseen and all(one.is_whole for one in decoded.values()) and not any(e.n_parts for e in excerpts)
        group = Group(
            windows=[],
            seen_bytes=seen,
            unseen_bytes=unseen,
            is_whole=whole,
            extra_documents=n_files * is_text,
            extra_tokens=n_open * is_text,
            extra_error=error * is_text,
            is_stored=input_format == "parquet",
        )
        return group, excerpts

    def _note_unseen(self, inputs: Sequence[tuple[int, Input]], decoded: dict[int, Decoded]) -> None:
        n_part = sum(not one.is_complete for one in decoded.values())
        kind = "packed file" if not any(is_gridded(source) for _, source in inputs) else "file"
        if n_part:
            part = "a part" if any(source.format == "parquet" for _, source in inputs) else "the beginning"
            self._notices.append(f"of {counted(n_part, kind)} only {part} was read: the rest may be different")
        if len(decoded) < len(inputs):
            self._notices.append(f"{len(decoded):,} of {counted(len(inputs), kind)} were read")

    # ---- encoding ----

    def _encoded(self, excerpts: Sequence[Excerpt]) -> tuple[dict[int, Window], float | None]:
        """Windows by the identity of their excerpt, and the engine's speed once it has seen half of the text."""
        encoder = load_encoder(self._content.tokenizer, self._question.engine)
        # In an order that is even at any moment, so that what is left out for lack of time is left out everywhere.
        order = list(excerpts)
        random.Random(1).shuffle(order)  # noqa: S311  likewise
        windows: dict[int, Window] = {}
        timings: list[tuple[int, float]] = []
        until_s = time.monotonic() + self._question.encode_s
        for excerpt in order:
            if time.monotonic() > until_s and len(windows) >= _FEWEST:
                self._notices.append(f"the engine is slow here: {len(windows):,} of {counted(len(order), 'window')} were encoded")
                break
            windows[id(excerpt)] = self._window(excerpt, encoder, timings)
        if timings and sum(n for n, _ in timings) < _SMALL_BYTES * len(timings):
            # A call for every little window says what calls cost; a run encodes such documents many at a time.
            timings = self._timed_together(order, encoder)
        return windows, _rate(timings)

    def _timed_together(self, excerpts: Sequence[Excerpt], encoder: Encoder) -> list[tuple[int, float]]:
        timings: list[tuple[int, float]] = []
        until_s = time.monotonic() + _TOGETHER_S
        for texts in _chunks([text for excerpt in excerpts for text in excerpt.texts]):
            began_s = time.perf_counter()
            encoder.encode(texts)
            timings.append((sum(map(len, texts)), time.perf_counter() - began_s))
            if time.monotonic() > until_s:
                break
        return timings

    def _window(self, excerpt: Excerpt, encoder: Encoder, timings: list[tuple[int, float]]) -> Window:
        content = self._content
        n_text = n_tokens = n_large = 0
        for texts in _chunks(excerpt.texts):
            n_bytes = sum(map(len, texts))
            began_s = time.perf_counter()
            ids, _ = encoder.encode(texts)
            timings.append((n_bytes, time.perf_counter() - began_s))
            n_text += n_bytes
            n_tokens += len(ids)
            n_large += int(np.count_nonzero(ids > _LARGE_ID))
        self._n_bad += excerpt.n_bad
        n_eot = excerpt.n_eot if content.eot != "none" else 0
        return Window(excerpt.chance, excerpt.raw_bytes, n_text, n_tokens + n_eot, excerpt.documents, n_large)

    def _valid(self, text: bytes) -> bytes:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            # Where the grid cut a character, nothing is wrong; inside, somebody wrote it.
            self._n_invalid += 4 <= error.start < len(text) - 4
            policy = self._content.encoding_errors
            return clean(text, "ignore" if policy == "strict" else policy)[0]
        return text

    def _with_windows(self, group: Group, windows: Sequence[Window | None]) -> Group:
        encoded = [window for window in windows if window is not None]
        extra = group.extra_tokens if self._content.eot != "none" else 0
        is_whole = group.is_whole and len(encoded) == len(windows)
        return msgspec.structs.replace(group, windows=encoded, extra_tokens=extra, is_whole=is_whole)

    def _note_bad(self, n_windows: int) -> None:
        windows = counted(n_windows, "window")
        if self._n_bad:
            what = f"{counted(self._n_bad, 'bad record')} in {windows}, without a text where it should be"
            self._notices.append(f"{what}: {skip_policy_text(self._content)}")
        if self._n_invalid:
            what = f"{counted(self._n_invalid, 'piece of text', 'pieces of text')} in {windows} that UTF-8 does not allow"
            self._notices.append(f"{what}: {skip_policy_text(self._content, text=True)}")


def _are_remote(files: Sequence[Input]) -> bool:
    return any(source.is_remote for source in files)


def _rest(size: int, seen: Decoded | None, factor: float) -> int:
    """Decompressed bytes, about, of what was not read of a file. factor: decompressed by compressed, of all that was read."""
    if seen is None:
        return int(size * factor)
    return 0 if seen.is_complete else int((size - seen.n_raw) * seen.n_bytes / max(1, seen.n_raw))


def _window(source: Input, place: int, cut: Cut, reach: int) -> Excerpt:
    size = source.size_bytes or 0
    end = min(place + PLACE_BYTES, size)
    begin, stop = max(0, place - reach), min(size, end + reach)
    excerpt = cut(View(_read(source, begin, stop), place - begin, end - begin, at_start=begin == 0, at_end=stop == size))
    excerpt.chance = float(end - place)
    return excerpt


def _read(source: Input, begin: int, end: int) -> bytes:
    """Bytes of a file. Raises DamagedInputError, ChangedError."""
    if source.is_remote:
        from tokmill.store import read_range

        return read_range(source, begin, end) if begin < end else b""
    parts = []
    try:
        fd = os.open(text_to_path(source.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            while begin < end and (part := os.pread(fd, end - begin, begin)):
                parts.append(part)
                begin += len(part)
        finally:
            os.close(fd)
    except OSError as error:
        raise DamagedInputError(
            f"cannot be read: {error.strerror or error}",
            where=source.path,
            allowed="a file that can be read from beginning to end",
            next_step="mend the permissions or the path",
        ) from error
    return b"".join(parts)


def _chunks(texts: Sequence[bytes]) -> list[list[bytes]]:
    chunks: list[list[bytes]] = []
    size = _CHUNK_BYTES
    for text in texts:
        if size >= _CHUNK_BYTES:
            chunks.append([])
            size = 0
        if text:
            chunks[-1].append(text)
            size += len(text)
    return [chunk for chunk in chunks if chunk]


def _rate(timings: Sequence[tuple[int, float]]) -> float | None:
    """Bytes a second: the median of the second half, so that a moment in which somebody else had the processor does not count."""
    if sum(n for n, _ in timings) < _TIMED_BYTES:
        return None
    return statistics.median(n / took_s for n, took_s in timings[len(timings) // 2 :] if took_s > 0)


def main(job_fd: int, event_fd: int) -> None:
    """Entry point of the process."""
    disable_awkward()
    line = Line(job_fd, event_fd)
    question = msgspec.json.decode(line.question(), type=Question)
    restore(question.urls)
    line.watch(lambda: os._exit(1))
    try:
        line.emit(Sampler(question).answer())
    except BaseException as error:  # noqa: BLE001  the parent is told of whatever it is, panics of engines too
        line.emit(failed_event(error))
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
