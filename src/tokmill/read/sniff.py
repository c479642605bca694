"""Text that is JSON lines without being called so: found by its first line, and reported instead of read as text in silence.

Where neither a suffix nor --input-format says what an input is, it is taken for text. If its first line that is not blank is a JSON
object, that is almost certainly wrong, and a person must say which it is: if it were read as JSON lines unasked, the bytes of the
output would depend on the first line of a corpus. Of a pipe nothing may be lost: what was looked at is read again.
"""

from __future__ import annotations

import json
import re
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import ChangedError, TokmillError, UsageError
from tokmill.core.options import PlanOptions
from tokmill.core.records import STDIN
from tokmill.core.text import counted
from tokmill.read.inputs import is_guess
from tokmill.read.seekable import open_seekable
from tokmill.read.stream import POINTER_BYTES, PeekedStream, open_stream
from tokmill.read.utf8 import json_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Input

LOOK_BYTES = 256 << 10
"""The most that is read to find the end of the first line."""
_FIRST_BYTES = 4 << 10
_MOST_FILES = 256
"""Files that are looked at, evenly: opening a hundred thousand would be a run of its own."""
_MOST_REMOTE = 16
"""Remote objects that are looked at; each takes a request."""
_BOM = b"\xef\xbb\xbf"
_BEGINNING = re.compile(rb'\{\s*"')
_ARRAY = re.compile(rb"\[\s*(?:\{\s*)?")
"""What may turn out to be the beginning of an array of objects."""


def first_line(stream: PeekedStream) -> tuple[bytes, bool]:
    """Return the first line that is not blank, without a byte order mark, and whether that is all of it.

    Nothing is read after a line that begins neither with a brace nor like an array. Raises DamagedInputError, ChangedError.
    """
    ended = False
    while True:
        head = stream.peeked
        text = head.removeprefix(_BOM).lstrip()
        line, newline, _ = text.partition(b"\n")
        if _ARRAY.fullmatch(line):
            # An array of which each element has lines of its own.
            line, newline = text, b""
        is_open = not newline and (not line or line.startswith(b"{") or _BOM.startswith(head) or _ARRAY.fullmatch(line))
        if not is_open or ended or len(head) >= LOOK_BYTES:
            return line, bool(newline) or ended
        ended = not stream.peek(max(_FIRST_BYTES, len(head)))


def check_pipe(stream: ByteStream, source: Input, text_key: str) -> ByteStream:
    """Return the stream of an input without a size, still at its beginning. Raises UsageError for JSON lines."""
    if source.format != "text" or not is_guess(source):
        return stream
    peeked = PeekedStream(stream)
    _check_guess(source, *first_line(peeked), text_key)
    return peeked


def check_files(inputs: Sequence[Input], text_key: str) -> list[str]:
    """Look at files that will be read as text. One that cannot be read is left to the run.

    Args:
        inputs: all inputs of the run.
        text_key: --text-key.

    Returns:
        Notices of those whose suffix says text and whose content does not.

    Raises:
        UsageError: JSON lines whose suffix says nothing.
    """
    for source in _some([source for source in inputs if 0 < (source.size_bytes or 0) < POINTER_BYTES and not source.is_remote]):
        with suppress(ChangedError), closing(open_seekable(source)):
            # Opening looks whether it is a pointer of Git LFS: to be said now, not when the run comes to it.
            pass
    files = [source for source in inputs if source.format == "text" and source.size_bytes]
    for source in _some([source for source in files if is_guess(source)]):
        _check_guess(source, *_first_line(source), text_key)
    looked = _some([source for source in files if not is_guess(source)])
    lines = [(source, *_first_line(source)) for source in looked]
    found = [source for source, line, is_whole in lines if _has_key(line, is_whole, text_key)]
    notices = []
    if found:
        others = f" (and {counted(len(found) - 1, 'other')} of {len(looked):,} looked at)" if len(found) > 1 else ""
        notices.append(
            f"{found[0].path}{others} is read as text, but its first line is a JSON object with the key "
            f"{json.dumps(text_key)}: if it is JSON lines, run again with --fresh --input-format jsonl"
        )
    array = next((source.path for source, line, _ in lines if json_array(line)), None)
    if array:
        notices.append(f"{array} is read as text, but it is a JSON array, whose elements become lines by jq -c '.[]'")
    if text_key != PlanOptions.text_key and all(source.format == "text" for source in inputs):
        notices.append("--text-key is for JSON lines, but every input will be read as text: is --input-format jsonl missing?")
    return notices


def keys_of(source: Input) -> list[str]:
    """Return the keys of the JSON object in the first line of a file.

    Args:
        source: the file.

    Returns:
        The keys, sorted; none if there is no such object or it cannot be read.
    """
    return sorted(_keys(_first_line(source)[0]) or ()) if source.size_bytes else []


def is_json_lines(line: bytes, is_whole: bool, text_key: str) -> bool:  # noqa: FBT001  as `first_line` returns it
    """Return whether a first line is that of JSON lines: a JSON object; or a line that begins like one and is too long to be read
    whole, or begins like one where --text-key was given.
    """
    if _keys(line) is not None:
        return True
    return (not is_whole or text_key != PlanOptions.text_key) and _BEGINNING.match(line) is not None


def _check_guess(source: Input, line: bytes, is_whole: bool, text_key: str) -> None:  # noqa: FBT001  as `first_line` returns it
    """Raise UsageError if what will be read as text, because nothing says what it is, begins as JSON lines or a JSON array."""
    if is_json_lines(line, is_whole, text_key):
        raise _not_text(source)
    if found := json_array(line, source.compression):
        raise _not_text(source, *found)


def _has_key(line: bytes, is_whole: bool, text_key: str) -> bool:  # noqa: FBT001  as above
    """Return whether a first line is a JSON object with that key, as far as can be seen."""
    if is_whole:
        return text_key in (_keys(line) or ())
    return _BEGINNING.match(line) is not None and re.search(re.escape(json.dumps(text_key).encode()) + rb"\s*:", line) is not None


def _keys(line: bytes) -> set[str] | None:
    """Return the keys of a JSON object; None for anything else."""
    if not line.startswith(b"{"):
        return None
    try:
        return set(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _first_line(source: Input) -> tuple[bytes, bool]:
    """Return what `first_line` does; an empty line for a file that cannot be read."""
    try:
        with closing(PeekedStream(open_stream(source))) as stream:
            return first_line(stream)
    except TokmillError:
        return b"", True


def _some(sources: Sequence[Input]) -> Sequence[Input]:
    """Return at most `_MOST_FILES` of them, evenly spaced."""
    most = _MOST_REMOTE if any(source.is_remote for source in sources) else _MOST_FILES
    return sources[:: -(-len(sources) // most) or 1]


def _not_text(source: Input, what: str = "", next_step: str = "") -> UsageError:
    """Return the error for JSON lines, or for `what`, that would be read as text."""
    is_stdin = source.path == STDIN
    rename = "" if is_stdin or source.size_bytes is None else "; or give the file a name that ends in .jsonl or .txt"
    return UsageError(
        f"this is {what}, which would be read as text"
        if what
        else "the first line is a JSON object, but nothing says that this is JSON lines: it would be read as text",
        where="standard input" if is_stdin else source.path,
        allowed="JSON lines or text that --input-format or a suffix (.jsonl, .ndjson, .json; .txt) names as such",
        next_step=f"{next_step or 'pass --input-format jsonl'}, or --input-format text to read it as text{rename}",
    )
