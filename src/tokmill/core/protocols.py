"""The contracts between the rooms, all on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from tokmill.core.config import Job
    from tokmill.core.events import AnyEvent, Finished
    from tokmill.core.records import Batch, Cursor, FileEntry, Tokens


class ByteStream(Protocol):
    """The decompressed bytes of one input, read once from front to back. The caller closes it.

    Raises DamagedInputError, which names file and position, for anything truncated, corrupt, unreadable or changed meanwhile.
    """

    offset: int
    """Decompressed bytes delivered so far."""

    def read(self, n_bytes: int) -> bytes:
        """Up to n_bytes bytes, at least one; b"" only at the true end, once the end of compressed data has been verified."""

    def skip(self, n_bytes: int) -> None:
        """Read past n_bytes bytes; seeks where it can."""

    def raw_position(self) -> int:
        """Bytes on disk (compressed) consumed so far, about."""

    def close(self) -> None: ...


class Reader(Protocol):
    """Turns a range of the corpus into batches. One thread iterates; closing the iterator closes what it opened.

    The range has a begin and an end in each input (`read/input_range.py`): all of it, or what a part owns. Readers of different
    ranges share nothing, so each may run in a process of its own.
    """

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """Yield batches from `start` on, in the corpus's order, numbered from 0.

        Raises InputError, ChangedError, MemoryBudgetError.
        """


class Cutter(Protocol):
    """Finds safe cuts: places where the tokens of a text are the tokens of its left part followed by those of its right part,
    whatever stands further left and right. The text may be the beginning of a longer one; a cut is never at 0 or at the end.
    """

    def last(self, text: bytes | bytearray, limit: int) -> int:
        """The largest safe cut that is at most `limit`, or 0 if there is none."""

    def first(self, text: bytes | bytearray, start: int) -> int:
        """The smallest safe cut that is at least `start`, or 0 if there is none yet."""


class Encoder(Protocol):
    """A tokenizer in one thread. It never makes a special token of text."""

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Encode valid UTF-8 documents, none of them empty. raw: of bytes that hold all of them, to look at them in one go.

        Returns ids, uint32, shape (n_tokens,), owned by the caller until the next call; and offsets, int64,
        shape (n_documents + 1,): document i has ids[offsets[i]:offsets[i + 1]]. Raises EngineError.
        """

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """The bytes of ordinary ids. Raises EngineError for an id outside the vocabulary."""

    def reset_caches(self) -> None:
        """Give back the memory of caches; what is encoded next is the same."""


class OutputFile(Protocol):
    """A file of the output while it is being written: append only, published under its name by `output/directory.py` alone."""

    length: int
    """Bytes so far, the header included."""

    def append(self, data: Buffer) -> None:
        """Append a C-contiguous buffer, all of it. Raises StorageError, DiskFullError."""

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Bytes that were appended before, fewer only at the end of the file. Raises StorageError."""


class OutputFiles(Protocol):
    """Hands a writer its files; owned and published by `output/directory.py`."""

    def file(self, name: str, header_bytes: int = 0) -> OutputFile:
        """The file that will be published as `name` (plain, or `train/` or `val/` and plain); as long as at the last commit.

        header_bytes: kept free at its beginning, for what is known only when it is complete.
        """

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        """Nothing more is appended; a file that is never completed is not published. header: fills what was kept free for it."""

    def completed(self) -> Mapping[str, FileEntry]:
        """All files that are complete, by name, in the order in which they became so."""


class Writer(Protocol):
    """What turns runs of tokens into files. Knows nothing of threads or of publishing.

    What it writes depends on the tokens alone, not on how they are divided into runs or where a new one continued from its state.
    """

    def append(self, tokens: Tokens) -> None:
        """Append a run of tokens to its side."""

    def state(self) -> dict[str, int]:
        """What it needs to go on from here; stored in the journal. It never asks a file for its length."""

    def finish(self) -> None:
        """Append what can be known only at the end, and complete the files. Can be called again by one made from the state."""


class Observer(Protocol):
    """Watches a run. Called in the thread of the caller of `tokenize`. What it raises ends the run, which can be resumed."""

    def on_event(self, event: AnyEvent) -> None: ...


class Runner(Protocol):
    """Carries out a job somewhere: in a child process here, or on another machine."""

    def run(self, job: Job, observers: Sequence[Observer]) -> Finished:
        """Returns when the output is complete. Raises TokmillError."""
