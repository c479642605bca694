"""Documents on their way through several machines: what one task scatters of a source is a portion, one file on the shared disk.

A portion is as much of a side as a task takes at a time, cut where the manifest says how many documents lie before. Its file
(`derive/spread/run_files.py`) has of each bucket the ids, the records, and in each run the sum of the digests of its documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.bounded import Natural
from tokmill.derive.buckets import RECORD, SUM_BITS, BucketState, damage
from tokmill.derive.spread.run_files import (
    INDEX_SHARE,
    Extents,
    RunFile,
    RunWriter,
    answer_of,
    least_file_bytes,
    most_buckets as most_of_kinds,
)
from tokmill.output import growing_path, remove_growing, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory, TreePath
    from tokmill.derive.bucket_run import Operand
    from tokmill.derive.source import Source

_KINDS = ("ids", "records", "sums")
_IDS, _RECORDS, _SUMS = range(len(_KINDS))
_SUM_BYTES = SUM_BITS // 8
_PORTION_COST = 120
"""Bytes of memory that stretches of a bucket take while they are held, beside ids and records."""


class Portion(msgspec.Struct, frozen=True, kw_only=True):
    """Documents of one side of one source that one task reads."""

    operand: Natural
    token: Natural
    """Where the first begins on its side."""
    end: Natural
    """Where the last one ends."""
    document: Natural
    """Number of the first on its side."""
    n_documents: Natural


def cut_portions(operands: Sequence[Operand], least_tokens: int) -> list[Portion]:
    """Return all documents of the operands as portions, of at least so many tokens each but the last ones."""
    return [portion for at, operand in enumerate(operands) for portion in cut_side(operand.source, at, "train", least_tokens)]


def cut_side(source: Source, operand: int, side: str, least_tokens: int) -> list[Portion]:
    """Return the documents of one side of a source as `cut_portions` does. operand: its number."""
    portions: list[Portion] = []
    token = document = 0

    def add(end: int, end_document: int) -> None:
        nonlocal token, document
        n_documents = end_document - document
        portions.append(Portion(operand=operand, token=token, end=end, document=document, n_documents=n_documents))
        token, document = end, end_document

    for step in source.steps:
        end, end_document = getattr(step.counts, f"tokens_{side}"), getattr(step.counts, f"documents_{side}")
        is_between = not step.writer.get(f"{side}_inside", 1) and end_document > document
        if is_between and end - token >= least_tokens:
            add(end, end_document)
    counts = source.manifest.counts
    if document < (n_documents := getattr(counts, f"documents_{side}")):
        add(getattr(counts, f"tokens_{side}"), n_documents)
    return portions


class PortionWriter(RunWriter):
    """The file of one portion while it is made, with the method `add` of Buckets. A context that removes what is not finished."""

    def __init__(self, directory: Directory, work: bytes, number: int, n_buckets: int, held_bytes: int) -> None:
        """work: what the file is for, 16 bytes. held_bytes: memory for a run."""
        self.state = BucketState(fingerprint="", n_buckets=n_buckets)
        self._sums: dict[int, int] = {}
        """Of the digests of what is held, by bucket."""
        self._sum = 0
        super().__init__(directory, _name(number), work, _KINDS, n_buckets, held_bytes)

    def add(self, bucket: int, ids: bytes, records: bytes, digests: int) -> None:
        """See Buckets. Raises StorageError, DiskFullError."""
        self._sums[bucket] = (self._sums.get(bucket, 0) + digests) % (1 << SUM_BITS)
        self.hold("ids", bucket, ids)
        self.put("records", bucket, records)

    def finish(self) -> int:
        """Make the file durable and give it its name. Returns the sum of the digests of its documents."""
        found = (self._sum + sum(self._sums.values())) % (1 << SUM_BITS)
        self.complete(found.to_bytes(_SUM_BYTES, "little"))
        return found

    def _write_run(self) -> None:
        for bucket, digests in self._sums.items():
            self.hold("sums", bucket, digests.to_bytes(_SUM_BYTES, "little"))
        self._sum += sum(self._sums.values())
        self._sums = {}
        super()._write_run()


class PortionBuckets:
    """The buckets in the files of all portions, with the methods of Buckets that read."""

    def __init__(self, directory: Directory, work: bytes, n_portions: int, n_buckets: int) -> None:
        """Opens nothing yet. work: what the files are for."""
        self.state = BucketState(fingerprint="", n_buckets=n_buckets)
        self._paths = [growing_path(directory, _name(number)) for number in range(n_portions)]
        self._work = work
        self.digest = ""
        """Sum of the digests of all documents, hex; set by who knows it."""
        self._bucket = -1
        self._extents = Extents([], self._opened)
        """Of the current bucket: its ids, in order."""
        self._records: list[bytes] = []
        self._sum = 0

    def sum_of(self, number: int) -> int | None:
        """Return the sum of the digests of a portion; None where its file is not there, or of other work. Raises StorageError."""
        answer = answer_of(self._paths[number], self._work, len(_KINDS), self.state.n_buckets)
        return None if answer is None else int.from_bytes(answer, "little")

    def records_of(self, first: int, last: int) -> list[NDArray[Any]]:
        """Return the records of the buckets `first` to `last`, each dtype RECORD. Raises StorageError, DamageError."""
        found: list[list[NDArray[Any]]] = [[] for _ in range(last - first)]
        for path in self._paths:
            with self._opened(path) as file:
                for entries in file.entries(first, last):
                    sizes = entries["n_bytes"][:, _RECORDS]
                    # Those of a run lie one after the other.
                    records = np.frombuffer(file.read(int(entries["begin"][0, _RECORDS]), int(sizes.sum())), RECORD)
                    ends = np.cumsum(sizes // np.uint64(RECORD.itemsize))[:-1].astype(np.int64)
                    for bucket, part in enumerate(np.split(records, ends)):
                        found[bucket].append(part)
        return [np.concatenate(each) if each else np.empty(0, RECORD) for each in found]

    def close(self) -> None:
        """See Buckets: nothing is held."""

    def records(self, bucket: int) -> NDArray[Any]:
        """See Buckets."""
        self._go_to(bucket)
        return np.frombuffer(b"".join(self._records), RECORD)

    def ids_bytes(self, bucket: int) -> int:
        """See Buckets."""
        self._go_to(bucket)
        return self._extents.n_bytes

    def read_ids(self, bucket: int, offset: int, view: memoryview) -> None:
        """See Buckets."""
        self._go_to(bucket)
        self._extents.read_into(offset, view)

    def check(self, bucket: int, digests: int) -> None:
        """See Buckets."""
        self._go_to(bucket)
        if digests % (1 << SUM_BITS) != self._sum:
            raise damage(state_of(self._paths[0].parent), f"documents of bucket {bucket:,} are not those that were written")

    def _opened(self, path: TreePath) -> RunFile:
        return RunFile(path, self._work, len(_KINDS), self.state.n_buckets)

    def _go_to(self, bucket: int) -> None:
        if bucket == self._bucket:
            return
        self._bucket, self._records, total = bucket, [], 0
        stretches = []
        for path in self._paths:
            with self._opened(path) as file:
                for entries in file.entries(bucket, bucket + 1):
                    (begin, n_bytes), records, sums = entries[0].tolist()
                    if n_bytes:
                        stretches.append((path, begin, n_bytes))
                    self._records.append(bytes(file.read(*records)))
                    total += int.from_bytes(file.read(*sums), "little")
        self._extents = Extents(stretches, self._opened)
        self._sum = total % (1 << SUM_BITS)


def most_buckets(held_bytes: int) -> int:
    """Return how many buckets runs of so many bytes can have, so that their indexes are a small part of them."""
    return most_of_kinds(held_bytes, len(_KINDS))


def least_portion_bytes(n_buckets: int) -> int:
    """Return the bytes of a portion of which the index of its last run is a small part."""
    return least_file_bytes(n_buckets, len(_KINDS))


def index_bytes(n_bytes: int, n_documents: int) -> int:
    """Return the bytes of all indexes and sums, at most: a part of the full runs, and of the last ones of portions."""
    return 2 * (n_bytes + _PORTION_COST * n_documents) // INDEX_SHARE + _SUM_BYTES * n_documents


def remove_portions(directory: Directory) -> None:
    """Remove all portions of an output that is made without them, and what their tasks must know. Raises StorageError."""
    remove_growing(directory, ("work.", "portion_"))


def _name(number: int) -> str:
    """Return the name of the file of a portion."""
    return f"portion_{number:06}"
