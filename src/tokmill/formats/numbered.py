"""The names of files of one part among many: its number stands behind the side's name, for any format.

`train.bin` becomes `train_00003.bin`, `val_000001.bin` becomes `val_00003_000001.bin`, `train/000000.ds` becomes
`train/00003_000000.ds`: sorted by name, the files lie in the order of the corpus. A part is given these names while it is
written, so that nothing but a rename is left to do when all are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.output_spec import SIDES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.core.protocols import OutputFile, OutputFiles
    from tokmill.core.records import FileEntry


class NumberedFiles:
    """The files of an output under the names that they have in one of its parts. Implements `protocols.OutputFiles`."""

    def __init__(self, files: OutputFiles, part: int) -> None:
        self._files = files
        self._part = part

    def file(self, name: str, header_bytes: int = 0) -> OutputFile:
        """See protocols.OutputFiles."""
        return self._files.file(numbered(name, self._part), header_bytes)

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        """See protocols.OutputFiles."""
        self._files.complete(numbered(name, self._part), side=side, tokens=tokens, documents=documents, header=header)

    def completed(self) -> Mapping[str, FileEntry]:
        """See protocols.OutputFiles; by the names with the number."""
        return self._files.completed()


def numbered(name: str, part: int) -> str:
    """The name of a file of one part. name: as the format has it, for the whole."""
    side = next(side for side in SIDES if name.startswith(side))
    rest = name[len(side) :]
    return f"{side}/{part:05}_{rest[1:]}" if rest.startswith("/") else f"{side}_{part:05}{rest}"
