"""Makes an output whose documents are those of complete outputs in another order, some of them perhaps several times.

Documents go through buckets (`derive/bucket_run.py`) by the leading bits of the number that they are sorted by. The validation side
is not touched: it is that of the sources, one after the other. Nothing of the way can be seen in the output, which is the documents
sorted by `document_order.order_keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tokmill.core.document_order import copies, order_keys
from tokmill.core.errors import UsageError
from tokmill.core.records import Tokens
from tokmill.derive import bucket_run
from tokmill.derive.bucket_run import BucketRun, groups
from tokmill.derive.buckets import RECORD, RECORD_COST, sum_of_digests
from tokmill.derive.document_stream import ahead, pieces_of, slices, whole_documents, without_mark
from tokmill.derive.spread.portions import remove_portions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.arrangement import Arrangement
    from tokmill.core.config import Content
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.records import Counts
    from tokmill.dataset import Ids
    from tokmill.derive.bucket_run import Operand
    from tokmill.derive.source import ShiftedIds
    from tokmill.output import Output

_MOST_IDS = 1 << 32


class Arranging(BucketRun):
    """The making of one output."""

    def __init__(
        self,
        operands: Sequence[Operand],
        content: Content,
        output: Output,
        budget_bytes: int,
        reporter: ProgressReporter,
        counts: Counts,
        on_scattered: Callable[[], None] | None = None,
    ) -> None:
        """counts: of the complete output. The rest as of BucketRun.

        on_scattered: called when the training sides are needed no longer, whatever happens; they are closed then.
        """
        super().__init__(operands, content, output, budget_bytes, reporter)
        assert content.origin
        assert content.origin.arranged
        self._arrangement: Arrangement = content.origin.arranged
        self._expected = counts
        self._on_scattered = on_scattered
        n_tokens = sum(source.taken_tokens for source in self._arrangement.sources)
        self._taken_bytes = n_tokens * self._item_bytes
        self._open_buckets(self._taken_bytes, self._arrangement.n_documents, RECORD_COST)
        self._val = (self._state.get("val_operand", 0), self._state.get("val_token", 0))

    def _work(self) -> Counts:
        """Scatter the training side, write the validation side, then the buckets."""
        total_bytes = 2 * self._taken_bytes + self._expected.tokens_val * self._item_bytes
        self._go_on(0)
        self._reporter.started(total_bytes, self._position_bytes)
        # Those of a run on several machines: here is room for one kind of scratch only.
        remove_portions(self._output.directory)
        self._scatter_all()
        if self._on_scattered is not None:
            self._commit_buckets(self._reached(len(self._operands), 0, document=0))
            self._output.settle()
            for operand in self._operands:
                operand.source.close()
            self._on_scattered()
        self._write_val()
        for loaded in ahead(self._loaded()):
            self._write_bucket(*loaded)
        return self._expected

    def _position(self) -> dict[str, int]:
        return {"val_operand": self._val[0], "val_token": self._val[1]}

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
        blocks = ahead(whole_documents(ids, token), waits=lambda block: not len(block[1]))
        for block, ends in blocks:
            if len(ends):
                self._scatter(operand, self._fitting(operand, block), ends, document)
                token, document = token + len(block), document + len(ends)
            else:
                token, document = token + self._scatter_long(operand, ids, token, document), document + 1
            if self._is_commit_due() and token < ids.n_tokens:
                self._commit_buckets(self._reached(number, token, document=document))
        if document != operand.n_documents:
            raise operand.source.count_error("train", document)
        operand.source.finish()
        self._buckets.flush(self._reached(number + 1, 0, document=0))

    def _scatter(self, operand: Operand, ids: Ids, ends: NDArray[np.int64], first: int) -> None:
        """Put whole documents into buckets. first: number of the first on its side."""
        index, numbers = copies(self._arrangement, operand.number, operand.first + first, len(ends))
        keys = order_keys(self._arrangement, numbers)
        buckets = self._bucket_of(keys)
        order = np.argsort(buckets, kind="stable")
        index, numbers, keys, buckets = index[order], numbers[order], keys[order], buckets[order]
        begins, ends = np.concatenate([[0], ends[:-1]])[index], ends[index]
        self._put(ids.view(np.uint8).data, self._digested_of(ids, begins, ends), begins, ends, numbers, keys, buckets)

    def _scatter_long(self, operand: Operand, ids: ShiftedIds, token: int, document: int) -> int:
        """Put a document into buckets that is longer than a block, piece by piece. Return its ids."""
        _, numbers = copies(self._arrangement, operand.number, operand.first + document, 1)
        n_ids = sum(len(block) for block, _, _ in pieces_of(ids, token))
        if n_ids >= _MOST_IDS:
            raise UsageError(
                f"a document of {n_ids:,} ids",
                where=f"{operand.source.directory}, document {document:,} of train",
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

    # The second pass.

    def _write_val(self) -> None:
        """Write the validation side: the sources' own, in order."""
        first, token = self._val
        for number in range(first, len(self._operands)):
            operand = self._operands[number]
            ids = self._ids_of(operand, "val")
            for block, ends in ids.blocks(token, ids.n_tokens):
                self._write(Tokens(is_val=True, ids=self._fitting(operand, block), ends=ends), len(ends))
                token += len(block)
                self._val = (number, token)
                self._commit_some()
            operand.source.finish()
            self._val, token = (number + 1, 0), 0

    def _write_bucket(self, bucket: int, records: NDArray[Any], data: memoryview | None) -> None:
        """Sort a bucket and write it. data: its ids, None: they are read piece by piece."""
        keys = order_keys(self._arrangement, records["copy"])
        order = np.argsort(keys, kind="stable")
        lengths = records["n_ids"].astype(np.int64)
        begins = (np.cumsum(lengths) - lengths)[order]
        lengths, keys = lengths[order], keys[order]
        del records, order
        digests = 0
        for place, tokens, digest in ahead(self._sorted(bucket, data, begins, lengths, keys), waits=lambda item: item[1] is None):
            if tokens is None:
                digests += self._write_long(bucket, int(begins[place]), int(lengths[place]), int(keys[place]))
            else:
                digests += digest
                self._write(tokens, len(tokens.ends))
        self._wrote_bucket(bucket, digests)

    def _sorted(
        self,
        bucket: int,
        data: memoryview | None,
        begins: NDArray[np.int64],
        lengths: NDArray[np.int64],
        keys: NDArray[np.uint64],
    ) -> Iterator[tuple[int, Tokens | None, int]]:
        """Yield documents of a bucket, some at a time: place of the first, all of them, and the sum of their digests.

        data: as of `_write_bucket`. begins, lengths, keys: of its documents, in order. In place of a document that is larger than a
        piece comes None.
        """
        for a, b in groups(lengths * self._item_bytes + RECORD_COST, bucket_run.PIECE_BYTES):
            if data is None and lengths[a] * self._item_bytes > bucket_run.PIECE_BYTES:
                yield a, None, 0
                continue
            parts = self._stretches(bucket, data, begins[a:b] * self._item_bytes, lengths[a:b] * self._item_bytes)
            ids = np.frombuffer(b"".join(parts), self._content.dtype)
            ends = np.cumsum(lengths[a:b])
            digests = sum_of_digests(self._digested_of(ids, ends - lengths[a:b], ends), keys[a:b].tolist())
            yield a, Tokens(is_val=False, ids=ids, ends=ends), digests

    def _write_long(self, bucket: int, begin: int, n_ids: int, key: int) -> int:
        """Write a document of a bucket piece by piece. Return its digest."""
        digest, step = xxhash.xxh3_128(seed=key), bucket_run.PIECE_BYTES // self._item_bytes
        for at in range(0, n_ids, step):
            n = min(step, n_ids - at)
            data = self._read(bucket, (begin + at) * self._item_bytes, n * self._item_bytes)
            ids = np.frombuffer(data, self._content.dtype)
            is_last = at + n == n_ids
            digest.update(without_mark(ids, self._content.eot, at == 0, is_last).astype(self._digested).data)
            self._write(Tokens(is_val=False, ids=ids, ends=np.array([n] if is_last else [], np.int64)), int(is_last))
        return digest.intdigest()

    def _digested_of(self, ids: Ids, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[memoryview]:
        """Return the ids of documents without end-of-text ids, as the digests take them: in no output's own dtype."""
        data = ids.astype(self._digested, copy=False).view(np.uint8).data
        is_after, size = self._content.eot == "after", self._digested.itemsize
        return slices(data, (begins + (not is_after)) * size, (ends - is_after) * size)
