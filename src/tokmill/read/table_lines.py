"""The bytes of a table as text: where its rows end, and the fields of each as Python's csv module sees them.

Two ways find the same rows. Where every quote that opens stands at the beginning of a field and every one that closes at the end,
newlines and delimiters behind an even number of quotes end rows and fields: numpy finds all of a window at once, and where rows are
short and nothing is wrong with them moves their texts into one buffer (0.2 microseconds a row; 1.9 one by one). Elsewhere the csv
module is given line after line until it has a row. The hard one is a quote that is never closed: it must cost one row, so a row
that the module refuses is refused at its first line alone, and the next line begins a row. What was followed in vain is not
followed again: at the beginning of each of those lines the module was inside of a quote, so a row that reaches one of them inside
of a quote goes on where the first one failed.

A carriage return without a newline behind it is a character like any other, as Python's own writer leaves it without quotes; the
module would end a line there, so it is handed another character, which no text has.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.documents import NO_BYTE, DocumentBuffer
from tokmill.read.utf8 import first_invalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.protocols import ByteStream

_READ_BYTES = 1 << 20
_MOST_WINDOW_BYTES = 1 << 20
"""A row that does not end in so many bytes is left to the csv module: the places of newlines take 8 times as much at worst."""
_SHORT_BYTES = 512
"""Rows that are no longer than this on average are taken together; of longer ones the texts are sliced one by one."""
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_BOM = b"\xef\xbb\xbf"
_BARE_RETURN = re.compile("\r(?=[^\n])")
_HIDDEN = "\ud800"
"""In place of a bare carriage return: half of a surrogate pair, and none of those that stand for a byte that is not UTF-8."""


class TooLongError(csv.Error):
    """A row is longer than is allowed."""

    def __init__(self) -> None:
        super().__init__("the row is too long; perhaps a quote is never closed")


class TableLines:
    """The rows of one stream, from where it is, by the csv module alone. Places are bytes of the stream."""

    def __init__(self, stream: ByteStream, delimiter: str, most: int, *, keeps_returns: bool = True) -> None:
        """most: bytes of a row; keeps_returns: a bare carriage return is a character, and no fault."""
        if csv.field_size_limit() < sys.maxsize:
            # Of the whole process; rows are bounded here.
            csv.field_size_limit(sys.maxsize)
        self.begin = self.end = stream.offset
        """Of the row at hand; `begin`, when it is consumed, of the next."""
        self.is_valid = True
        """The row at hand is UTF-8; else, bytes that are not are surrogates."""
        self._stream = stream
        self._delimiter = delimiter
        self._most = most
        self._keeps_returns = keeps_returns
        self._data = b""
        self._base = stream.offset
        """Where `_data` begins."""
        self._ended = False
        self._first_end = self._last_begin = stream.offset
        """Of the row at hand: the end of its first line, and where its last line begins."""
        self._quoted_to = 0
        """A row was followed in vain up to the line that begins here: all its lines but the first begin inside of its quote."""
        self._has_jumped = False
        self._reader = csv.reader(_Feed(self), delimiter=delimiter, strict=True)

    @property
    def at_end(self) -> bool:
        """Nothing follows, as far as is known."""
        return self._ended and self.begin == self._base + len(self._data)

    def consume(self) -> memoryview:
        """The bytes of the row at hand; what comes next is another row."""
        taken = memoryview(self._data)[self.begin - self._base : self.end - self._base]
        self.begin = self.end
        return taken

    def next_row(self) -> list[str] | csv.Error | None:
        """The fields of the next row, none where the line is empty; or what is wrong, the row's first line then being at hand.

        None: there is nothing more. The one before is to be consumed first.
        """
        try:
            fields = self._followed()
            if self._has_jumped:
                # The row is whole after all, and what was passed over belongs to it.
                self._quoted_to = 0
                fields = self._followed()
        except StopIteration:
            return None
        except csv.Error as error:
            is_open = self._ended and self._last_begin == self.end == self._base + len(self._data)
            self._quoted_to = max(self._quoted_to, self._last_begin)
            self.end = self._first_end
            return csv.Error("a quote is opened and never closed") if is_open else error
        return fields

    def next_line(self) -> str:
        """The next line of the row at hand, for the csv module. Raises StopIteration, TooLongError."""
        is_first = not self._first_end
        if not is_first and self.end < self._quoted_to:
            self.end, self._has_jumped = self._quoted_to, True
        self._last_begin = self.end
        end = self._line_end(self.end)
        if end == self.end:
            raise StopIteration
        if is_first:
            self._first_end = end
        if end - self.begin > self._most:
            raise TooLongError
        line = self._data[self.end - self._base : end - self._base]
        if not self.end:
            line = line.removeprefix(_BOM)
        self.end = end
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self.is_valid, text = False, line.decode("utf-8", "surrogateescape")
        return _BARE_RETURN.sub(_HIDDEN, text) if self._keeps_returns and "\r" in text else text

    def _followed(self) -> list[str]:
        self.end, self._first_end = self.begin, 0
        self.is_valid, self._has_jumped = True, False
        return next(self._reader)

    def _line_end(self, begin: int) -> int:
        """Behind the newline of a line; if there is none, where the stream ends, or what is read is more than a row may be."""
        searched = begin
        while True:
            at = self._data.find(b"\n", searched - self._base)
            if at >= 0:
                return self._base + at + 1
            searched = self._base + len(self._data)
            if self._ended or searched - self.begin > self._most:
                return searched
            self._fill()

    def _fill(self) -> None:
        held = self._data[self.begin - self._base :]
        data = self._stream.read(_READ_BYTES)
        self._ended = not data
        self._data, self._base = held + data, self.begin


class _Feed(Iterator[str]):
    """Gives the csv module the lines of a row, one by one."""

    def __init__(self, lines: TableLines) -> None:
        self._lines = lines

    def __next__(self) -> str:
        return self._lines.next_line()


class WrongFieldsError(csv.Error):
    """A row has too few fields, or too many."""

    def __init__(self, n_fields: int) -> None:
        super().__init__()
        self.n_fields = n_fields


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that stand one behind the other, with all of which nothing is wrong; empty lines may lie between."""

    documents: DocumentBuffer
    """What stands in the column: UTF-8, quotes undone."""
    begins: NDArray[np.int64]
    """Of each row, from the beginning of the block: int64, shape (n_rows,)."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Of each row of a window, bytes of the window: int64, shape (n_rows,)."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    n_fields: NDArray[np.int64]
    """0: the line is empty."""
    text_begins: NDArray[np.int64]
    """Of the text's field, quotes included; of use where the number of fields is right."""
    text_ends: NDArray[np.int64]

    def part(self, rows: slice) -> _Places:
        """Of some of the rows."""
        return _Places(*(getattr(self, name)[rows] for name in self.__slots__))


class TableTexts(TableLines):
    """What stands in one column, row by row or many rows at once, each to be consumed before the next.

    None of an empty line; an error of a row with which something is wrong: if the csv module refused it, its first line is at hand.
    """

    def __init__(
        self,
        stream: ByteStream,
        delimiter: str,
        most: int,
        *,
        column: int,
        n_columns: int,
        block_bytes: int,
        block_rows: int,
    ) -> None:
        """column: its index; block_bytes, block_rows: what a block has at most."""
        super().__init__(stream, delimiter, most)
        self._column = column
        self._n_columns = n_columns
        self._block_bytes = block_bytes
        self._block_rows = block_rows
        self._careful_to = stream.offset
        """Up to here a look at the quotes alone does not say where rows end."""

    def regular(self) -> Iterator[Block | bytes | csv.Error | None]:
        """Of the next rows, as long as the quotes alone say where they end. There may be none."""
        window, ends = self._regular_ends()
        if not len(ends):
            return
        base = self.begin
        part = self._data[base - self._base : base - self._base + int(ends[-1])]
        self.is_valid = first_invalid(part) is None
        places = self._places(window[: len(part)], ends)
        n_plain = self._n_plain(places)
        for rows in self._block_edges(places.ends[:n_plain]):
            self.end = base + int(places.ends[rows.stop - 1])
            yield _block(np.frombuffer(part, np.uint8), places.part(rows))
        left = places.part(slice(n_plain, None))
        for end, n_fields, a, b in zip(
            left.ends.tolist(), left.n_fields.tolist(), left.text_begins.tolist(), left.text_ends.tolist(), strict=True
        ):
            self.end = base + end
            if n_fields == self._n_columns:
                text = part[a:b]
                yield text[1:-1].replace(b'""', b'"') if text.startswith(b'"') else text
            else:
                yield WrongFieldsError(n_fields) if n_fields else None

    def _n_plain(self, places: _Places) -> int:
        """How many rows at the beginning may be taken together: as many as nothing is wrong with, if they are short."""
        if not self.is_valid:
            return 0
        is_odd = (places.n_fields != self._n_columns) & (places.n_fields > 0)
        is_odd |= places.ends - places.begins > self._block_bytes
        odd = np.flatnonzero(is_odd)
        n = int(odd[0]) if len(odd) else len(is_odd)
        return n if n and int(places.ends[n - 1]) <= n * _SHORT_BYTES else 0

    def _block_edges(self, ends: NDArray[np.int64]) -> Iterator[slice]:
        """Rows, as many in each slice as a block may have."""
        at = 0
        while at < len(ends):
            begin = int(ends[at - 1]) if at else 0
            stop = min(at + self._block_rows, int(np.searchsorted(ends, begin + self._block_bytes, "right")))
            yield slice(at, stop)
            at = stop

    def careful(self) -> Iterator[bytes | csv.Error | None]:
        """Of the rows that `regular` left."""
        while self.begin < self._careful_to:
            fields = self.next_row()
            if fields is None:
                break
            if isinstance(fields, csv.Error):
                yield fields
            elif len(fields) == self._n_columns:
                yield fields[self._column].replace(_HIDDEN, "\r").encode("utf-8", "surrogateescape")
            else:
                yield WrongFieldsError(len(fields)) if fields else None

    def _regular_ends(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """A window from `begin` on, and where rows end in it that the quotes tell apart; one at least, if that is to be had."""
        while True:
            at = self.begin - self._base
            window = np.frombuffer(self._data, np.uint8)[at : at + _MOST_WINDOW_BYTES]
            ends, is_all = _ends(window, ord(self._delimiter), self._most)
            if len(ends) or not is_all or self._ended or len(window) == _MOST_WINDOW_BYTES:
                break
            self._fill()
        self._careful_to = self.begin if is_all and len(ends) else self.begin + len(window)
        return window, ends

    def _places(self, window: NDArray[np.uint8], ends: NDArray[np.int64]) -> _Places:
        delimiters = _outside(np.flatnonzero(window == ord(self._delimiter)), np.flatnonzero(window == _QUOTE))
        begins = np.concatenate(([0], ends[:-1]))
        behind = ends - 1 - (window[ends - 2] == _RETURN)
        # In front of the first line there is nothing.
        behind = np.maximum(behind, begins)
        firsts = np.searchsorted(delimiters, begins)
        n_fields = np.append(firsts[1:], len(delimiters)) - firsts + 1
        n_fields[behind == begins] = 0
        # A row with too few fields looks at delimiters of others, and there must be some: its text is not used.
        padded = np.concatenate((delimiters, np.full(self._n_columns, len(window))))
        texts_begin = padded[firsts + self._column - 1] + 1 if self._column else begins
        texts_end = padded[firsts + self._column] if self._column < self._n_columns - 1 else behind
        return _Places(begins, ends, n_fields, texts_begin, texts_end)


def _block(window: NDArray[np.uint8], places: _Places) -> Block:
    """The texts of rows, the bytes of which are moved together all at once; the one behind each becomes what separates them."""
    begin, end = int(places.begins[0]), int(places.ends[-1])
    window, is_row = window[begin:end], places.n_fields > 0
    starts, ends = places.text_begins[is_row] - begin, places.text_ends[is_row] - begin
    is_quoted = window[starts] == _QUOTE
    starts += is_quoted
    ends -= is_quoted
    edges = np.zeros(len(window) + 1, np.int8)
    edges[starts] = 1
    edges[ends + 1] -= 1
    is_kept = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
    lengths = ends - starts
    if is_quoted.any():
        # Of the quotes inside of a field, each second one; those that open a field stand in front of what is kept.
        second = np.flatnonzero(window == _QUOTE)[::2]
        second = second[is_kept[second]]
        is_kept[second] = False
        lengths -= np.searchsorted(second, ends) - np.searchsorted(second, starts)
    data = window[is_kept]
    text_ends = np.cumsum(lengths + 1) - 1
    data[text_ends] = NO_BYTE[0]
    return Block(DocumentBuffer(data.tobytes(), text_ends - lengths, text_ends, NO_BYTE), places.begins[is_row] - begin)


def _ends(window: NDArray[np.uint8], delimiter: int, most: int) -> tuple[NDArray[np.int64], bool]:
    """Where rows end, ascending, as far as the quotes say it for certain; whether that is as far as the window goes."""
    quotes, newlines = np.flatnonzero(window == _QUOTE), np.flatnonzero(window == _NEWLINE)
    odd = []
    if len(quotes):
        newlines = _outside(newlines, quotes)
        opening = quotes[::2]
        before = window[opening - 1]
        if not opening[0]:
            before[0] = _NEWLINE
        # Behind another quote: two that stand for one.
        odd = opening[(before != delimiter) & (before != _NEWLINE) & (before != _QUOTE)][:1].tolist()
    if len(quotes) and len(newlines):
        closing = quotes[1 : np.searchsorted(quotes, newlines[-1]) : 2]
        after = window[closing + 1]
        fits = (after == delimiter) | (after == _NEWLINE) | (after == _QUOTE)
        unfit = closing[~fits]
        unfit = unfit[(window[unfit + 1] != _RETURN) | (window[np.minimum(unfit + 2, len(window) - 1)] != _NEWLINE)]
        odd += unfit[:1].tolist()
    if odd:
        newlines = newlines[: np.searchsorted(newlines, min(odd))]
    ends = newlines + 1
    long = np.flatnonzero(np.diff(ends, prepend=0) > most)
    return (ends[: long[0]], False) if len(long) else (ends, not odd)


def _outside(places: NDArray[np.int64], quotes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those places that have an even number of quotes before them."""
    is_outside: NDArray[np.bool_] = np.searchsorted(quotes, places) & 1 == 0
    return places[is_outside]
