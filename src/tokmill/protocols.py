"""The contracts between the parts of tokmill, all on one page. Implemented in `read/`, `encode/`, `write/`, `commit.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from tokmill.config import Job
    from tokmill.types import AnyEvent, Batch, Cursor, FileEntry, Finished, Tokens


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
    """Turns the corpus into batches. One thread iterates; closing the iterator closes what it opened."""

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """Batches from `start` on, in the corpus's order, numbered from 0. Raises InputError, ChangedError, MemoryBudgetError."""


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

    def renew(self) -> None:
        """Give back the memory of caches; what is encoded next is the same."""


class OutputFile(Protocol):
    """A file of the output while it is being written: append only, published under its name by `commit.py` alone."""

    length: int
    """Bytes appended so far."""

    def append(self, data: Buffer) -> None:
        """Append a C-contiguous buffer, all of it. Raises StorageError, DiskFullError."""


class OutputFiles(Protocol):
    """Hands a writer its files; owned and published by `commit.py`."""

    def file(self, name: str) -> OutputFile:
        """The file that will be published as `name` (relative, one component); as long as it was at the last commit."""


class Writer(Protocol):
    """A trainer's format. Knows nothing of other formats, of threads, or of publishing."""

    def append(self, tokens: Tokens) -> None:
        """Append a run of tokens to its side."""

    def state(self) -> dict[str, int]:
        """What it needs to go on from here besides its files' lengths; stored in the journal."""

    def finish(self) -> dict[str, FileEntry]:
        """Append what can be known only at the end; describe the files, by name."""


class Observer(Protocol):
    """Watches a run. Called in the thread of the caller of `tokenize`; must not raise."""

    def on_event(self, event: AnyEvent) -> None: ...


class Runner(Protocol):
    """Carries out a job somewhere: in a child process here, or on another machine."""

    def run(self, job: Job, observers: Sequence[Observer]) -> Finished:
        """Returns when the output is complete. Raises TokmillError."""
