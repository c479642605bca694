"""Finds the documents that go, pass by pass. Every pass goes on from its last commit, and none needs memory by their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.errors import UsageError
from tokmill.core.system.memory import usable_cores
from tokmill.derive.deduplication.candidates import Clusters, shared_bands
from tokmill.derive.deduplication.comparison import Comparison
from tokmill.derive.deduplication.exact import DIGEST, DIGEST_COST, MATCH, compared, copies_among, digests_of, matches_of
from tokmill.derive.deduplication.gathering import GATHERED_COST, KEY_COST, Gathered, Gathering
from tokmill.derive.deduplication.removals import GONE, RECORD_COST, REMOVAL, ByNumber, audit_lines, count_removed, follow
from tokmill.derive.deduplication.scratch import StoredRecords, bucket_of
from tokmill.derive.deduplication.signatures import BAND, BAND_COST, Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.core.deduplication import NearRule
    from tokmill.derive.deduplication.documents import Batch, Documents
    from tokmill.derive.deduplication.scratch import Scratch

BUFFER_SHARE = 6
"""Part of the memory that records of one kind take until they are written."""
COMMIT_BYTES = 1 << 30
"""Of ids that are read between two commits: each costs an fsync a bucket."""
BUCKET_BYTES = 64 << 20
"""Memory of a bucket while it is sorted: larger ones are not faster."""
_MOST_FAST_BUCKETS = 1 << 9
"""More of them are larger instead, if memory allows."""
_MOST_BUCKETS = 1 << 14
"""What is more is read in parts."""
_MOST_IDS = 1 << 32


class Marking:
    """The passes over the documents of one deduplication."""

    def __init__(
        self,
        documents: Documents,
        near: NearRule | None,
        scratch: Scratch,
        room_bytes: int,
        *,
        n_sources: int,
        note: Callable[[int], None],
        on_commit: Callable[[], None],
    ) -> None:
        """Go on with what is in the state directory of an output.

        Args:
            documents: All documents.
            near: None: documents with the same ids alone.
            scratch: Where records are kept between passes.
            room_bytes: Memory beside what Python and numpy take.
            n_sources: Outputs that are deduplicated.
            note: Is told how many bytes of ids were read.
            on_commit: Is called after every commit.
        """
        self._documents = documents
        self._near = near
        self._n_sources = n_sources
        self._note = note
        self._on_commit = on_commit
        self._most_bytes = room_bytes // 3
        """Of a bucket in memory."""
        self._bucket_bytes = min(self._most_bytes, BUCKET_BYTES)
        self.scratch = scratch
        self.state = scratch.state
        self._compares = self.state.compare
        self._n_threads = usable_cores()
        self.state.removed = self.state.removed or [[0, 0, 0, 0] for _ in range(n_sources)]
        self.removals = self._by_number("removals", REMOVAL, "removed")
        self._clusters: Clusters | None = None
        self._uncommitted_bytes = 0

    def run(self) -> None:
        """Do what is left. Raises TokmillError."""
        for name, do in self._passes().items():
            # By name: a number would mean another pass where there are more of them, or fewer.
            if name in self.state.completed:
                continue
            do()
            self.state.completed.append(name)
            self.state.section = self.state.token = self.state.document = self.state.bucket = 0
            self._commit()
        if self._clusters is not None:
            self._clusters.remove()
        self.removals.flush()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines about all documents that go, in order, some at a time."""
        return audit_lines(self.removals, self._documents)

    def _passes(self) -> dict[str, Callable[[], None]]:
        """Return all passes, in order, by name."""
        passes = [self._take_digests, self._find_copies]
        passes += [self._gather_copies, self._compare_copies] if self._compares else []
        near_passes = [self._take_bands, self._find_candidates, self._gather_candidates, self._compare_candidates, self._follow]
        passes += near_passes if self._near else []
        return {each.__name__: each for each in passes}

    def _n_buckets(self, n_bytes: int) -> int:
        """Return in how many buckets records are that take so much memory together."""
        size = min(max(self._bucket_bytes, n_bytes // _MOST_FAST_BUCKETS), self._most_bytes)
        return min(max(1, -(-n_bytes // size)), _MOST_BUCKETS)

    def _by_number(self, kind: str, dtype: np.dtype[Any], field: str, n_each: int = 1) -> ByNumber:
        """n_each: records of a document, at most."""
        n_documents = self._documents.n
        n_buckets = self._n_buckets(n_documents * n_each * dtype.itemsize * RECORD_COST)
        return ByNumber(self.scratch, kind, dtype, field, n_documents, n_buckets)

    def _digests(self) -> StoredRecords:
        return self.scratch.records("digests", DIGEST, self._n_buckets(self._documents.n * DIGEST_COST * 5 // 4))

    def _take_digests(self) -> None:
        """Read all documents for their digests."""
        records = self._digests()
        for batch in self._batches():
            digests = digests_of(batch, self.state.very_long, self._documents.dtype)
            if max(self.state.very_long.values(), default=0) >= _MOST_IDS:
                raise _too_long(batch)
            records.add(bucket_of(digests["high"], records.n_buckets), digests)

    def _find_copies(self) -> None:
        """Sort the digests: all documents of each but the first go, or are to be compared with it."""
        records = self._digests()
        for bucket in self._buckets(records):
            for part in records.parts(bucket, ("high", "low"), self._most_bytes // DIGEST_COST):
                found = copies_among(part, self._documents.n_protected, self.state.very_long)
                if self._compares:
                    self._matches().add(matches_of(found))
                else:
                    self._remove_copies(found)
        self.scratch.drop("digests")

    def _matches(self) -> ByNumber:
        return self._by_number("matches", MATCH, "document")

    def _gathering(self) -> Gathering:
        # If all documents had copies.
        n_bytes = self._documents.n_ids * self._documents.dtype.itemsize + self._documents.n * self._gathered_cost
        return Gathering(self.scratch, self._documents.dtype, self._n_buckets(n_bytes))

    @property
    def _gathered_cost(self) -> int:
        """Bytes of memory of a document that is compared, beside its ids."""
        return GATHERED_COST + (self._near.bands * KEY_COST if self._near else 0)

    def _gathered(self, gathering: Gathering, bucket: int, held_bytes: int) -> Gathered:
        return gathering.bucket(bucket, held_bytes, self._most_bytes // self._gathered_cost)

    def _gather_copies(self) -> None:
        """Read all documents again, and bring those with the same digest together."""
        gathering, matches = self._gathering(), self._matches()
        matches.flush()
        for batch in self._batches():
            found = matches.between(batch.first, batch.n_documents)
            if len(found):
                # The first of very many copies is there several times.
                documents, at = np.unique(found["document"], return_index=True)
                gathering.add(batch, (documents - np.uint64(batch.first)).astype(np.int64), found["label"][at])

    def _compare_copies(self) -> None:
        """Compare documents with the same digest id by id; those that have the same ids go."""
        gathering = self._gathering()
        gathering.flush()
        for bucket in self._buckets(gathering.records):
            for copies in compared(self._gathered(gathering, bucket, self._bucket_bytes)):
                self._remove_copies(copies)
        gathering.drop()
        self.scratch.drop("matches")

    def _take_bands(self) -> None:
        """Read all documents that did not go for the bands of their signatures."""
        assert self._near
        rule, bands, signer = self._near, self._bands(), Signer(self._near, self._n_threads)
        try:
            self._take_bands_of(rule, bands, signer)
        finally:
            signer.close()
        self.scratch.drop("gone")

    def _take_bands_of(self, rule: NearRule, bands: StoredRecords, signer: Signer) -> None:
        """Add the bands of all documents that are neither gone nor too short or too long; these are counted."""
        state = self.state
        copies = self._gone()
        copies.flush()
        for batch in self._batches():
            gone = copies.between(batch.first, batch.n_documents)["removed"]
            stays = np.ones(batch.n_documents, bool)
            stays[(gone - np.uint64(batch.first)).astype(np.int64)] = False
            if batch.is_long:
                state.long += int(stays[0])
                continue
            is_short = batch.ends - batch.begins < max(rule.shortest, rule.ngram)
            state.short += int(np.count_nonzero(is_short & stays))
            (chosen,) = np.nonzero(stays & ~is_short)
            if len(chosen):
                keys = signer.bands(signer.signatures(batch.ids, batch.begins[chosen], batch.ends[chosen]))
                records = np.empty(keys.size, BAND)
                records["key"] = keys.ravel()
                records["document"] = np.repeat((chosen + batch.first).astype(np.uint64), rule.bands)
                bands.add(bucket_of(records["key"], bands.n_buckets), records)

    def _bands(self) -> StoredRecords:
        assert self._near
        n_bytes = self._documents.n * self._near.bands * BAND_COST * 5 // 4
        return self.scratch.records("bands", BAND, self._n_buckets(n_bytes))

    def _find_candidates(self) -> None:
        """Sort the bands: documents that share one are candidates, and come into one cluster."""
        bands, shared, clusters = self._bands(), self._shared(), self._opened_clusters()
        for bucket in self._buckets(bands):
            for part in bands.parts(bucket, ("key",), self._most_bytes // BAND_COST):
                some, firsts = shared_bands(part)
                clusters.join(firsts, some["document"])
                shared.add(some)
        self.state.clusters = clusters.count()
        self.scratch.drop("bands")

    def _shared(self) -> ByNumber:
        assert self._near
        return self._by_number("shared", BAND, "document", self._near.bands)

    def _opened_clusters(self) -> Clusters:
        if self._clusters is None:
            self._clusters = Clusters(self.scratch.directory, self._documents.n, self._bucket_bytes // 2)
        return self._clusters

    def _gather_candidates(self) -> None:
        """Read all documents again, and bring those of a cluster together, with the bands that they share."""
        gathering, shared, clusters = self._gathering(), self._shared(), self._opened_clusters()
        shared.flush()
        for batch in self._batches():
            found = shared.between(batch.first, batch.n_documents)
            if not len(found):
                continue
            found = found[np.lexsort((found["key"], found["document"]))]
            # The first of very many documents that share a band is there several times.
            is_new = np.append(True, found[1:] != found[:-1])
            documents, n_keys = np.unique(found["document"][is_new], return_counts=True)
            indexes = (documents - np.uint64(batch.first)).astype(np.int64)
            gathering.add(batch, indexes, clusters.firsts(documents), n_keys, found["key"][is_new])

    def _compare_candidates(self) -> None:
        """Compare the documents of each cluster n-gram by n-gram; those that are alike enough go, all but the first."""
        assert self._near
        gathering = self._gathering()
        gathering.flush()
        n_protected, where = self._documents.n_protected, str(self.scratch.directory)
        for bucket in self._buckets(gathering.records):
            gathered = self._gathered(gathering, bucket, self._bucket_bytes)
            comparison = Comparison(gathered, self._near, n_protected, self._bucket_bytes // 2, self._most_bytes, where)
            for removals in comparison.run():
                self._remove(removals)
            self.state.compared_pairs += comparison.n_pairs
            self.state.unexamined += comparison.n_unexamined
            self._uncommitted_bytes += gathered.n_bytes
        gathering.drop()
        self.scratch.drop("shared")

    def _follow(self) -> None:
        """Name the document that stays also for copies of one that went as a near copy itself."""
        copies = self._copies()
        self.removals.flush()
        for bucket in self._buckets(copies):
            for some in copies.blocks(bucket):
                self._remove(follow(some, self.removals, bucket))
        self.scratch.drop("copies")

    def _gone(self) -> ByNumber:
        return self._by_number("gone", GONE, "removed")

    def _copies(self) -> StoredRecords:
        """By the document that they are copies of, in the buckets of `removals`."""
        return self.scratch.records("copies", REMOVAL, self.removals.n_buckets)

    def _remove_copies(self, copies: NDArray[Any]) -> None:
        """Note documents that go for the sake of one with the same ids, which may go as a near copy later. copies: REMOVAL."""
        if self._near is None:
            self._remove(copies)
        elif len(copies):
            gone = np.empty(len(copies), GONE)
            gone["removed"] = copies["removed"]
            self._gone().add(gone)
            self._copies().add(self.removals.bucket_of(copies["kept"]), copies)

    def _remove(self, removals: NDArray[Any]) -> None:
        if len(removals):
            count_removed(self.state.removed, removals, self._documents)
            self.removals.add(removals)

    def _batches(self) -> Iterator[Batch]:
        """Yield all documents from the last commit on, and commit now and then."""
        state = self.state
        for batch in self._documents.batches(state.section, state.token, state.document):
            yield batch
            state.section, state.token = batch.number, batch.token + batch.n_tokens
            state.document = batch.first - batch.section.first + batch.n_documents
            n_bytes = batch.n_tokens * batch.section.item_bytes
            state.done_bytes += n_bytes
            self._uncommitted_bytes += n_bytes
            self._note(n_bytes)
            if self._uncommitted_bytes >= COMMIT_BYTES:
                self._commit()

    def _buckets(self, records: StoredRecords) -> Iterator[int]:
        """Yield the buckets that are left of a pass, and commit after each that was worth it."""
        records.flush()
        for bucket in range(self.state.bucket, records.n_buckets):
            yield bucket
            self.state.bucket = bucket + 1
            self._uncommitted_bytes += records.n_bytes(bucket)
            if self._uncommitted_bytes >= COMMIT_BYTES:
                self._commit()

    def _commit(self) -> None:
        if self._clusters is not None:
            self._clusters.sync()
        self.scratch.commit()
        self._uncommitted_bytes = 0
        self._on_commit()


def _too_long(batch: Batch) -> UsageError:
    return UsageError(
        f"a document of {_MOST_IDS:,} ids or more",
        where=f"{batch.section.source.directory}, document {batch.first - batch.section.first:,} of {batch.section.side}",
        allowed=f"documents of less than {_MOST_IDS:,} ids",
        next_step="tokenize again with a --separator that ends documents earlier",
    )
