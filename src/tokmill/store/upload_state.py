"""What must be remembered between two attempts to send an output: one small JSON file beside what is staged.

The store itself says what has arrived; this file says what is sent, what it replaces, and which uploads are open. Losing it costs
time, never bytes: an upload is begun again.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Content
from tokmill.core.errors import DamageError
from tokmill.core.manifest import read_state
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors

if TYPE_CHECKING:
    from pathlib import Path


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the file."""

    url: str
    """Of the prefix."""
    content: Content | None = None
    """What is made; None before a run has begun."""
    is_fresh: bool = False
    """Whatever stands in the way at the prefix may be replaced: that was asked for."""
    replaces: str = ""
    """Version of the manifest at the prefix whose output this one takes the place of; empty: none."""
    retired: tuple[str, ...] = ()
    """Names of its files, which are to be taken away."""
    begun: dict[str, str] = {}
    """By name of a file, what the store calls the object that is sent in parts."""


class UploadState:
    """The file. Used from any thread."""

    def __init__(self, path: Path, url: str) -> None:
        """Read it, where it is there and about this URL. Raises StorageError."""
        self._path = path
        self._lock = threading.Lock()
        self.notes = _read(path, url) or Notes(url=url)

    def change(self, **fields: object) -> None:
        """Set fields, durably."""
        with self._lock:
            self._write(**fields)

    def note_begun(self, name: str, upload: str | None) -> None:
        """Note what an object in parts is called; None: it is no longer begun."""
        with self._lock:
            others = {other: at for other, at in self.notes.begun.items() if other != name}
            self._write(begun=others | ({name: upload} if upload else {}))

    def _write(self, **fields: object) -> None:
        self.notes = msgspec.structs.replace(self.notes, **fields)
        new = self._path.with_name(self._path.name + ".new")
        with storage_errors(self._path):
            durable.make_directory(self._path.parent)
            durable.write_file(new, msgspec.json.encode(self.notes))
            durable.replace(new, self._path)
            durable.sync_directory(self._path.parent)


def _read(path: Path, url: str) -> Notes | None:
    with storage_errors(path):
        try:
            notes = msgspec.json.decode(read_state(path), type=Notes)
        except (FileNotFoundError, DamageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
    return notes if notes.url == url else None
