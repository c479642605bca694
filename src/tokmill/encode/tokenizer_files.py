"""Files of tokenizers, read as untrusted: regular files of limited size, whatever their names lead to.

A name may be that of a pipe, which would be waited for, or a link to a device without end; so what was opened is looked at before
a byte of it is read.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from itertools import islice

from tokmill.core.errors import UsageError
from tokmill.core.records import path_to_text
from tokmill.core.text import format_bytes

MOST_BYTES = 128 << 20
"""The largest tokenizer.json that is read; the largest published ones have 40 MB."""
_PART_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_file(path: str, kind: str, most: int = MOST_BYTES) -> bytes:
    """Return the content of a tokenizer's file. kind: what it should be. Raises UsageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                what = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no regular file")
                raise unreadable(path, f"it is {what}", kind)
            # Not its size alone: it may grow, and has none in some file systems. Asked for at once, `most` would be allocated.
            parts = iter(partial(file.read, _PART_BYTES), b"")
            data = b"".join(islice(parts, most // _PART_BYTES + 1)) if status.st_size <= most else b""
    except (OSError, ValueError) as error:
        raise unreadable(path, getattr(error, "strerror", None) or str(error), kind) from None
    if status.st_size > most or len(data) > most:
        raise unreadable(path, f"it has {format_bytes(max(status.st_size, len(data)))}", f"{kind} of at most {format_bytes(most)}")
    return data


def unreadable(path: str, reason: str, kind: str) -> UsageError:
    """Return the error for a tokenizer's file that cannot be read. kind: what the file should be."""
    return UsageError(
        f"cannot read the tokenizer's file: {reason}",
        where=path_to_text(path),
        allowed=f"a readable {kind}, which is a regular file",
        next_step="check the path: --tokenizer takes the one where the file is now",
    )
