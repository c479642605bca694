"""The encodings of text inputs: their names, and which inputs have one. `stream.py` decodes them."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tokmill.core.errors import UsageError
from tokmill.core.text import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import Input

UTF8 = "utf-8"
TEXTS = frozenset(("text", "jsonl", "csv", "tsv"))
"""Formats of inputs that are text as they are stored."""
_NO_ENCODINGS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7"}
"""Codecs of Python that are no encodings of texts, or that give half characters."""
_USUAL = ("latin-1", "cp1252", "cp1251", "utf-16", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "koi8-r", "iso8859-15")


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
        allowed=f"one that Python knows: {', '.join(_USUAL)} and others; a tokenizer is --tokenizer",
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
