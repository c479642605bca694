"""Makes an output whose documents are those of complete outputs in another order, some of them perhaps several times.

Two passes. The first reads the sources front to back and puts each document into a bucket (`derive/buckets.py`) by the leading bits
of the number that it is sorted by. The second sorts one bucket after the other and writes it through the writer of the format;
what is committed is removed from the buckets. So memory does not grow with the corpus, and the disk holds the ids once more. The
validation side is not touched: it is that of the sources, one after the other.

Nothing of this can be seen in the output, which is the documents sorted by `document_order.order_keys`. For proof its manifest has
a sum over all documents: the digest of a document's ids, with the number that it is sorted by as seed. The first pass computes it
from the sources, `verify` from the output, where the n-th document must have the n-th number: so no document is lost, doubled,
changed or at another place.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from tokmill.core.document_order import copies, order_keys
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.events import Committed
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.output_spec import SIDES
from tokmill.core.records import ITEM_BYTES, Counts, Cursor, Tokens
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.core.version import __version__
from tokmill.derive.buckets import RECORD, RECORD_COST, Buckets, sum_of_digests
from tokmill.derive.copiers import ids_of
from tokmill.derive.document_stream import ahead, pieces_of, slices, whole_documents, without_mark
from tokmill.derive.engine import COMMIT_BYTES
from tokmill.derive.source import ShiftedIds, check_edge, narrowed
from tokmill.formats import make_writer, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.arrangement import Arrangement
    from tokmill.core.config import Content, Provenance
    from tokmill.core.progress import ProgressReporter
    from tokmill.dataset import Ids
    from tokmill.derive.source import Source
    from tokmill.output import Output, RunHistoryRecorder

MIB = 1 << 20
LEAST_BYTES = 128 * MIB
_FIXED_BYTES = 88 * MIB
"""Python and numpy (56 MiB measured), and what one block takes on its way."""
_BUCKET_BYTES = 32 * MIB
"""Of a bucket: larger ones are not faster."""
_MOST_FAST_BUCKETS = 1 << 9
"""More of them take small pieces, if they need not."""
_MOST_BUCKETS = 1 << 14
_PIECE_BYTES = MIB
"""Of a bucket, written at a time."""
_SCATTERED_BYTES = 1 << 30
_SCATTERED_BYTES_EACH = 2 * MIB
"""Of each bucket, between two commits of all: each costs an fsync a file."""
_MOST_IDS = 1 << 32


@dataclass(frozen=True, slots=True)
class Operand:
    """A complete output whose documents are arranged."""

    source: Source
    number: int
    """Of the source in the arrangement to which its documents belong."""
    first: int
    """Place in that source of its first document."""

    @property
    def n_documents(self) -> int:
        """On the training side."""
        return self.source.manifest.counts.documents_train


class Arranging:
    """The making of one output."""

    def __init__(
        self, operands: Sequence[Operand], content: Content, output: Output, budget_bytes: int, reporter: ProgressReporter
    ) -> None:
        """content: of the output. budget_bytes: memory, from LEAST_BYTES on."""
        assert content.origin
        assert content.origin.arranged
        self._operands = operands
        self._content = content
        self._arrangement: Arrangement = content.origin.arranged
        self._output = output
        self._reporter = reporter
        self._item_bytes = ITEM_BYTES[content.dtype]
        room = budget_bytes - _FIXED_BYTES
        self._bucket_bytes = min(room // 4, _BUCKET_BYTES)
        n_tokens = sum(source.taken_tokens for source in self._arrangement.sources)
        n_bytes = n_tokens * self._item_bytes + self._arrangement.n_documents * RECORD_COST
        # A third less than there is room for: buckets are not of one size.
        n_buckets = max(1, -(-n_bytes * 3 // (2 * self._bucket_bytes)))
        if n_buckets > _MOST_FAST_BUCKETS:
            self._bucket_bytes = min(max(self._bucket_bytes, n_bytes * 3 // (2 * _MOST_FAST_BUCKETS)), room // 4)
            n_buckets = min(-(-n_bytes * 3 // (2 * self._bucket_bytes)), _MOST_BUCKETS)
        state = output.segments[-1].writer if output.segments else {}
        # A run that was killed may have written some buckets already, and have had another memory.
        n_buckets = state.get("n_buckets", n_buckets)
        self._buckets = Buckets.open(output.directory, content.fingerprint(), n_buckets, min(room // 4, 2 * _BUCKET_BYTES))
        self._taken_bytes = n_tokens * self._item_bytes
        self._digested = np.dtype("<u2" if content.tokenizer.n_ids <= 1 << 16 else "<u4")
        self._writer = make_writer(output, state, spec_of(content))
        self._val = (state.get("val_operand", 0), state.get("val_token", 0))
        self._next_bucket = state.get("next_bucket", 0)
        self._counts = output.counts
        self._uncommitted_bytes = 0
        self._removable: list[int] = []
        self._held = [bytearray(), bytearray()]
        self.written_bytes = 0

    def run(self, counts: Counts, made_from: tuple[Provenance, ...], recorder: RunHistoryRecorder, recipe: str) -> Manifest:
        """Do what is left and publish. Returns the manifest. Raises TokmillError.

        counts: of the complete output. recipe: fingerprint of what `build` makes it from, or nothing.
        """
        total_bytes = 2 * self._taken_bytes + counts.tokens_val * self._item_bytes
        done_bytes = self._counts.tokens_val * self._item_bytes + self._buckets.state.done_bytes
        done_bytes += self._counts.tokens_train * self._item_bytes
        self._reporter.started(total_bytes, done_bytes)
        self._position_bytes = done_bytes
        try:
            self._scatter_all()
            self._write_val()
            for loaded in ahead(self._loaded()):
                self._write_bucket(*loaded)
        finally:
            for operand in self._operands:
                operand.source.close()
        self._check_counts(counts)
        self._writer.finish()
        self._counts = counts
        self._commit(is_last=True)
        self._output.settle()
        entries = dict(self._output.completed())
        self._reporter.progress(self._position_bytes, counts, is_last=True)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            tokmill_version=__version__,
            fingerprint=self._content.fingerprint(),
            content=self._content,
            files=entries,
            segments=published(self._output.segments, entries),
            counts=counts,
            elapsed_s=round(self._output.elapsed_before_s + self._reporter.elapsed_s, 3),
            peak_rss_bytes=peak_rss_bytes(),
            made_from=made_from or msgspec.UNSET,
            documents_digest=self._buckets.digest,
            recipe=recipe or msgspec.UNSET,
            history=recorder.history(),
        )
        self._output.publish(manifest)
        return manifest

    def _check_counts(self, expected: Counts) -> None:
        """Raise DamageError unless as much was written as there must be."""
        for side in SIDES:
            for unit in ("documents", "tokens"):
                found, wanted = (getattr(counts, f"{unit}_{side}") for counts in (self._counts, expected))
                if found != wanted:
                    raise DamageError(
                        f"work in progress is damaged: {found:,} {unit} of {side} were written",
                        where=str(self._output.directory),
                        allowed=f"{wanted:,}",
                        next_step="run the same command again with --fresh",
                    )

    # The first pass.

    def _scatter_all(self) -> None:
        """Put the documents of all sources into buckets."""
        state = self._buckets.state
        first, token, document = state.source, state.token, state.document
        for number in range(first, len(self._operands)):
            self._scatter_source(number, token, document)
            token = document = 0

    def _scatter_source(self, number: int, token: int, document: int) -> None:
        operand = self._operands[number]
        ids = self._ids_of(operand, "train")
        most = max(_SCATTERED_BYTES, self._buckets.state.n_buckets * _SCATTERED_BYTES_EACH)
        blocks = ahead(whole_documents(ids, token), waits=lambda block: not len(block[1]))
        for block, ends in blocks:
            if len(ends):
                self._scatter(operand, self._fitting(operand, block), ends, document)
                token, document = token + len(block), document + len(ends)
            else:
                token, document = token + self._scatter_long(operand, ids, token, document), document + 1
            if self._uncommitted_bytes >= most and token < ids.n_tokens:
                self._commit_buckets(number, token, document)
        if document != operand.n_documents:
            raise operand.source.count_error("train", document)
        operand.source.finish()
        self._buckets.flush(number + 1, 0, 0, self._position_bytes)

    def _scatter(self, operand: Operand, ids: Ids, ends: NDArray[np.int64], first: int) -> None:
        """Put whole documents into buckets. first: number of the first on its side."""
        index, numbers = copies(self._arrangement, operand.number, operand.first + first, len(ends))
        keys = order_keys(self._arrangement, numbers)
        buckets = self._bucket_of(keys)
        order = np.argsort(buckets, kind="stable")
        index, numbers, keys, buckets = index[order], numbers[order], keys[order], buckets[order]
        begins = np.concatenate([[0], ends[:-1]])
        records = np.empty(len(index), RECORD)
        records["copy"], records["n_ids"] = numbers, (ends - begins)[index]
        documents = slices(ids.view(np.uint8).data, begins[index] * self._item_bytes, ends[index] * self._item_bytes)
        digested = self._digested_of(ids, begins[index], ends[index])
        seeds = keys.tolist()
        cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
        for a, b in pairwise(cuts if len(buckets) else []):
            digests = sum_of_digests(digested[a:b], seeds[a:b])
            self._buckets.add(int(buckets[a]), b"".join(documents[a:b]), records[a:b].tobytes(), digests)
        self._note(sum(map(len, documents)))

    def _scatter_long(self, operand: Operand, ids: ShiftedIds, token: int, document: int) -> int:
        """Put a document into buckets that is longer than a block, piece by piece. Return its ids."""
        _, numbers = copies(self._arrangement, operand.number, operand.first + document, 1)
        n_ids = sum(len(block) for block, _, _ in pieces_of(ids, token))
        if n_ids >= _MOST_IDS:
            raise UsageError(
                f"a document of {n_ids:,} ids",
                where=f"{operand.source.directory}, document {document + 1:,} of train",
                allowed=f"documents of less than {_MOST_IDS:,} ids",
                next_step="tokenize again with a --separator that ends documents earlier",
            )
        for copy, key in zip(numbers, order_keys(self._arrangement, numbers), strict=True):
            bucket, digest = int(self._bucket_of(np.array([key]))[0]), xxhash.xxh3_128(seed=int(key))
            for block, is_first, is_last in pieces_of(ids, token):
                fitting = self._fitting(operand, block)
                self._buckets.add(bucket, fitting.tobytes(), b"", 0)
                digest.update(without_mark(fitting, self._content.eot, is_first, is_last).astype(self._digested).data)
                self._note(fitting.nbytes)
            record = np.array([(copy, n_ids)], RECORD)
            self._buckets.add(bucket, b"", record.tobytes(), digest.intdigest())
        return n_ids

    def _bucket_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        n_buckets = np.uint64(self._buckets.state.n_buckets)
        return ((keys >> np.uint64(32)) * n_buckets >> np.uint64(32)).astype(np.int64)

    def _commit_buckets(self, number: int, token: int, document: int) -> None:
        self._buckets.commit(number, token, document, self._position_bytes)
        self._uncommitted_bytes = 0
        if not self._output.segments:
            self._commit()

    # The second pass.

    def _write_val(self) -> None:
        """Write the validation side: the sources' own, in order."""
        first, token = self._val
        for number in range(first, len(self._operands)):
            operand = self._operands[number]
            ids = self._ids_of(operand, "val")
            for block, ends in ids.blocks(token, ids.n_tokens):
                self._write(Tokens(is_val=True, ids=self._fitting(operand, block), ends=ends))
                token += len(block)
                self._val = (number, token)
                self._commit_some()
            operand.source.finish()
            self._val, token = (number + 1, 0), 0

    def _loaded(self) -> Iterator[tuple[int, NDArray[Any], memoryview | None]]:
        """Yield the buckets that are left: number, records, and ids, None where there is no room for them."""
        for bucket in range(self._next_bucket, self._buckets.state.n_buckets):
            # Half of the room: one is sorted while the next is read.
            fits = self._buckets.ids_bytes(bucket) <= 2 * self._bucket_bytes
            yield bucket, self._buckets.records(bucket), self._whole(bucket) if fits else None

    def _write_bucket(self, bucket: int, records: NDArray[Any], data: memoryview | None) -> None:
        """Sort a bucket and write it. data: its ids, None: they are read piece by piece."""
        keys = order_keys(self._arrangement, records["copy"])
        order = np.argsort(keys, kind="stable")
        lengths = records["n_ids"].astype(np.int64)
        begins = (np.cumsum(lengths) - lengths)[order]
        lengths, keys = lengths[order], keys[order]
        del records, order
        digests = 0
        for a, b in _groups(lengths * self._item_bytes, _PIECE_BYTES):
            if data is None and lengths[a] * self._item_bytes > _PIECE_BYTES:
                digests += self._write_long(bucket, int(begins[a]), int(lengths[a]), int(keys[a]))
                continue
            parts = self._documents(bucket, data, begins[a:b] * self._item_bytes, lengths[a:b] * self._item_bytes)
            ids = np.frombuffer(b"".join(parts), self._content.dtype)
            ends = np.cumsum(lengths[a:b])
            digests += sum_of_digests(self._digested_of(ids, ends - lengths[a:b], ends), keys[a:b].tolist())
            self._write(Tokens(is_val=False, ids=ids, ends=ends))
        self._buckets.check(bucket, digests)
        self._next_bucket = bucket + 1
        self._removable.append(bucket)
        self._commit_some()

    def _documents(
        self, bucket: int, data: memoryview | None, begins: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Sequence[memoryview | bytes]:
        """Return documents of a bucket. data: all of it, None: it is too large for that. begins, lengths: in bytes."""
        if data is not None:
            return slices(data, begins, begins + lengths)
        return [self._read(bucket, a, n) for a, n in zip(begins.tolist(), lengths.tolist(), strict=True)]

    def _whole(self, bucket: int) -> memoryview:
        """Return the ids of a bucket, valid until the next but one: memory that is used again costs no page faults."""
        n_bytes = self._buckets.ids_bytes(bucket)
        if len(self._held[bucket % 2]) < n_bytes:
            self._held[bucket % 2] = bytearray(0)
            self._held[bucket % 2] = bytearray(n_bytes * 5 // 4)
        view = memoryview(self._held[bucket % 2])[:n_bytes]
        self._buckets.read_ids(bucket, 0, view)
        return view

    def _read(self, bucket: int, offset: int, n_bytes: int) -> memoryview:
        view = memoryview(bytearray(n_bytes))
        self._buckets.read_ids(bucket, offset, view)
        return view

    def _write_long(self, bucket: int, begin: int, n_ids: int, key: int) -> int:
        """Write a document of a bucket piece by piece. Return its digest."""
        digest, step = xxhash.xxh3_128(seed=key), _PIECE_BYTES // self._item_bytes
        for at in range(0, n_ids, step):
            n = min(step, n_ids - at)
            data = self._read(bucket, (begin + at) * self._item_bytes, n * self._item_bytes)
            ids = np.frombuffer(data, self._content.dtype)
            is_last = at + n == n_ids
            digest.update(without_mark(ids, self._content.eot, at == 0, is_last).astype(self._digested).data)
            self._write(Tokens(is_val=False, ids=ids, ends=np.array([n] if is_last else [], np.int64)))
        return digest.intdigest()

    def _write(self, tokens: Tokens) -> None:
        self._writer.append(tokens)
        n_ids, n_documents = len(tokens.ids), len(tokens.ends)
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
        state = {
            "val_operand": self._val[0],
            "val_token": self._val[1],
            "next_bucket": self._next_bucket,
            "n_buckets": self._buckets.state.n_buckets,
        }

        def done(segment: int) -> None:
            for bucket in removable:
                self._buckets.remove(bucket)
            self._reporter.emit(Committed(elapsed_s=elapsed_s, segment=segment, counts=counts))

        self._output.commit(after, counts, self._writer.state() | state, self._output.elapsed_before_s + elapsed_s, done)
        self._uncommitted_bytes = 0

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

    def _digested_of(self, ids: Ids, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[memoryview]:
        """Return the ids of documents without end-of-text ids, as the digests take them: in no output's own dtype."""
        data = ids.astype(self._digested, copy=False).view(np.uint8).data
        is_after, size = self._content.eot == "after", self._digested.itemsize
        return slices(data, (begins + (not is_after)) * size, (ends - is_after) * size)


def _groups(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield stretches of consecutive sizes whose sums are up to `most`, or of one that is larger."""
    ends, begin = np.cumsum(sizes), 0
    while begin < len(sizes):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield begin, end
        begin = end
