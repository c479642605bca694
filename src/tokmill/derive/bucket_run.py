"""The making of an output whose documents lie elsewhere than in its sources: two passes, with buckets on the disk between them.

The first pass reads the sources front to back and puts each document, or piece of one, into a bucket (`derive/buckets.py`) by a
number that says where it belongs. The second takes one bucket after the other, sorts it and writes it through the writer of the
format; what is committed is removed from the buckets. So memory does not grow with the corpus, and the disk holds the ids once
more. Which numbers there are, and what is written of a bucket, is for those who derive from this.

For proof the manifest has the sum of the digests of all documents, each with its number as seed. The first pass computes it from
the sources, `verify` from the output, which must have every number at its place: so nothing is lost, doubled, changed or misplaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace

from tokmill.core.errors import UsageError
from tokmill.core.events import Committed
from tokmill.core.records import ITEM_BYTES, Counts, Cursor
from tokmill.core.text import counted
from tokmill.derive.buckets import RECORD, Buckets, sum_of_digests
from tokmill.derive.copiers import ids_of
from tokmill.derive.document_stream import slices
from tokmill.derive.engine import COMMIT_BYTES, check_counts, publish, wait_for_stage
from tokmill.derive.source import ShiftedIds, check_edge, narrowed
from tokmill.formats import make_writer, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.config import Content, Provenance
    from tokmill.core.manifest import Manifest
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.records import Tokens
    from tokmill.dataset import Ids
    from tokmill.derive.buckets import BucketState
    from tokmill.derive.source import Source
    from tokmill.output import Output, RunHistoryRecorder

MIB = 1 << 20
LEAST_BYTES = 128 * MIB
FIXED_BYTES = 88 * MIB
"""Python and numpy (56 MiB measured), and what one block takes on its way."""
_BUCKET_BYTES = 32 * MIB
"""Of a bucket: larger ones are not faster."""
_MOST_FAST_BUCKETS = 1 << 9
"""More of them take small pieces, if they need not."""
_MOST_BUCKETS = 1 << 14
PIECE_BYTES = MIB
"""Of a bucket, written at a time."""
_SCATTERED_BYTES = 1 << 30
_SCATTERED_BYTES_EACH = 2 * MIB
"""Of each bucket, between two commits of all: each costs an fsync a file."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A complete output whose documents are taken."""

    source: Source
    number: int
    """Of the source to which its documents belong."""
    first: int
    """Place in that source of its first document."""

    @property
    def n_documents(self) -> int:
        """On the training side."""
        return self.source.manifest.counts.documents_train


class BucketRun:
    """The making of one output."""

    def __init__(
        self, operands: Sequence[Operand], content: Content, output: Output, budget_bytes: int, reporter: ProgressReporter
    ) -> None:
        """content: of the output. budget_bytes: memory, from LEAST_BYTES on."""
        self._operands = operands
        self._content = content
        self._output = output
        self._reporter = reporter
        self._item_bytes = ITEM_BYTES[content.dtype]
        self._room = budget_bytes - FIXED_BYTES
        self._bucket_bytes = min(self._room // 4, _BUCKET_BYTES)
        self._state = output.segments[-1].writer if output.segments else {}
        """At the last commit."""
        self._digested = np.dtype("<u2" if content.tokenizer.n_ids <= 1 << 16 else "<u4")
        self._writer = make_writer(output, self._state, spec_of(content))
        self._next_bucket = self._state.get("next_bucket", 0)
        self._counts = output.counts
        self._uncommitted_bytes = 0
        self._position_bytes = 0
        self._unscattered_bytes = 0
        """Of that: what is not scattered in the first pass."""
        self._removable: list[int] = []
        self._held = [bytearray(), bytearray()]
        self._buckets: Buckets
        self._most_held_bytes = 0
        self.written_bytes = 0

    def _open_buckets(self, n_bytes: int, n_records: int, record_cost: int) -> None:
        """Open the buckets for so many bytes of ids, new ones or those that were begun. record_cost: memory for one, sorted."""
        n_bytes += n_records * record_cost
        # A third less than there is room for: buckets are not of one size.
        n_buckets = max(1, -(-n_bytes * 3 // (2 * self._bucket_bytes)))
        if n_buckets > _MOST_FAST_BUCKETS:
            self._bucket_bytes = min(max(self._bucket_bytes, n_bytes * 3 // (2 * _MOST_FAST_BUCKETS)), self._room // 4)
            n_buckets = min(-(-n_bytes * 3 // (2 * self._bucket_bytes)), _MOST_BUCKETS)
        # Two are held: one is sorted while the next is read.
        self._most_held_bytes = self._bucket_bytes * 3 // 2
        # A run that was killed may have written some buckets already, and have had another memory.
        committed = self._state.get("n_buckets")
        held_bytes = min(self._room // 4, 2 * _BUCKET_BYTES)
        self._buckets = Buckets.open(
            self._output.directory,
            self._content.fingerprint(),
            committed or n_buckets,
            held_bytes,
            is_fixed=committed is not None,
        )
        self._check_records(n_records * record_cost, self._buckets.state.n_buckets)

    def _check_records(self, n_bytes: int, n_buckets: int) -> None:
        """Raise UsageError where there is no room for what is read whole of a bucket. n_bytes: of the records of all, in memory."""
        of_one = n_bytes // n_buckets
        if of_one <= self._room // 2:
            return
        raise UsageError(
            f"{counted(n_buckets, 'bucket')} with {of_one // MIB:,} MiB of records each, of which two are held",
            where=f"--memory, of which {self._room // MIB:,} MiB are free for them",
            option="--memory",
            allowed=f"at least {-(-(FIXED_BYTES + 2 * of_one) // MIB):,} MiB for so many documents in so many buckets",
            next_step="run the same command again with more memory, or begin with --fresh and more buckets",
        )

    def run(self, made_from: tuple[Provenance, ...], recorder: RunHistoryRecorder, recipe: str) -> Manifest:
        """Do what is left and publish. Returns the manifest. Raises TokmillError.

        recipe: fingerprint of what `build` makes it from, or nothing.
        """
        try:
            counts = self._work()
        finally:
            if hasattr(self, "_buckets"):
                self._buckets.close()
            for operand in self._operands:
                operand.source.close()
        check_counts(self._output, self._counts, counts)
        self._writer.finish()
        self._counts = counts
        self._commit(is_last=True)
        self._output.settle()
        entries = dict(self._output.completed())
        self._reporter.progress(self._position_bytes, counts, is_last=True)
        return publish(
            self._output,
            self._content,
            entries,
            counts,
            self._reporter,
            recorder,
            made_from=made_from or msgspec.UNSET,
            documents_digest=self._buckets.digest,
            recipe=recipe or msgspec.UNSET,
            **self._more(),
        )

    def _work(self) -> Counts:
        """Do both passes. Returns the counts of the complete output."""
        raise NotImplementedError

    def _more(self) -> dict[str, Any]:
        """Return what else the manifest says."""
        return {}

    def _position(self) -> dict[str, int]:
        """Return where the second pass is, beside the buckets that are written."""
        return {}

    # The first pass.

    def _put(
        self,
        data: memoryview,
        digested: list[memoryview],
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
        numbers: NDArray[np.uint64],
        seeds: NDArray[np.uint64],
        buckets: NDArray[np.int64],
    ) -> None:
        """Put stretches of a block into buckets, those of a bucket together.

        data: ids of the block. digested: what of each stretch the digest takes. begins, ends: in ids. numbers: for the records.
        seeds: of the digests. buckets: of each, rising.
        """
        records = np.empty(len(numbers), RECORD)
        records["copy"], records["n_ids"] = numbers, ends - begins
        stretches = slices(data, begins * self._item_bytes, ends * self._item_bytes)
        listed = seeds.tolist()
        cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
        for a, b in pairwise(cuts if len(buckets) else []):
            digests = sum_of_digests(digested[a:b], listed[a:b])
            self._buckets.add(int(buckets[a]), b"".join(stretches[a:b]), records[a:b].tobytes(), digests)
        self._note(sum(map(len, stretches)))

    def _go_on(self, before_bytes: int) -> None:
        """Set the position to where this run goes on. before_bytes: of passes before the first."""
        self._unscattered_bytes = before_bytes + (self._counts.tokens_train + self._counts.tokens_val) * self._item_bytes
        self._position_bytes = self._unscattered_bytes + self._buckets.state.done_bytes

    def _is_commit_due(self) -> bool:
        """Return whether so much was put into buckets that a commit is worth its time."""
        return self._uncommitted_bytes >= max(_SCATTERED_BYTES, self._buckets.state.n_buckets * _SCATTERED_BYTES_EACH)

    def _reached(self, source: int, token: int, **more: Any) -> BucketState:
        """Return the state of the buckets with a place in the sources."""
        done_bytes = self._position_bytes - self._unscattered_bytes
        return replace(self._buckets.state, source=source, token=token, done_bytes=done_bytes, **more)

    def _commit_buckets(self, after: BucketState) -> None:
        self._buckets.commit(after)
        self._uncommitted_bytes = 0
        if not self._output.segments:
            self._commit()

    # The second pass.

    def _loaded(self) -> Iterator[tuple[int, NDArray[Any], memoryview | None]]:
        """Yield the buckets that are left: number, records, and ids, None where there is no room for them."""
        for bucket in range(self._next_bucket, self._buckets.state.n_buckets):
            fits = self._buckets.ids_bytes(bucket) <= self._most_held_bytes
            yield bucket, self._buckets.records(bucket), self._whole(bucket) if fits else None

    def _wrote_bucket(self, bucket: int, digests: int) -> None:
        """Note that a bucket is written. digests: the sum of what was. Raises DamageError if it is not what was put into it."""
        self._buckets.check(bucket, digests)
        self._next_bucket = bucket + 1
        self._removable.append(bucket)
        self._commit_some()

    def _stretches(
        self, bucket: int, data: memoryview | None, begins: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Sequence[memoryview]:
        """Return stretches of a bucket. data: all of it, None: it is too large for that. begins, lengths: in bytes."""
        if data is not None:
            return slices(data, begins, begins + lengths)
        return [self._read(bucket, a, n) for a, n in zip(begins.tolist(), lengths.tolist(), strict=True)]

    def _whole(self, bucket: int) -> memoryview:
        """Return the ids of a bucket, valid until the next but one: memory that is used again costs no page faults."""
        n_bytes = self._buckets.ids_bytes(bucket)
        if len(self._held[bucket % 2]) < n_bytes:
            self._held[bucket % 2] = bytearray(0)
            self._held[bucket % 2] = bytearray(min(n_bytes * 5 // 4, self._most_held_bytes))
        view = memoryview(self._held[bucket % 2])[:n_bytes]
        self._buckets.read_ids(bucket, 0, view)
        return view

    def _read(self, bucket: int, offset: int, n_bytes: int) -> memoryview:
        view = memoryview(bytearray(n_bytes))
        self._buckets.read_ids(bucket, offset, view)
        return view

    def _write(self, tokens: Tokens, n_documents: int) -> None:
        self._writer.append(tokens)
        n_ids = len(tokens.ids)
        self._counts += (
            Counts(tokens_val=n_ids, documents_val=n_documents)
            if tokens.is_val
            else Counts(tokens_train=n_ids, documents_train=n_documents)
        )
        self._note(tokens.ids.nbytes)
        self.written_bytes += tokens.ids.nbytes

    def _commit_some(self) -> None:
        if self._uncommitted_bytes >= COMMIT_BYTES:
            self._commit()

    def _commit(self, *, is_last: bool = False) -> None:
        """Commit what was written; what was committed before is needed in the buckets no longer."""
        self._output.settle()
        removable, self._removable = self._removable, []
        n_written = self._counts.documents_train + self._counts.documents_val
        after = Cursor(input_index=len(self._content.inputs)) if is_last else Cursor(record=n_written)
        elapsed_s, counts = self._reporter.elapsed_s, self._counts
        state = self._writer.state() | self._position()
        if hasattr(self, "_buckets"):
            state |= {"next_bucket": self._next_bucket, "n_buckets": self._buckets.state.n_buckets}

        def done(segment: int) -> None:
            for bucket in removable:
                self._buckets.remove(bucket)
            self._reporter.emit(Committed(elapsed_s=elapsed_s, segment=segment, counts=counts))

        self._output.commit(after, counts, state, self._output.elapsed_before_s + elapsed_s, done)
        self._uncommitted_bytes = 0
        wait_for_stage(self._output, lambda: self._reporter.progress(self._position_bytes, self._counts, is_last=True))

    def _note(self, n_bytes: int) -> None:
        self._uncommitted_bytes += n_bytes
        self._position_bytes += n_bytes
        self._reporter.progress(self._position_bytes, self._counts)

    def _ids_of(self, operand: Operand, side: str) -> ShiftedIds:
        content = operand.source.content
        eot_id, ids = content.tokenizer.eot_id, ids_of(operand.source, side)
        check_edge(ids, eot_id, content.eot, str(operand.source.directory), is_bare=False)
        return ShiftedIds(ids, eot_id, content.eot, self._content.eot)

    def _fitting(self, operand: Operand, ids: Ids) -> Ids:
        return narrowed(ids, self._content.dtype, str(operand.source.directory))


def groups(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield stretches of consecutive sizes whose sums are up to `most`, or of one that is larger."""
    ends, begin = np.cumsum(sizes), 0
    while begin < len(sizes):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield begin, end
        begin = end
