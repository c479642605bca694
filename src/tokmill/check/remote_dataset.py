"""The ids of an output in an object store, for a look at them: fetched where they are looked at, a block at a time.

For training this was refused: each of a batch's windows would be a request. `tokmill.open` wants a copy on this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.text import counted
from tokmill.dataset import ID_LAYOUTS, SIDES, Dataset, ShardedIds
from tokmill.output import Prefix, reading_errors
from tokmill.store import Fetcher

if TYPE_CHECKING:
    from tokmill.core.manifest import Manifest
    from tokmill.core.records import FileEntry
    from tokmill.dataset import Ids, TokenArray
    from tokmill.store import ObjectInfo

_BLOCK_BYTES = 4 << 20


class RemoteDataset(Dataset):
    """An output in a store as a dataset."""

    def __init__(self, url: str) -> None:
        """Raises UsageError, DamageError, StorageError."""
        self._prefix = Prefix(url)
        manifest = self._prefix.complete_manifest()
        self._parts = _parts(self._prefix, manifest)
        content = manifest.content
        tokenizer = content.tokenizer
        super().__init__({}, content.dtype, eot_id=tokenizer.eot_id, eot=content.eot, tokenizer=tokenizer, manifest=manifest)

    def close(self) -> None:
        """See Dataset."""
        for parts in self._parts.values():
            for part in parts:
                part.close()
        super().close()

    def _map_sides(self) -> dict[str, TokenArray]:
        empty: Ids = np.empty(0, self.dtype)
        return {side: ShardedIds(parts) if (parts := self._parts[side]) else empty for side in SIDES}  # type: ignore[arg-type]


class _RemoteIds:
    """The ids of one object: what `ShardedIds` asks of an array."""

    def __init__(self, prefix: Prefix, stored: ObjectInfo, entry: FileEntry, header_bytes: int, dtype: np.dtype[Any]) -> None:
        self._fetcher = Fetcher(prefix.source(stored))
        self._header_bytes = header_bytes
        self._n_ids = entry.tokens
        self.dtype = dtype
        self._held = (0, memoryview(b""))

    def __len__(self) -> int:
        return self._n_ids

    def __getitem__(self, index: slice) -> Ids:
        begin, end, step = index.indices(self._n_ids)
        if step != 1:
            raise IndexError("ids of a store are read in order")
        item_bytes = self.dtype.itemsize
        first, last = (self._header_bytes + place * item_bytes for place in (begin, max(begin, end)))
        ids: Ids = np.frombuffer(self._bytes(first, last), self.dtype)
        return ids

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._fetcher.close()

    def _bytes(self, first: int, last: int) -> memoryview:
        """Bytes first to last, which are kept with what lies behind them up to a block: the next look is often there."""
        begin, held = self._held
        if not begin <= first <= last <= begin + len(held):
            end = min(max(last, first + _BLOCK_BYTES), self._header_bytes + self._n_ids * self.dtype.itemsize)
            with reading_errors():
                begin, held = first, self._fetcher.fetch(first, end) if end > first else memoryview(b"")
            self._held = begin, held
        return held[first - begin : last - begin]


def _parts(prefix: Prefix, manifest: Manifest) -> dict[str, list[_RemoteIds]]:
    """The objects that hold the ids of each side. Raises UsageError, DamageError, StorageError."""
    content = manifest.content
    layout = ID_LAYOUTS.get(content.format)
    if layout is None:
        raise UsageError(
            f"this version does not read the format {content.format!r}",
            where=prefix.url,
            allowed=", ".join(ID_LAYOUTS),
            next_step="pip install --upgrade tokmill",
        )
    there = prefix.list()
    dtype = np.dtype(content.dtype).newbyteorder("<")
    parts: dict[str, list[_RemoteIds]] = {side: [] for side in SIDES}
    for name, entry in manifest.files.items():
        if entry.side is None or not name.endswith(layout.suffix):
            continue
        if name not in there or there[name].size_bytes != entry.size_bytes:
            raise DamageError(
                "an object of the output is " + ("not as long as it was written" if name in there else "missing"),
                where=f"{prefix.url}/{name}",
                allowed=f"{counted(entry.size_bytes, 'byte')}, as in the manifest",
                next_step=f"tokmill verify {prefix.url}",
            )
        if entry.tokens:
            parts[entry.side].append(_RemoteIds(prefix, there[name], entry, entry.header_bytes or layout.header_bytes, dtype))
    return parts
