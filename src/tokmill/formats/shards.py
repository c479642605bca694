"""Divides the two sides into shards, whatever the format: the part of a writer that counts.

A shard is closed only when a token comes that is not for it, so that where runs begin and end makes no difference. What a shard
has so far (tokens, documents, tokens of a document that has not ended) is all the state there is, for any format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.output_spec import SIDES, TokenSlice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tokmill.core.output_spec import OutputSpec
    from tokmill.core.protocols import Format, Shard
    from tokmill.core.records import Tokens


class ShardedWriter:
    """Both sides in one format. Implements `protocols.Writer`."""

    def __init__(self, made: Format, state: Mapping[str, int], spec: OutputSpec) -> None:
        self._sides = {side: _Side(made, side, state, spec) for side in SIDES}

    def append(self, tokens: Tokens) -> None:
        """Append a run to its side."""
        self._sides[SIDES[tokens.is_val]].append(tokens.ids, tokens.ends)

    def state(self) -> dict[str, int]:
        """Of both sides."""
        return {f"{name}_{key}": n for name, side in self._sides.items() for key, n in side.state().items()}

    def finish(self) -> None:
        """Complete what is open."""
        for side in self._sides.values():
            side.finish()


class _Side:
    """The shards of one side, one of them open."""

    def __init__(self, made: Format, name: str, state: Mapping[str, int], spec: OutputSpec) -> None:
        self._format = made
        self._name = name
        self._is_before = spec.eot == "before"
        self._most = made.most_tokens
        self._limit = min(spec.shards.tokens, made.most_tokens) if spec.shards else made.most_tokens
        self._is_whole = spec.shards is not None and spec.shards.whole_documents
        self._drops_tail = spec.shards is not None and spec.shards.drop_tail
        self._number = state.get(f"{name}_shards", 0)
        self._tokens = state.get(f"{name}_tokens", 0)
        self._documents = state.get(f"{name}_documents", 0)
        self._open = state.get(f"{name}_open", 0)
        self._is_inside = bool(state.get(f"{name}_inside", 0))
        self._shard: Shard | None = None

    def state(self) -> dict[str, int]:
        """Complete shards, the sums of the one that is open, and whether it ends inside a document, begun there or before."""
        counts = {"shards": self._number, "tokens": self._tokens, "documents": self._documents}
        return counts | {"open": self._open, "inside": int(self._is_inside)}

    def append(self, ids: NDArray[np.uint16] | NDArray[np.uint32], ends: NDArray[np.int64]) -> None:
        """Append a run, cut where a shard is full."""
        begin = first = 0
        while begin < len(ids) or first < len(ends):
            if begin < len(ids) and self._is_full():
                self._close()
            cut = self._cut(begin, len(ids), ends[first:])
            # A document that has no token ends in the shard of the token before it.
            last = int(np.searchsorted(ends, cut, side="right"))
            self._add(ids[begin:cut], ends[first:last] - begin)
            begin, first = cut, last

    def finish(self) -> None:
        """Complete the last shard, or drop it where that was asked for and it is not full."""
        if self._tokens or self._documents:
            if self._drops_tail and not self._is_full():
                self._tokens = self._documents = self._open = 0
            else:
                self._close()
        self._format.finish(self._name, self._number)

    def _is_full(self) -> bool:
        return self._tokens >= self._limit and (not self._is_whole or not self._open or self._tokens >= self._most)

    def _cut(self, begin: int, n_ids: int, ends: NDArray[np.int64]) -> int:
        """Where the open shard ends in a run of `n_ids` ids, of which those from `begin` on are left."""
        least = begin + self._limit - self._tokens
        if not self._is_whole:
            return min(least, n_ids)
        after = int(np.searchsorted(ends, max(least, begin)))
        return min(int(ends[after]) if after < len(ends) else n_ids, begin + self._most - self._tokens)

    def _add(self, ids: NDArray[np.uint16] | NDArray[np.uint32], ends: NDArray[np.int64]) -> None:
        if self._shard is None:
            self._shard = self._format.shard(self._name, self._number)
        self._shard.append(TokenSlice(ids, ends, self._tokens, self._open))
        self._documents += self._begun(len(ids), ends) if self._is_before else len(ends)
        self._is_inside = int(ends[-1]) < len(ids) if len(ends) else self._is_inside or len(ids) > 0
        self._open = len(ids) - int(ends[-1]) if len(ends) else self._open + len(ids)
        self._tokens += len(ids)

    def _begun(self, n_ids: int, ends: NDArray[np.int64]) -> int:
        """Documents whose first token is among these, each of which has one: its end-of-text id."""
        return int(not self._is_inside and n_ids > 0) + int(np.count_nonzero(ends < n_ids))

    def _close(self) -> None:
        if self._shard is None:
            self._shard = self._format.shard(self._name, self._number)
        self._shard.finish(self._tokens, self._documents, self._open)
        self._shard = None
        self._number += 1
        self._tokens = self._documents = self._open = 0
