"""What to say of an output without text, or of a side without it: why that may be, and what to type against it.

A run that left out every record is not a fault, for it was asked to leave them out; but nobody wants it. Where JSON lines lack the
key, the keys that stand in the first line are named, since the key is what was mistyped most often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.config import typed_separator
from tokmill.core.errors import TokmillError
from tokmill.core.records import BLOCK_BYTES, DIVIDE_ABOVE_BYTES
from tokmill.core.text import counted
from tokmill.read import keys_of, open_stream

if TYPE_CHECKING:
    from tokmill.core.config import Content
    from tokmill.core.records import Counts, Input

_MOST_VAL = 0.5
_ENOUGH_DOCUMENTS = 5
"""Expected for validation, so that none at all is less likely than one in a hundred."""
_MOST_KEYS = 8
"""Named in a notice."""
_BLANK_LINE = b"\r\n\r\n"
"""What is between paragraphs where lines end as on Windows."""
_READ_BYTES = 1 << 20
_MISSED = {"missing_text", "null_text", "not_a_string"}
"""Reasons that another key may mend."""


def emptiness_notices(counts: Counts, content: Content) -> list[str]:
    """What to say of an output that has no token, or has none on one side though both were asked for."""
    return _empty_output(counts, content) or _empty_side(counts, content)


def _empty_output(counts: Counts, content: Content) -> list[str]:
    if counts.tokens_train or counts.tokens_val:
        return []
    if not counts.documents:
        return ["nothing was written: the inputs hold no document; are they the right ones?"]
    reasons = {reason: n for reason, n in counts.skipped.items() if n}
    if set(reasons) <= {"empty"}:
        return [f"nothing was written: {counted(counts.documents, 'document')}, and no text in any"]
    what = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()))
    return [f"nothing was written: every record was skipped ({what}){_key_question(content, reasons)}"]


def _key_question(content: Content, reasons: dict[str, int]) -> str:
    if not _MISSED & set(reasons):
        return "; skipped.jsonl in the output says where"
    keys = next((keys for source in content.inputs if source.format == "jsonl" if (keys := keys_of(source))), [])
    there = (
        f" The first line has the keys {', '.join(keys[:_MOST_KEYS])}{', ...' if len(keys) > _MOST_KEYS else ''}." if keys else ""
    )
    return f": is --text-key {content.text_key} right?{there} Run again with --fresh and the right key"


def _empty_side(counts: Counts, content: Content) -> list[str]:
    """What to say when one side has all the text though both were asked for."""
    n, val_fraction = counts.documents_train + counts.documents_val, content.val_fraction
    if not val_fraction or not n or bool(counts.tokens_train) == bool(counts.tokens_val):
        return []
    name, side = ("val.bin", "validation") if counts.tokens_train else ("train.bin", "training")
    what = f"{name} is empty (np.memmap refuses such a file, tokmill.open does not)"
    if content.format != "raw" or content.shards:
        what = f"there is no file for {side}"
    what += f": of {counted(n, 'document')} none is for {side}"
    if n == 1 and counts.bytes_text <= DIVIDE_ABOVE_BYTES and content.inputs[0].format == "text":
        what += f", for a document of less than 64 MiB is not divided; {where_documents_end(content)}"
    elif side == "training" or val_fraction >= _MOST_VAL:
        what += "; choose with another --seed, and --fresh"
    else:
        n_blocks = max(n, counts.bytes_text // BLOCK_BYTES if counts.bytes_text > DIVIDE_ABOVE_BYTES * n else n)
        fraction = min(_MOST_VAL, max(_ENOUGH_DOCUMENTS / n_blocks, 2 * val_fraction))
        what += f"; for some, run again with --fresh --val-fraction {fraction:.2g}"
    return [f"{what}. With --val-fraction 0 all are for training"]


def where_documents_end(content: Content) -> str:
    """What to do about text that is one document: of lines that end as on Windows, which --separator is likely meant."""
    wanted = (content.separator or "").encode()
    source = content.inputs[0]
    if wanted and wanted != _BLANK_LINE and len(content.inputs) == 1 and source.size_bytes and not source.is_remote:
        try:
            has_wanted, has_blank_line = _occurring(source, (wanted, _BLANK_LINE))
        except (TokmillError, OSError):
            has_wanted = has_blank_line = False
        if has_blank_line and not has_wanted:
            typed = typed_separator(content.separator)
            return f"the separator {typed} does not occur; lines end in \\r\\n: try --separator '\\r\\n\\r\\n'"
    return "say with --separator where documents end"


def _occurring(source: Input, words: tuple[bytes, ...]) -> list[bool]:
    """Whether each of the words is anywhere in an input."""
    found = [False] * len(words)
    kept = max(map(len, words)) - 1
    tail, stream = b"", open_stream(source)
    try:
        while not all(found) and (data := stream.read(_READ_BYTES)):
            tail += data
            found = [before or word in tail for before, word in zip(found, words, strict=True)]
            tail = tail[-kept:] if kept else b""
    finally:
        stream.close()
    return found
