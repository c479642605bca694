"""The raw format of nanoGPT: token ids one behind the other, no header, little-endian.

`np.memmap("train.bin", dtype=np.uint16, mode="r")` reads it. Every run of ids goes straight from the encoder's array to the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.types import FileEntry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.protocols import OutputFiles
    from tokmill.types import Tokens

_SIDES = ("train", "val")


class RawWriter:
    """Writes `train.bin` and `val.bin`. Implements `protocols.Writer`."""

    def __init__(self, files: OutputFiles, state: Mapping[str, int], item_bytes: int) -> None:
        self._files = [files.file(f"{side}.bin") for side in _SIDES]
        self._documents = [state.get(f"{side}_documents", 0) for side in _SIDES]
        self._item_bytes = item_bytes

    def append(self, tokens: Tokens) -> None:
        """Append the ids to their side's file."""
        self._files[tokens.is_val].append(tokens.ids.data)
        self._documents[tokens.is_val] += len(tokens.ends)

    def state(self) -> dict[str, int]:
        """The number of documents in each file; its length says the rest."""
        return {f"{side}_documents": n for side, n in zip(_SIDES, self._documents, strict=True)}

    def finish(self) -> dict[str, FileEntry]:
        """Nothing to add: describes the two files."""
        return {
            f"{side}.bin": FileEntry(size_bytes=file.length, side=side, tokens=file.length // self._item_bytes, documents=n)
            for side, file, n in zip(_SIDES, self._files, self._documents, strict=True)
        }
