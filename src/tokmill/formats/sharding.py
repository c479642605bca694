"""The writer of any format: divides the two sides into shards, and names the files of a part.

A shard is closed only when a token comes that is not for it, so that where runs begin and end makes no difference. What a shard
has so far (tokens, documents, tokens of a document that has not ended) is all the state there is, for any format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.output_spec import SIDES, OutputSpec, Shards, TokenSlice
from tokmill.core.partition import Part
from tokmill.formats.numbers import NumbersFile, offsets_name, starts_name
from tokmill.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tokmill.core.config import Content
    from tokmill.core.protocols import OutputFile, OutputFiles, Writer
    from tokmill.core.records import FileEntry, Tokens
    from tokmill.formats.base import IdFile


def make_writer(files: OutputFiles, state: Mapping[str, int], spec: OutputSpec) -> Writer:
    """Return a writer of `spec.format`. state: `Writer.state` at the last commit, empty at the beginning."""
    if spec.part is not None:
        files = NumberedFiles(files, spec.part, spec.prefix)
    return ShardedWriter(files, state, spec)


def spec_of(content: Content) -> OutputSpec:
    """Return what the settings of a run say to a writer."""
    return OutputSpec(
        format=content.format,
        dtype=content.dtype,
        eot=content.eot,
        eot_id=content.tokenizer.eot_id,
        tokenizer=content.tokenizer.name,
        shards=content.shards if isinstance(content.shards, Shards) else None,
        name=content.name or "",
        sequence=content.packing.sequence if content.packing else None,
        offsets=content.offsets is True,
        part=content.part.index if isinstance(content.part, Part) else None,
    )


class ShardedWriter:
    """Both sides in one format. Implements `protocols.Writer`."""

    def __init__(self, files: OutputFiles, state: Mapping[str, int], spec: OutputSpec) -> None:
        self._sides = {side: _Side(files, side, state, spec) for side in SIDES}

    def append(self, tokens: Tokens) -> None:
        """Append a run to its side."""
        self._sides[SIDES[tokens.is_val]].append(tokens.ids, tokens.ends, tokens.starts)

    def state(self) -> dict[str, int]:
        """Return the state of both sides."""
        return {f"{name}_{key}": n for name, side in self._sides.items() for key, n in side.state().items()}

    def finish(self) -> None:
        """Complete what is open."""
        for side in self._sides.values():
            side.finish()


class _Side:
    """The shards of one side, one of them open."""

    def __init__(self, files: OutputFiles, name: str, state: Mapping[str, int], spec: OutputSpec) -> None:
        self._format = FORMATS[spec.format]
        self._of = files, spec, name
        self._is_before = spec.eot == "before"
        self._counted_eot = spec.eot_id if spec.sequence else None
        """Of packed ids, `ends` are those of sequences, and documents are counted by their end-of-text ids."""
        self._most = self._format.most_tokens(spec.item_bytes)
        self._limit = min(spec.shards.tokens, self._most) if spec.shards else self._most
        self._is_whole = spec.shards is not None and spec.shards.whole_documents
        self._drops_tail = spec.shards is not None and spec.shards.drop_tail
        self._number = state.get(f"{name}_shards", 0)
        self._tokens = state.get(f"{name}_tokens", 0)
        self._documents = state.get(f"{name}_documents", 0)
        self._open = state.get(f"{name}_open", 0)
        self._is_inside = bool(state.get(f"{name}_inside", 0))
        self._shard: IdFile | None = None
        self._starts: NumbersFile | None = None
        self._offsets: NumbersFile | None = None
        self._has_offsets = spec.offsets
        self._total = state.get(f"{name}_total", 0)
        """Tokens of the side, counted for the offsets alone."""

    def state(self) -> dict[str, int]:
        """Return complete shards, the sums of the open one, and whether it ends inside a document, begun there or before."""
        counts = {"shards": self._number, "tokens": self._tokens, "documents": self._documents}
        if self._has_offsets:
            counts["total"] = self._total
        return counts | {"open": self._open, "inside": int(self._is_inside)}

    def append(
        self, ids: NDArray[np.uint16] | NDArray[np.uint32], ends: NDArray[np.int64], starts: NDArray[np.int64] | None = None
    ) -> None:
        """Append a run, cut where a shard is full. starts: of packed ids."""
        if self._has_offsets:
            self._list_of_offsets().append(ends + self._total)
            self._total += len(ids)
        begin = first = 0
        while begin < len(ids) or first < len(ends):
            if begin < len(ids) and self._is_full():
                self._close()
            cut = self._cut(begin, len(ids), ends[first:])
            # A document that has no token ends in the shard of the token before it.
            last = int(np.searchsorted(ends, cut, side="right"))
            self._add(ids[begin:cut], ends[first:last] - begin)
            if self._starts is not None and starts is not None:
                self._starts.append(starts[(starts >= begin) & (starts < cut)] - begin + self._tokens - (cut - begin))
            begin, first = cut, last

    def finish(self) -> None:
        """Complete the last shard, or drop it where that was asked for and it is not full."""
        if self._tokens or self._documents:
            if self._drops_tail and not self._is_full():
                self._tokens = self._documents = self._open = 0
            else:
                self._close()
        if self._format.finish is not None:
            self._format.finish(*self._of, self._number)
        files, _, name = self._of
        if self._has_offsets and offsets_name(name) not in files.completed():
            self._list_of_offsets().finish()

    def _list_of_offsets(self) -> NumbersFile:
        if self._offsets is None:
            files, _, name = self._of
            self._offsets = NumbersFile(files, offsets_name(name))
            if not len(self._offsets):
                self._offsets.append(np.zeros(1, np.int64))
        return self._offsets

    def _is_full(self) -> bool:
        return self._tokens >= self._limit and (not self._is_whole or not self._open or self._tokens >= self._most)

    def _cut(self, begin: int, n_ids: int, ends: NDArray[np.int64]) -> int:
        """Return where the open shard ends in a run of `n_ids` ids, of which those from `begin` on are left."""
        least = begin + self._limit - self._tokens
        if not self._is_whole:
            return min(least, n_ids)
        after = int(np.searchsorted(ends, max(least, begin)))
        return min(int(ends[after]) if after < len(ends) else n_ids, begin + self._most - self._tokens)

    def _add(self, ids: NDArray[np.uint16] | NDArray[np.uint32], ends: NDArray[np.int64]) -> None:
        shard = self._opened()
        shard.append(TokenSlice(ids, ends, self._tokens, self._open))
        if self._counted_eot is not None:
            self._documents += int(np.count_nonzero(ids == self._counted_eot))
        else:
            self._documents += self._begun(len(ids), ends) if self._is_before else len(ends)
        self._is_inside = int(ends[-1]) < len(ids) if len(ends) else self._is_inside or len(ids) > 0
        self._open = len(ids) - int(ends[-1]) if len(ends) else self._open + len(ids)
        self._tokens += len(ids)

    def _begun(self, n_ids: int, ends: NDArray[np.int64]) -> int:
        """Count documents whose first token is among these; each has one: its end-of-text id."""
        return int(not self._is_inside and n_ids > 0) + int(np.count_nonzero(ends < n_ids))

    def _opened(self) -> IdFile:
        """Return the open shard; it may have to be gone on with."""
        if self._shard is None:
            files, spec, name = self._of
            self._shard = self._format.shard(files, spec, name, self._number)
            self._starts = NumbersFile(files, starts_name(self._shard.name)) if spec.sequence else None
        return self._shard

    def _close(self) -> None:
        self._opened().finish(self._tokens, self._documents, self._open)
        if self._starts is not None:
            self._starts.append(np.array([self._tokens], np.int64))
            self._starts.finish()
        self._shard = self._starts = None
        self._number += 1
        self._tokens = self._documents = self._open = 0


class NumberedFiles:
    """The files of one part of an output. Implements `protocols.OutputFiles`.

    The number of the part follows the side in their names: `train.bin` becomes `train_00003.bin`, `val_000001.bin` becomes
    `val_00003_000001.bin`, `train/000000.ds` becomes `train/00003_000000.ds`. Sorted by name, the files lie in the order of the
    corpus, and only a rename is left to do when all parts are complete.
    """

    def __init__(self, files: OutputFiles, part: int, prefix: str = "") -> None:
        """prefix: what names may begin with, before the side."""
        self._files = files
        self._prefix = prefix
        self._part = part

    def file(self, name: str, header_bytes: int = 0) -> OutputFile:
        """See protocols.OutputFiles."""
        return self._files.file(self._numbered(name), header_bytes)

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        """See protocols.OutputFiles."""
        self._files.complete(self._numbered(name), side=side, tokens=tokens, documents=documents, header=header)

    def completed(self) -> Mapping[str, FileEntry]:
        """See protocols.OutputFiles; by the names with the number."""
        return self._files.completed()

    def _numbered(self, name: str) -> str:
        """Return a name with the number of the part after its side."""
        plain, part = name.removeprefix(self._prefix), self._part
        before = name[: len(name) - len(plain)]
        side = next(side for side in SIDES if plain.startswith(side))
        rest = plain[len(side) :]
        return f"{side}/{part:05}_{rest[1:]}" if rest.startswith("/") else f"{before}{side}_{part:05}{rest}"
