"""An output in an object store as a dataset to look at: ids are fetched where they are read, a block at a time.

Training does not read from a store, for each window of a batch would be a request: `tokmill.open` wants a copy on this machine.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.output_spec import SIDES
from tokmill.core.text import counted
from tokmill.dataset import Dataset, IdReader, extents_of, find_tokenizer
from tokmill.formats import FORMATS
from tokmill.output import Prefix, reading_errors
from tokmill.store import Fetcher

if TYPE_CHECKING:
    from tokmill.dataset import Starts, TokenArray
    from tokmill.store import ObjectInfo

_BLOCK_BYTES = 4 << 20


class RemoteDataset(Dataset):
    """An output in a store as a dataset."""

    knows_starts = False

    def __init__(self, url: str, tokenizer_name: str | None = None) -> None:
        """tokenizer_name: as of `open_dataset`. Raises UsageError, ChangedError, DamageError, StorageError."""
        prefix = Prefix(url)
        self._url = prefix.url
        manifest = prefix.complete_manifest()
        content, there = manifest.content, prefix.list()
        suffix = FORMATS[content.format].suffix
        self._extents = {side: [e for e in extents_of(manifest, side) if e.name.endswith(suffix)] for side in SIDES}
        self._objects: dict[str, _Object] = {}
        for name in (extent.name for extents in self._extents.values() for extent in extents):
            _check_size(prefix, name, there.get(name), manifest.files[name].size_bytes)
            self._objects[name] = _Object(prefix, there[name])
        tokenizer = content.tokenizer if tokenizer_name is None else find_tokenizer(content.tokenizer, tokenizer_name)
        super().__init__({}, content.dtype, eot_id=tokenizer.eot_id, eot=content.eot, tokenizer=tokenizer, manifest=manifest)

    def starts(self, side: str) -> Starts:  # noqa: ARG002  as Dataset
        """Raise UsageError: what lies in sequences is looked at in a copy."""
        raise UsageError(
            "documents of a packed output are not looked at in a store",
            where=self._url,
            allowed="what is said without --document",
            next_step=f"copy it first: aws s3 sync {self._url} DIR",
        )

    def close(self) -> None:
        """See Dataset."""
        for each in self._objects.values():
            each.fetcher.close()
        super().close()

    def _map_sides(self) -> dict[str, TokenArray]:
        def read_into(name: str, offset: int, view: memoryview) -> None:
            view[:] = self._objects[name].read(offset, offset + len(view))

        dtype = self.manifest.content.dtype if self.manifest else "uint16"
        return {side: IdReader(side, self._extents[side], dtype, read_into) for side in SIDES}  # type: ignore[misc]


class _Object:
    """The bytes of one object, fetched in blocks of which the last is kept: the next look is often there."""

    def __init__(self, prefix: Prefix, stored: ObjectInfo) -> None:
        self.fetcher = Fetcher(prefix.source(stored))
        self._size_bytes = stored.size_bytes
        self._held_begin, self._held = 0, memoryview(b"")

    def read(self, begin: int, end: int) -> memoryview:
        """Return bytes `begin` to `end`. Raises StorageError, ChangedError."""
        if not self._held_begin <= begin <= end <= self._held_begin + len(self._held):
            with reading_errors():
                held = self.fetcher.fetch(begin, min(max(end, begin + _BLOCK_BYTES), self._size_bytes))
            self._held_begin, self._held = begin, held
        return self._held[begin - self._held_begin : end - self._held_begin]


def _check_size(prefix: Prefix, name: str, found: ObjectInfo | None, size_bytes: int) -> None:
    if found is None or found.size_bytes != size_bytes:
        raise DamageError(
            "an object of the output is " + ("not as long as it was written" if found else "missing"),
            where=f"{prefix.url}/{name}",
            allowed=f"{counted(size_bytes, 'byte')}, as in the manifest",
            next_step=f"tokmill verify {shlex.quote(prefix.url)}",
        )
