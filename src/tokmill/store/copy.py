"""Gives objects of a store other names, inside the store: nothing of them comes through this machine. Several at once.

An object's mark says what is in it, so a copy is known by its mark, and what is there already is not copied again. One request
copies up to some hundred MiB; a larger object is made of ranges of the other one, for a client does not wait for an answer for
minutes. Each request names the version that was looked at: an object that was replaced meanwhile is not copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError, LockedError
from tokmill.core.text import counted
from tokmill.store.base import AlreadyExists, UploadNotFound
from tokmill.store.download import Closed
from tokmill.store.upload import Transfer, foreign_object, part_bytes_of, results_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tokmill.store.base import ObjectInfo
    from tokmill.store.s3 import S3Objects

PIECE_BYTES = 512 << 20
"""Of one request; S3 takes up to 5 GB. At 50 MB/s inside a store, 10 s; a client waits for 60."""
_FILES_AT_ONCE = 8
_PIECES_AT_ONCE = 8
_ROUNDS = 4
"""Of one object, as in `upload`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTask:
    """An object that is to have another name."""

    source: str
    name: str
    size_bytes: int
    run: str
    """Fingerprint in the mark of the source: of what made it."""
    part: int
    """Number of the part it belongs to, for messages."""


class Copier(Transfer):
    """Copies objects below one prefix."""

    def __init__(self, store: S3Objects, run: str) -> None:
        super().__init__(store, run, _FILES_AT_ONCE, _PIECES_AT_ONCE)

    def copy(self, move: CopyTask) -> Future[ObjectInfo]:
        """Begin to copy; the copy comes of it. Raises there DamageError, LockedError, UsageError, StorageError."""
        return self._files.submit(self._copy, move)

    def _copy(self, move: CopyTask) -> ObjectInfo:
        for _ in range(_ROUNDS):
            source, found = self._head(move.source), self._head(move.name)
            if found is not None and self._is_copy(found, source, move):
                return found
            source = _checked(source, move, self._where(move.source))
            if found is not None:
                self._make_room(move, found)
            try:
                self._make(move, source, f"{self._run} {_digest(source)}")
            except (AlreadyExists, UploadNotFound):
                # By another that does the same, or by an attempt of our own that seemed to fail: what is there now says it.
                continue
        raise LockedError(
            "others keep writing the same objects",
            where=self._where(move.name),
            allowed="one tokmill finalize at a time",
            next_step="wait for the other one to end, then run tokmill finalize again",
        )

    def _is_copy(self, found: ObjectInfo, source: ObjectInfo | None, move: CopyTask) -> bool:
        """Whether an object is the copy; of a source that is gone, whatever this run made of it."""
        is_alike = source is None or _digest(source) == _digest(found)
        return found.mark.partition(" ")[0] == self._run and found.size_bytes == move.size_bytes and is_alike

    def _make_room(self, move: CopyTask, found: ObjectInfo) -> None:
        if found.mark.partition(" ")[0] != self._run:
            raise foreign_object(self._where(move.name), found)
        self._delete(move.name)

    def _make(self, move: CopyTask, source: ObjectInfo, mark: str) -> None:
        """Make the copy. Raises AlreadyExists, UploadNotFound."""
        if source.size_bytes <= PIECE_BYTES:
            self._retry(move.name, lambda: self._store.copy(source, move.name, mark))
            return
        piece_bytes = part_bytes_of(source.size_bytes, PIECE_BYTES)
        upload = self._retry(move.name, lambda: self._store.create_multipart(move.name, mark))

        def make(number: int, begin: int) -> str:
            if self._closed.is_set():
                raise Closed
            place = begin, min(piece_bytes, source.size_bytes - begin)
            return self._retry(move.name, lambda: self._store.copy_part(source, move.name, upload, number, place))

        made = [self._parts.submit(make, n, begin) for n, begin in enumerate(range(0, source.size_bytes, piece_bytes), 1)]
        try:
            etags = results_of(made)
            self._retry(move.name, lambda: self._store.complete_multipart(move.name, upload, etags, only_new=True))
        except BaseException:
            self._retry(move.name, lambda: self._store.abort_multipart(move.name, upload))
            raise


def _checked(source: ObjectInfo | None, move: CopyTask, where: str) -> ObjectInfo:
    """The object that is to be copied. Raises DamageError when it is not the one that the part sent."""
    if source is None:
        what = "a file of a part is missing"
    elif source.size_bytes != move.size_bytes:
        what = f"a file of a part has {counted(source.size_bytes, 'byte')}"
    elif source.mark.partition(" ")[0] != move.run:
        what = "a file of a part is not the one that was sent"
    else:
        return source
    raise DamageError(
        what,
        where=where,
        allowed=f"{counted(move.size_bytes, 'byte')}, as the part's manifest says",
        next_step=f"make part {move.part} again with --fresh, then run tokmill finalize again",
    )


def _digest(stored: ObjectInfo) -> str:
    return stored.mark.partition(" ")[2]
