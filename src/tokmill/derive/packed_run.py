"""Makes an output of sequences of one length from the documents of complete outputs: whole where they fit, then padding.

Three passes over the ids. The first counts the pieces of each length, for the plan (`derive/bins.py`) follows from these numbers
alone. The second gives each piece its number, and the third writes (`derive/bucket_run.py`); both sides are packed, each by itself.

The number of a piece is the sequence in which it lies and its place there. The r-th piece of a length takes the place that a
bijection chosen by seed and length gives r among all places for that length, so what lies together is random, though the plan goes
by length; two more bijections put the sequences into order, and what lies in each. So no piece needs to know of another, and a
bucket is a stretch of sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace

from tokmill.core.bounded import Natural
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.keys import Purpose, key_of, keys_at
from tokmill.core.output_spec import SIDES
from tokmill.core.packing import MOST_SEQUENCE, MOST_SEQUENCES, PackedSide
from tokmill.core.permutation import permute
from tokmill.core.records import Counts, Tokens
from tokmill.derive import bucket_run
from tokmill.derive.bins import Bins
from tokmill.derive.bucket_run import BucketRun, groups
from tokmill.derive.buckets import RECORD_COST, load_state, save_state, sum_of_digests
from tokmill.derive.document_stream import ahead, slices
from tokmill.derive.pieces import MOST_PIECES, Pieces, pieces_from
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.config import Content
    from tokmill.core.packing import Packing
    from tokmill.core.progress import ProgressReporter
    from tokmill.dataset import Ids
    from tokmill.derive.bucket_run import Operand
    from tokmill.output import Output

_MEASURED_BYTES = 4 << 30
"""Of ids, read between two commits of the first pass."""
SLOT_BITS = MOST_SEQUENCE.bit_length() - 1


class MeasuredSide(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of a side so far."""

    lengths: dict[int, Natural] = {}
    """Pieces of each length, as of the last commit."""
    tokens: Natural = 0
    documents: Natural = 0
    """Whose end-of-text id is kept."""
    source_documents: Natural = 0
    cut: Natural = 0
    cut_by_windows: Natural = 0
    dropped_tokens: Natural = 0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the first pass has counted, and where it goes on."""

    fingerprint: str
    """Of the output."""
    sides: dict[str, MeasuredSide]
    part: Natural = 0
    """The side of an operand to go on with."""
    token: Natural = 0
    is_inside: bool = False
    before: Natural = 0
    """Tokens of that side of the operands before."""


class PackedRun(BucketRun):
    """The making of one output."""

    def __init__(
        self,
        operands: Sequence[Operand],
        content: Content,
        output: Output,
        budget_bytes: int,
        reporter: ProgressReporter,
        check_disk: Callable[[Counts], None],
    ) -> None:
        """check_disk: raises DiskFullError where an output of so many tokens will not fit. The rest as of BucketRun."""
        super().__init__(operands, content, output, budget_bytes, reporter)
        assert content.packing
        self._packing: Packing = content.packing
        self._check_disk = check_disk
        self._parts = [(side, operand) for side in ("val", "train") for operand in operands]
        """In the order in which they are written."""
        self._lengths: dict[str, NDArray[np.int64]] = {}
        """Pieces of each length that were counted, from 0 to that of a sequence, by side."""
        self._bins: dict[str, Bins] = {}
        self._first: dict[str, int] = {}
        """Number of the first sequence of each side."""
        self._n_sequences = 0
        self._taken: dict[str, NDArray[np.int64]] = {}
        """Pieces of each length that there is which have their number, by side."""
        self._sides: dict[str, PackedSide] = {}

    def _work(self) -> Counts:
        """Count, plan, scatter, write."""
        total_bytes = sum(self._n_tokens(part) for part in self._parts) * self._item_bytes
        self._reporter.started(3 * total_bytes, 0)
        measured = self._measured()
        self._plan(measured)
        counts = self._counts_of()
        n_bytes, n_pieces = (
            self._n_sequences * self._packing.sequence * self._item_bytes,
            sum(s.pieces for s in self._sides.values()),
        )
        if not self._output.segments:
            self._check_disk(counts)
        self._open_buckets(n_bytes, n_pieces, RECORD_COST)
        self._go_on(total_bytes)
        self._scatter_all()
        for bucket in ahead(self._loaded()):
            self._write_bucket(*bucket)
        return counts

    def _n_tokens(self, part: tuple[str, Operand]) -> int:
        side, operand = part
        return int(getattr(operand.source.manifest.counts, f"tokens_{side}"))

    def _more(self) -> dict[str, Any]:
        return {"packed": self._sides}

    def _pieces(self, part: int, token: int, *, is_inside: bool) -> Iterator[Pieces]:
        """Yield the pieces of a side of an operand, read ahead."""
        side, operand = self._parts[part]
        return ahead(pieces_from(self._ids_of(operand, side), token, self._packing.sequence, is_inside=is_inside))

    # What there is.

    def _measured(self) -> Measured:
        """Return how many pieces of each length there are: read, or as far as it was read before."""
        path, fingerprint = growing_path(self._output.directory, "lengths"), self._content.fingerprint()
        measured = load_state(path, Measured)
        if measured is None or measured.fingerprint != fingerprint:
            measured = Measured(fingerprint=fingerprint, sides=dict.fromkeys(SIDES, MeasuredSide()))
        for side in SIDES:
            self._lengths[side] = np.zeros(self._packing.sequence + 1, np.int64)
            for length, n in measured.sides[side].lengths.items():
                self._lengths[side][length] = n
        unsaved_bytes = 0
        for part in range(measured.part, len(self._parts)):
            side, operand = self._parts[part]
            for pieces in self._pieces(part, measured.token, is_inside=measured.is_inside):
                self._check_padding(operand, pieces)
                sides = measured.sides | {side: self._added(side, measured.sides[side], pieces, measured.before)}
                measured = replace(measured, sides=sides, token=pieces.token, is_inside=pieces.is_inside)
                self._note(pieces.ids.nbytes)
                unsaved_bytes += pieces.ids.nbytes
                if unsaved_bytes >= _MEASURED_BYTES:
                    self._save_measured(measured)
                    unsaved_bytes = 0
            self._check_documents(part, measured)
            operand.source.finish()
            is_next = part + 1 < len(self._parts) and self._parts[part + 1][0] == side
            before = measured.before + self._n_tokens(self._parts[part]) if is_next else 0
            measured = replace(measured, part=part + 1, token=0, is_inside=False, before=before)
        self._save_measured(measured)
        return measured

    def _save_measured(self, measured: Measured) -> None:
        """Save what was counted so far. Nothing was written yet: commit, so that the state directory is kept when this run ends."""
        lengths = np.arange(self._packing.sequence + 1)
        sides = {side: replace(each, lengths=_sparse(lengths, self._lengths[side])) for side, each in measured.sides.items()}
        save_state(growing_path(self._output.directory, "lengths"), replace(measured, sides=sides))
        if not self._output.segments:
            self._commit()

    def _added(self, side: str, measured: MeasuredSide, pieces: Pieces, before: int) -> MeasuredSide:
        """Count pieces. Their lengths are counted in an array: a list would be made of as many numbers as a sequence has."""
        sequence, kept = self._packing.sequence, pieces.kept(self._packing.drop, self._packing.sequence)
        lengths = pieces.lengths[kept]
        found, counts = np.unique(lengths, return_counts=True)
        self._lengths[side][found] += counts
        n_tokens = int(lengths.sum())
        has_mark = pieces.is_last if self._content.eot == "after" else pieces.is_first
        return MeasuredSide(
            tokens=measured.tokens + n_tokens,
            documents=measured.documents + int(np.count_nonzero(kept & has_mark)),
            source_documents=measured.source_documents + int(np.count_nonzero(pieces.is_last)),
            cut=measured.cut + pieces.n_cut(),
            cut_by_windows=measured.cut_by_windows + pieces.n_cut_by_windows(sequence, before),
            dropped_tokens=measured.dropped_tokens + len(pieces.ids) - n_tokens,
        )

    def _check_padding(self, operand: Operand, pieces: Pieces) -> None:
        """Raise UsageError if the padding id is in a document: it could not be told from padding."""
        n = int(np.count_nonzero(pieces.ids == self._packing.pad_id))
        if n:
            raise UsageError(
                f"the id for padding, {self._packing.pad_id:,}, is in the documents",
                where=f"{operand.source.directory}: {n:,} times in {len(pieces.ids):,} tokens",
                option="--pad-id",
                allowed="an id that no document has, so that padding can be told from text",
                next_step="leave --pad-id out: there is an id that no text has; or give another",
            )

    def _check_documents(self, part: int, measured: Measured) -> None:
        """Raise DamageError unless a side of the sources so far has as many documents as their manifests say."""
        side, operand = self._parts[part]
        expected = sum(getattr(o.source.manifest.counts, f"documents_{side}") for s, o in self._parts[: part + 1] if s == side)
        found = measured.sides[side].source_documents
        if found != expected:
            raise operand.source.count_error(side, found - expected + getattr(operand.source.manifest.counts, f"documents_{side}"))

    def _plan(self, measured: Measured) -> None:
        """Put the pieces into sequences."""
        sequence = self._packing.sequence
        for side in ("val", "train"):
            found = measured.sides[side]
            self._bins[side] = bins = Bins(self._lengths.pop(side))
            self._first[side], self._n_sequences = self._n_sequences, self._n_sequences + bins.n_bins
            self._taken[side] = np.zeros(len(bins.lengths), np.int64)
            self._sides[side] = PackedSide(
                sequences=bins.n_bins,
                documents=found.documents,
                pieces=int(bins.counts.sum()),
                padding=bins.n_bins * sequence - found.tokens,
                cut=found.cut,
                cut_by_windows=found.cut_by_windows,
                source_documents=found.source_documents,
                dropped_tokens=found.dropped_tokens,
            )
        if self._n_sequences > MOST_SEQUENCES:
            raise UsageError(
                f"{self._n_sequences:,} sequences",
                option="--sequence",
                allowed=f"up to {MOST_SEQUENCES:,}",
                next_step="give a larger --sequence",
            )

    def _counts_of(self) -> Counts:
        """Return the counts of the complete output; padding counts as tokens, for it is in the files."""
        counts = sum((operand.source.manifest.counts for operand in self._operands), Counts())
        train, val = (self._sides[side] for side in ("train", "val"))
        n_left_out = sum(each.source_documents - each.documents for each in (train, val))
        return replace(
            counts,
            documents=counts.documents - n_left_out,
            documents_train=train.documents,
            documents_val=val.documents,
            tokens_train=train.sequences * self._packing.sequence,
            tokens_val=val.sequences * self._packing.sequence,
        )

    # Where each piece goes.

    def _scatter_all(self) -> None:
        """Put all pieces into buckets."""
        state = self._buckets.state
        token, is_inside = state.token, state.is_inside
        for name, counted in state.numbers.items():
            for length, n in counted.items():
                self._taken[name][np.searchsorted(self._bins[name].lengths, length)] = n
        for part in range(state.source, len(self._parts)):
            side, operand = self._parts[part]
            for pieces in self._pieces(part, token, is_inside=is_inside):
                self._scatter(side, operand, pieces)
                if self._is_commit_due():
                    numbers = {name: _sparse(self._bins[name].lengths, taken) for name, taken in self._taken.items()}
                    self._commit_buckets(self._reached(part, pieces.token, is_inside=pieces.is_inside, numbers=numbers))
            operand.source.finish()
            token, is_inside = 0, False
        self._buckets.flush(self._reached(len(self._parts), 0, is_inside=False))

    def _scatter(self, side: str, operand: Operand, pieces: Pieces) -> None:
        kept = pieces.kept(self._packing.drop, self._packing.sequence)
        begins, ends = pieces.begins[kept], pieces.ends[kept]
        lengths = ends - begins
        kinds = self._bins[side].kinds(lengths)
        self._check_counted(side, operand, lengths, kinds)
        numbers = self._numbers(side, kinds, _ranks(kinds, self._taken[side]))
        buckets = (numbers >> np.uint64(SLOT_BITS)).astype(np.int64) * self._buckets.state.n_buckets // max(1, self._n_sequences)
        order = np.argsort(buckets, kind="stable")
        begins, ends, numbers = begins[order], ends[order], numbers[order]
        ids = self._fitting(operand, pieces.ids)
        self._put(ids.view(np.uint8).data, self._digested_of(ids, begins, ends), begins, ends, numbers, numbers, buckets[order])

    def _check_counted(self, side: str, operand: Operand, lengths: NDArray[np.int64], kinds: NDArray[np.int64]) -> None:
        """Raise DamageError for more pieces of a length than were counted: the plan has no place for them."""
        bins = self._bins[side]
        if (kinds < len(bins.lengths)).all() and (bins.lengths[kinds] == lengths).all():
            found, counts = np.unique(kinds, return_counts=True)
            if (self._taken[side][found] + counts <= bins.counts[found]).all():
                return
        raise DamageError(
            "a source is damaged: its documents have other lengths than when they were counted",
            where=f"{operand.source.directory}, side {side}",
            allowed="the same ids in each pass",
            next_step="tokmill verify says what is damaged; make that output again, then run this again with --fresh",
        )

    def _numbers(self, side: str, kinds: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the numbers of pieces.

        kinds: their lengths, as `Bins` counts them. ranks: of each among those of its length, in the order of the sources.
        """
        bins, number, kind = self._bins[side], SIDES.index(side), np.uint64
        keys = [
            key_of(self._packing.seed, purpose, number)
            for purpose in (Purpose.PACKED_DOCUMENTS, Purpose.SEQUENCES, Purpose.IN_SEQUENCE)
        ]
        of_lengths = keys_at(bins.lengths[kinds].astype(kind), keys[0])
        chosen = permute(ranks.astype(kind), bins.counts[kinds].astype(kind), of_lengths)
        places = bins.places(kinds, chosen.astype(np.int64))
        sequences = permute(places.bins.astype(kind), max(1, bins.n_bins), np.repeat(keys[1], len(kinds)))
        slots = permute(places.slots.astype(kind), places.n_slots.astype(kind), keys_at(sequences, keys[2]))
        return (sequences + kind(self._first[side])) << kind(SLOT_BITS) | slots

    # The sequences.

    def _write_bucket(self, bucket: int, records: NDArray[Any], data: memoryview | None) -> None:
        """Sort a bucket and write its sequences. data: its ids, None: they are read piece by piece."""
        begins, lengths, numbers = _sorted(records)
        edges = np.flatnonzero(np.diff(numbers >> np.uint64(SLOT_BITS))) + 1
        rows = np.concatenate([[0], edges, [len(numbers)]]) if len(numbers) else np.zeros(1, int)
        n_val = int(np.searchsorted(numbers[rows[:-1]], np.uint64(self._first["train"] << SLOT_BITS)))
        sizes = np.diff(rows) * RECORD_COST + self._packing.sequence * self._item_bytes
        digests = 0
        for is_val, first, last in ((True, 0, n_val), (False, n_val, len(rows) - 1)):
            for begin, end in groups(sizes[first:last], bucket_run.PIECE_BYTES):
                row, upto = first + begin, first + end
                a, b = int(rows[row]), int(rows[upto])
                text, found = self._text(bucket, data, begins[a:b], lengths[a:b], numbers[a:b])
                digests += found
                self._write_sequences(is_val, text, lengths[a:b], rows[row : upto + 1] - a)
        self._wrote_bucket(bucket, digests)

    def _text(
        self,
        bucket: int,
        data: memoryview | None,
        begins: NDArray[np.int64],
        lengths: NDArray[np.int32],
        numbers: NDArray[np.uint64],
    ) -> tuple[Ids, int]:
        """Return the ids of pieces of a bucket, one after the other, and the sum of their digests."""
        text, done, digests = np.empty(int(lengths.sum()), self._content.dtype), 0, 0
        for a in range(0, len(lengths), MOST_PIECES):
            sizes = lengths[a : a + MOST_PIECES].astype(np.int64)
            parts = self._stretches(bucket, data, begins[a : a + MOST_PIECES] * self._item_bytes, sizes * self._item_bytes)
            ids = np.frombuffer(b"".join(parts), self._content.dtype)
            ends = np.cumsum(sizes)
            digests += sum_of_digests(self._digested_of(ids, ends - sizes, ends), numbers[a : a + MOST_PIECES].tolist())
            text[done : done + len(ids)] = ids
            done += len(ids)
        return text, digests

    def _write_sequences(
        self,
        is_val: bool,  # noqa: FBT001  as of Tokens
        text: Ids,
        lengths: NDArray[np.int32],
        rows: NDArray[np.int64],
    ) -> None:
        """Write some sequences. text: their ids but for padding. rows: the first piece of each, and the end of the last."""
        sequence, begins = self._packing.sequence, np.arange(len(rows) - 1, dtype=np.int64) * self._packing.sequence
        starts = np.cumsum(lengths, dtype=np.int64)
        starts -= lengths
        used = np.diff(np.append(starts[rows[:-1]], len(text)))
        starts += np.repeat(begins - starts[rows[:-1]], np.diff(rows))
        padded = np.flatnonzero(used < sequence)
        if len(padded):
            is_text = np.arange(sequence, dtype=np.int32) < used[:, np.newaxis]
            ids: Ids = np.full(is_text.size, self._packing.pad_id, text.dtype)
            ids[is_text.ravel()] = text
            starts = np.concatenate([starts, begins[padded] + used[padded]])
            starts.sort()
        else:
            ids = text
        n_documents = int(np.count_nonzero(ids == self._content.tokenizer.eot_id))
        self._write(Tokens(is_val=is_val, ids=ids, ends=begins + sequence, starts=starts), n_documents)

    def _digested_of(self, ids: Ids, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[memoryview]:
        """Return the ids of pieces as the digests take them: in no output's own dtype."""
        size = self._digested.itemsize
        return slices(ids.astype(self._digested, copy=False).view(np.uint8).data, begins * size, ends * size)


def _sorted(records: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint64]]:
    """Return where the ids of each piece of a bucket begin, how many they are, and its number; by number."""
    order = np.argsort(records["copy"], kind="stable")
    lengths = records["n_ids"].astype(np.int32)
    begins = np.cumsum(lengths, dtype=np.int64)
    begins -= lengths
    return begins[order], lengths[order], records["copy"][order]


def _sparse(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[int, int]:
    """Return the counts that are not 0, by length."""
    found = np.flatnonzero(counts)
    return dict(zip(lengths[found].tolist(), counts[found].tolist(), strict=True))


def _ranks(kinds: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of each piece among all of its length. taken: how many came before; is brought up to date."""
    order = np.argsort(kinds, kind="stable")
    ordered = kinds[order]
    is_new = np.diff(ordered, prepend=-1) > 0
    firsts = np.flatnonzero(is_new)
    ranks = np.empty(len(kinds), np.int64)
    ranks[order] = np.arange(len(kinds)) - firsts[np.cumsum(is_new) - 1] + taken[ordered]
    taken[ordered[firsts]] += np.diff(firsts, append=len(kinds))
    return ranks
