"""Text in another encoding than UTF-8, as the UTF-8 that all readers take.

What the encoding does not have becomes a byte that UTF-8 does not have, one for each bad sequence. So whatever is done with bytes
that are not UTF-8 is done with it: a document is left out, or a character stands for it. A run that stops at the first says where
it is in the file.
"""

from __future__ import annotations

import codecs
import threading
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tokmill.core.errors import BadTextError, UsageError
from tokmill.core.records import STDIN
from tokmill.core.text import nearest
from tokmill.read.stream import Wrapper, read_past

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Input

UTF8 = "utf-8"
TEXTS = frozenset(("text", "jsonl", "csv", "tsv"))
"""Formats of inputs that are text as they are stored."""
_BLOCK_BYTES = 1 << 18
_MARK = "\udcff"
"""Becomes the byte 0xFF."""
_HANDLER = "tokmill.mark"
_NO_ENCODINGS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7"}
"""Codecs of Python that are no encodings of texts, or that give half characters."""
_USUAL = ("latin-1", "cp1252", "cp1251", "utf-16", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "koi8-r", "iso8859-15")
_bad = threading.local()


def codec_name(encoding: str) -> str:
    """Return the one name of an encoding, whatever it is called. Raises UsageError."""
    try:
        info = codecs.lookup(encoding)
        name = info.name
        is_text = name.replace("-", "_") not in _NO_ENCODINGS and isinstance(info.incrementaldecoder(), codecs.IncrementalDecoder)
        "a".encode(name)
    except (LookupError, ValueError, TypeError, AttributeError):
        is_text, name = False, ""
    if is_text and not name.startswith("mbcs"):
        return name
    raise UsageError(
        f"{encoding!r} is not an encoding of text",
        option="--encoding",
        allowed=f"one that Python knows: {', '.join(_USUAL)} and others",
        suggested=nearest(encoding, _USUAL) or "latin-1",
    )


def encoded(inputs: Sequence[Input], encoding: str) -> tuple[tuple[Input, ...], list[str]]:
    """Return inputs whose text is in an encoding, and what to say of it. Raises UsageError."""
    name = codec_name(encoding)
    if name == UTF8:
        return tuple(inputs), []
    archive = next((source for source in inputs if source.format == "tar"), None)
    if archive is not None:
        raise UsageError(
            "the texts in an archive are read as UTF-8",
            where=archive.path,
            option="--encoding",
            allowed="text, JSON lines, CSV and TSV in another encoding",
            next_step="unpack the archive, and name the directory instead of it",
        )
    others = {source.format for source in inputs} - TEXTS
    notices = [f"--encoding has no effect on {' and '.join(sorted(others))}: that is UTF-8 by its format"] if others else []
    return tuple(replace(source, encoding=name) if source.format in TEXTS else source for source in inputs), notices


class DecodedStream(Wrapper):
    """The text of an input as UTF-8. Places in it are bytes of that."""

    def __init__(self, stream: ByteStream, source: Input) -> None:
        super().__init__(stream)
        self._source = source
        self._decoder = codecs.getincrementaldecoder(source.encoding or UTF8)(_HANDLER)
        self._held = memoryview(b"")
        self._ended = False
        self.is_strict = False
        """Whether what the encoding does not have is an error."""

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream. Raises BadTextError where `is_strict`."""
        while not len(self._held) and not self._ended:
            data = self._stream.read(min(_BLOCK_BYTES, max(1, n_bytes)))
            self._ended = not data
            self._held = memoryview(self._decoded(data))
        taken, self._held = bytes(self._held[:n_bytes]), self._held[n_bytes:]
        self.offset += len(taken)
        return taken

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        read_past(self, n_bytes, self._source)

    def _decoded(self, data: bytes) -> bytes:
        _bad.first = None
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeError as error:
            # Without the mark that says which of two encodings it is, nothing of it is known.
            raise BadTextError(
                f"not {self._source.encoding}: {error}",
                where="standard input" if self._source.path == STDIN else self._source.path,
                allowed=f"text in {self._source.encoding}, with the byte order mark that it begins with",
                next_step=f"pass --encoding {self._source.encoding}-le, or {self._source.encoding}-be",
            ) from None
        if self.is_strict and _bad.first is not None:
            before_end, byte, reason = _bad.first
            raise BadTextError(
                f"not {self._source.encoding}: byte 0x{byte:02x} ({reason})",
                where=f"{'standard input' if self._source.path == STDIN else self._source.path}, "
                f"byte {self._stream.offset - before_end:,}",
                allowed=f"text in {self._source.encoding}, as --encoding says",
                next_step="pass the encoding that it has; or --encoding-errors replace (or ignore), or --on-error skip to leave "
                "out documents that have such bytes",
            )
        return text.encode(UTF8, "surrogateescape")


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Put a mark in place of bytes that mean nothing, and note where the first of them are, from the end of what was read."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    if getattr(_bad, "first", None) is None:
        _bad.first = (len(error.object) - error.start, error.object[error.start], error.reason)
    return _MARK, error.end


codecs.register_error(_HANDLER, _mark)
