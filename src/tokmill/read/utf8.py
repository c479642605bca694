"""UTF-8: whether bytes are valid, where not, and what the policy makes of them.

Decoding checks 2.4 GB/s, pyarrow's validation of a borrowed buffer 8 GB/s, `bytes.isascii` 12.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokmill.core.records import Compression, Utf8Policy

_PROBE_BYTES = 1 << 20
"""Decoded at a time to find an invalid byte."""

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", ".gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", ".zst"),
    (b"\xfd7zXZ\x00", "xz", ".xz"),
    *((b"BZh%d1AY&SY" % level, "bzip2", ".bz2") for level in range(1, 10)),
    (b"\x04\x22\x4d\x18", "lz4", ".lz4"),
)
_BINARY = (
    # With the byte after the mark: a text may begin with PAR1.
    (b"PAR1\x15", "Parquet data", ".parquet", "parquet"),
    (b"ARROW1\x00\x00", "Arrow data", ".arrow", "arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", ".arrows", "arrow"),
)
_TAR = (257, b"ustar")
"""The mark of a tar archive and where it stands."""
HEAD_BYTES = 1024
"""Enough for `foreign`."""
ENCODING_ADVICE = (
    "name the encoding of the text, such as --encoding cp1252 (in archives, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > "
    "NEW_FILE); or fix the file, or pass --encoding-errors replace (or ignore)"
)
"""What to do about bytes that are not UTF-8."""
_LEAST_WIDE_BYTES = 8
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_JSON_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{\s*\"")
_FOREIGN = (
    *(
        (
            magic,
            f"{name} data",
            f"let the name end in {suffix}, or pass --input-format text{suffix}, jsonl{suffix}, csv{suffix} or tar{suffix}",
        )
        for magic, name, suffix in _COMPRESSED
    ),
    *(
        (magic, what, f"give the file a name that ends in {suffix}, or pass --input-format {name}")
        for magic, what, suffix, name in _BINARY
    ),
    (
        b"PK\x03\x04",
        "a zip archive",
        "unpack it first: unzip FILE -d DIR (a .docx, .odt or .epub: pandoc -t plain FILE -o FILE.txt)",
    ),
    (b"%PDF-", "a PDF file", "convert it first: pdftotext FILE FILE.txt"),
    (b"{\\rtf1", "an RTF file", "convert it first: pandoc -t plain FILE -o FILE.txt"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of an old office program", "convert it first: soffice --convert-to txt FILE"),
    (b"]\0\0", "an .lzma file", "compress it as xz: xz --format=lzma -dc FILE | xz > NEW.xz"),
    (b"LZIP\x01", "an lzip file", "compress it as xz: lzip -dc FILE | xz > NEW.xz"),
    (b"\x1f\x9d", "a file of compress", "compress it as gzip: gzip -dc FILE | gzip > NEW.gz"),
    (b"\x02\x21\x4c\x18", "a legacy frame of lz4", "compress it again: lz4 -dc FILE | lz4 > NEW.lz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x FILE -oDIR"),
    (
        b"\xff\xfe\0\0",
        "UTF-32 text (byte order mark FF FE 00 00)",
        "pass --encoding utf-32; or convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW_FILE",
    ),
    (
        b"\0\0\xfe\xff",
        "UTF-32 text (byte order mark 00 00 FE FF)",
        "pass --encoding utf-32; or convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW_FILE",
    ),
    (
        b"\xff\xfe",
        "UTF-16 text (byte order mark FF FE)",
        "pass --encoding utf-16; or convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE",
    ),
    (
        b"\xfe\xff",
        "UTF-16 text (byte order mark FE FF)",
        "pass --encoding utf-16; or convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE",
    ),
)
_MAGICS = tuple(magic for magic, _, _ in _FOREIGN)


_left = [96 << 20]
"""Bytes that this process will decode to check them: as long as importing pyarrow takes."""
_SHORT_BYTES = 1 << 10
"""Up to here decoding is faster than making an array of pyarrow's (a line of 40 bytes: 0.4 us, not 4)."""


def first_invalid(data: bytes | bytearray | memoryview) -> int | None:
    """Return the index of the first byte that is not UTF-8; None if all is valid.

    Args:
        data: bytes, borrowed for the call; a character that its end cuts is not valid.
    """
    if len(data) <= _SHORT_BYTES:
        return _find_invalid(data)
    # Until much is met that is not ASCII, pyarrow (25 MiB, 0.05 s) is not worth its import; after that its own test is as fast.
    if "pyarrow" not in sys.modules:
        if bytes(data).isascii():
            return None
        _left[0] -= len(data)
        if _left[0] > 0:
            return _find_invalid(data)
    return None if _is_valid(data) else _find_invalid(data)


def _is_valid(data: bytes | bytearray | memoryview) -> bool:
    import numpy as np
    import pyarrow as pa

    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)])
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _find_invalid(data: bytes | bytearray | memoryview) -> int | None:
    begin = 0
    while begin < len(data):
        part = data[begin : begin + _PROBE_BYTES]
        try:
            str(part, "utf-8")
        except UnicodeDecodeError as error:
            if error.start == 0 or begin + len(part) == len(data):
                return begin + error.start
            # Perhaps a character that only this part cuts: look again from its first byte.
            begin += error.start
        else:
            begin += len(part)
    return None


def clean(document: bytes, policy: Utf8Policy) -> tuple[bytes, int]:
    """Return a document as valid UTF-8, and how many of its bytes were not.

    Args:
        document: any bytes.
        policy: `replace` or `ignore`, as in `bytes.decode`.
    """
    kept = document.decode("utf-8", "ignore").encode()
    n_invalid = len(document) - len(kept)
    if policy == "ignore" or not n_invalid:
        return kept, n_invalid
    return document.decode("utf-8", "replace").encode(), n_invalid


def damage_hint(compression: Compression) -> str:
    """Return what to add to a next step: text that is not UTF-8 may be that of a damaged compressed file."""
    return "" if compression == "none" else f"; or the compressed file is damaged: {compression} -t FILE tests it"


def foreign(
    head: bytes, *, may_have_nul: bool = False, compression: Compression = "none", is_piped: bool = False
) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, if it is not UTF-8 text, and what to do about it.

    may_have_nul: NULs may stand between its documents; compression: of the file, whose first bytes these are when decompressed;
    is_piped: it is no file.
    """
    if is_piped and (named := next((each for each in _BINARY if head.startswith(each[0])), None)):
        return named[1], f"save it to a file whose name ends in {named[2]}, decompressed, and name that: its index is at its end"
    if compression != "none" and (found := foreign(head, may_have_nul=may_have_nul)):
        return found[0], f"decompress it first ({compression} -d FILE), then: {found[1]}"
    at, word = _TAR
    if head[at : at + len(word)] == word and b"\0" in head[:at]:
        return "a tar archive", "give the file a name that ends in .tar, or pass --input-format tar"
    is_known = head.startswith(_MAGICS)
    found = next(((what, next_step) for magic, what, next_step in _FOREIGN if head.startswith(magic)), None) if is_known else None
    # UTF-32 may begin with a bracket, as an .lzma file does.
    is_sure = found is not None and not head.startswith(b"]\0\0")
    if not is_sure and not may_have_nul and (wide := _wide_encoding(head)):
        return (
            f"{wide} text without a byte order mark",
            f"pass --encoding {wide.lower()}; or convert it: iconv -f {wide} -t UTF-8 FILE > NEW_FILE",
        )
    return found


def _wide_encoding(head: bytes) -> str | None:
    """Return the encoding of text of two or four bytes a character, most of it ASCII: as UTF-8 it is valid, with NULs."""
    head = head[: len(head) // 4 * 4]
    if len(head) < _LEAST_WIDE_BYTES or head.count(0) * 4 < len(head):
        return None
    for encoding in _WIDE:
        try:
            text = head.decode(encoding)
        except UnicodeDecodeError as error:
            # Its last character may be cut.
            text = head[: error.start].decode(encoding) if error.start >= len(head) - 4 else ""
        if text and "\0" not in text and sum(map(str.isascii, text)) * 2 > len(text):
            return encoding.upper()
    return None


def json_array(head: bytes, compression: Compression = "none") -> tuple[str, str] | None:
    """Return what `foreign` does for a JSON array of objects, as `json.dump` writes one."""
    if not _JSON_ARRAY.match(head):
        return None
    command = with_file("jq -c '.[]' FILE > NEW.jsonl", compression)
    return "a JSON array", f"write its elements as lines: {command}"


def with_file(command: str, compression: Compression) -> str:
    """Return a command in which FILE stands as one that takes a compressed file."""
    before, _, after = command.rpartition(" FILE")
    return command if compression == "none" else f"{compression} -dc FILE | {before}{after}"
