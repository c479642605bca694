"""Where the end of a text begins that `--val-tail` keeps for validation: it divides no character and, where it can, no line.

A cut near the byte that was asked for is looked for, in this order: where a document begins, where a line does, and there. A cut
within a document makes two documents of it.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tokmill.core.config import ValTail
from tokmill.core.errors import UsageError
from tokmill.core.text import counted
from tokmill.read.input_range import FAR, InputRange, first_start
from tokmill.read.stream import open_stream, read_fully

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import Cursor, Input

_REACH_BYTES = 1 << 20
_SHARE = 10
"""The validation side may get shorter by a tenth, so that no document or line is cut."""
_MOST_CHARACTER_BYTES = 4


def find_tail(inputs: Sequence[Input], separator: str | None, n_bytes: int, share: float, *, is_exact: bool) -> ValTail:
    """Return where the end of the only input begins.

    n_bytes: of the end; 0: `share` of the text. is_exact: the end is no shorter, though it begin within a line. Raises UsageError
    if there is not one plain text, DamagedInputError, ChangedError.
    """
    source = inputs[0]
    size = source.size_bytes
    if len(inputs) > 1 or source.format != "text" or source.compression != "none" or source.encoding or size is None:
        raise UsageError(
            f"--val-tail takes the end of one plain text, {_what(inputs)}",
            where=source.path,
            option="--val-tail",
            allowed="one text file in UTF-8 that is not compressed",
            next_step="use --val-fraction, --val-tokens or --val-input; or write it in UTF-8 first, without compression",
        )
    wanted = n_bytes or max(1, int(share * size))
    if wanted >= size:
        raise UsageError(
            f"nothing would be left for training: the text has {counted(size, 'byte')}",
            where=source.path,
            option="--val-tail",
            allowed="less than all of it",
            suggested="10%",
        )
    tail = _cut(source, (separator or "").encode(), size - wanted, 0 if is_exact else min(_REACH_BYTES, wanted // _SHARE))
    if tail.begin >= size:
        raise UsageError(
            f"the last {counted(wanted, 'byte')} of the text have no place where it may be cut",
            where=source.path,
            option="--val-tail",
            allowed="a cut that divides neither a character nor a separator",
            suggested="10%",
            next_step="take more of it",
        )
    return tail


def _what(inputs: Sequence[Input]) -> str:
    """Return what was given instead of one plain text."""
    source = inputs[0]
    if len(inputs) > 1:
        return f"and {counted(len(inputs), 'input')} were given"
    if source.size_bytes is None:
        return "and a pipe ends nobody knows where"
    if source.encoding:
        return f"and this is in {source.encoding}, not in UTF-8"
    return f"and this is {source.format}" + (f", packed as {source.compression}" if source.compression != "none" else "")


def _cut(source: Input, separator: bytes, at: int, reach: int) -> ValTail:
    """Return the cut at byte `at` or up to `reach` bytes after it, or where there is none, the next that can be."""
    size, n_after = source.size_bytes or 0, len(separator) + _MOST_CHARACTER_BYTES
    start = first_start(source, separator, at, at + reach + n_after) if separator else None
    if start is None or start == FAR or start >= size:
        start = size
    if start <= at + reach:
        return ValTail(begin=start, is_document=True)
    n_before = max(0, at - max(len(separator), 1))
    with closing(open_stream(source)) as stream:
        stream.skip(n_before)
        data = read_fully(stream, at - n_before + reach + n_after)
    first = at - n_before
    lines = _line_starts(data, first, first + reach)
    found = next((n_before + place for place in lines if not _is_within(data, separator, place)), size)
    if found == size:
        found = n_before + next(place for place in range(first, len(data) + 1) if _is_between(data, separator, place))
    return ValTail(begin=start, is_document=True) if start <= found < size else ValTail(begin=found)


def _line_starts(data: bytes, first: int, last: int) -> list[int]:
    """Return where lines begin, from `first` to `last`."""
    found, place = [], data.find(b"\n", max(0, first - 1), last)
    while place >= 0:
        found.append(place + 1)
        place = data.find(b"\n", place + 1, last)
    return found


def _is_within(data: bytes, separator: bytes, place: int) -> bool:
    """Return whether a separator may lie on both sides of a place."""
    return any(data.startswith(separator, place - k) for k in range(1, min(len(separator), place + 1)))


def _is_between(data: bytes, separator: bytes, place: int) -> bool:
    """Return whether neither a character nor a separator lies on both sides of a place."""
    is_character = place == len(data) or data[place] & 0xC0 != 0x80
    return is_character and not _is_within(data, separator, place)


def divided(wanted: InputRange, tail: ValTail, separator_bytes: int) -> tuple[InputRange | None, InputRange | None]:
    """Return what a range has before the end of the text and of it; None: nothing."""
    at, begin, end = tail.begin, wanted.begin, wanted.end
    if begin.offset >= at:
        return None, wanted
    if end.offset and end.offset <= at:
        return wanted, None
    place = replace(begin, offset=at)
    head = replace(wanted, end=place, separator_bytes=separator_bytes if tail.is_document else 0)
    return head, replace(wanted, begin=place, begin_byte=at)


def goes_on(head: InputRange, tail: ValTail, after: Cursor) -> bool:
    """Return whether a range that was read up to the end of the text goes on in it: not if a long document ended the range."""
    return not head.is_reached(after) or (after.offset == tail.begin and not tail.is_document)
