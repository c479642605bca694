"""Which documents of a source `mix` takes once more: those with the smallest numbers of choice, as many as have the tokens wished.

For that the lengths of all documents are read, here or by tasks, each of which reads a portion. Only those with numbers around the
place where the choice must end are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from tokmill.core.document_order import choice_keys
from tokmill.core.system.budget import store_bytes
from tokmill.derive.bucket_run import LEAST_BYTES, Operand
from tokmill.derive.copiers import ids_of
from tokmill.derive.source import ShiftedIds
from tokmill.derive.spread.portions import Portion, cut_portions
from tokmill.derive.spread.tasks import TASKS_A_SLOT, load_same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.derive.source import Source
    from tokmill.derive.spread.tasks import Tasks

_ALL = 1 << 64
_MOST_MEASURED = 1 << 18
"""Documents whose numbers and lengths are in memory together, about."""
_N_RANGES = 1 << 14
"""Of numbers of choice, in which tokens are counted."""
_PORTION_TOKENS = 1 << 23
"""That a task reads, at least."""


def chosen(operand: Operand, seed: int, rest: int, measure: Measure) -> tuple[int | None, int, int]:
    """Choose documents that have about so many tokens together: within half a document.

    measure: reads the source for the lengths of its documents: `measured`, or `measured_by` of tasks.

    Returns the number of choice of the last one (None: none is chosen), how many are chosen, and their tokens.
    """
    counts = operand.source.manifest.counts
    middle = rest * _ALL // counts.tokens_train
    # Where so many tokens are by the law of large numbers, and so far around it that another reading is hardly ever needed.
    reach = _ALL * 64 // max(1, math.isqrt(counts.documents_train))
    reach = min(reach, _ALL * _MOST_MEASURED // (2 * counts.documents_train))
    found = measure(operand, seed, max(0, middle - reach), min(_ALL, middle + reach))
    while not found.tokens_before <= rest <= found.tokens_before + int(found.lengths.sum()):
        # A few documents have most of the tokens.
        found = measure(operand, seed, *found.range_of(rest))
    order = np.argsort(found.keys)
    sums = found.tokens_before + np.cumsum(found.lengths[order])
    # The sum that is nearest: with the document in which the wished number lies, or without it.
    n = int(np.searchsorted(sums, rest))
    if n < len(sums) and int(sums[n]) - rest <= rest - (int(sums[n - 1]) if n else found.tokens_before):
        n += 1
    if n:
        return int(found.keys[order[n - 1]]), found.n_before + n, int(sums[n - 1])
    return (found.low - 1 if found.n_before else None), found.n_before, found.tokens_before


@dataclass(frozen=True, slots=True)
class Measured:
    """What one reading of a source tells of its documents, by their numbers of choice."""

    low: int
    n_before: int
    """Documents with a number below `low`."""
    tokens_before: int
    keys: NDArray[np.uint64]
    """Numbers of the documents from `low` to the end of the range, and their lengths."""
    lengths: NDArray[np.int64]
    tokens: NDArray[np.int64]
    """Of all documents, by the leading bits of their numbers: shape (_N_RANGES,)."""

    def range_of(self, rest: int) -> tuple[int, int]:
        """Return the range of numbers in which documents reach so many tokens, in the order of their numbers."""
        number, size = int(np.searchsorted(np.cumsum(self.tokens), rest)), _ALL // _N_RANGES
        return number * size, (number + 1) * size


Measure: TypeAlias = "Callable[[Operand, int, int, int], Measured]"
"""From source, seed and the range of numbers of choice that is kept."""


def measured(operand: Operand, seed: int, low: int, high: int) -> Measured:
    """Read a source for the lengths of its documents; those with numbers of choice from `low` to below `high` are kept."""
    counts = operand.source.manifest.counts
    whole = Portion(operand=0, token=0, end=counts.tokens_train, document=0, n_documents=counts.documents_train)
    return _measured_portion(operand, seed, low, high, whole)


def _measured_portion(operand: Operand, seed: int, low: int, high: int, portion: Portion) -> Measured:
    n_before = tokens_before = 0
    document = portion.document
    keys, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    tokens = np.zeros(_N_RANGES, np.int64)
    for some in _lengths(operand.source, portion):
        places = np.arange(document, document + len(some), dtype=np.uint64)
        numbers = choice_keys(seed, operand.number, places)
        document += len(some)
        is_before = numbers < np.uint64(low) if low < _ALL else np.full(len(some), True)
        is_between = ~is_before & (numbers <= np.uint64(high - 1))
        n_before += int(np.count_nonzero(is_before))
        tokens_before += int(some[is_before].sum())
        np.add.at(tokens, (numbers // np.uint64(_ALL // _N_RANGES)).astype(np.int64), some)
        if is_between.any():
            keys.append(numbers[is_between])
            lengths.append(some[is_between])
    if document != portion.document + portion.n_documents:
        raise operand.source.count_error("train", document)
    return Measured(low, n_before, tokens_before, np.concatenate(keys), np.concatenate(lengths), tokens)


def _lengths(source: Source, portion: Portion) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of each document of a portion, some at a time."""
    content = source.content
    ids = ShiftedIds(ids_of(source, "train"), content.tokenizer.eot_id, content.eot, content.eot)
    n_open = 0
    for block, ends in ids.blocks(portion.token, portion.end):
        if len(ends):
            lengths = np.diff(ends, prepend=-n_open)
            n_open = len(block) - int(ends[-1])
            yield lengths
        else:
            n_open += len(block)
    if portion.end == ids.n_tokens:
        source.finish()


class _Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a task is to read."""

    place: str
    """Directory or URL of the source."""
    checksum: str
    number: int
    seed: str
    low: str
    high: str
    """Decimal: they need 65 bits."""
    portion: Portion


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A `Measured`, its arrays as bytes."""

    n_before: int
    tokens_before: int
    keys: bytes
    lengths: bytes
    tokens: bytes


def measured_by(tasks: Tasks, operand: Operand, seed: int, low: int, high: int) -> Measured:
    """Do as `measured`, in tasks. Raises TokmillError."""
    source = operand.source
    budget_bytes = LEAST_BYTES + store_bytes(is_read=isinstance(source.directory, str), is_sent=False)
    n_tokens = source.manifest.counts.tokens_train
    portions = cut_portions([operand], max(_PORTION_TOKENS, n_tokens // (TASKS_A_SLOT * tasks.n_slots(budget_bytes))))
    place, checksum = str(source.directory), source.manifest.checksum
    questions = (
        _Question(
            place=place,
            checksum=checksum,
            number=operand.number,
            seed=str(seed),
            low=str(low),
            high=str(high),
            portion=portion,
        )
        for portion in portions
    )
    found: list[_Answer] = []
    tasks.do(
        f"{__name__}:measure_portion",
        enumerate(map(msgspec.json.encode, questions)),
        lambda _, answer: found.append(msgspec.msgpack.decode(answer, type=_Answer)),
        budget_bytes=budget_bytes,
    )
    return Measured(
        low,
        sum(each.n_before for each in found),
        sum(each.tokens_before for each in found),
        np.frombuffer(b"".join(each.keys for each in found), np.uint64),
        np.frombuffer(b"".join(each.lengths for each in found), np.int64),
        np.sum([np.frombuffer(each.tokens, np.int64) for each in found], axis=0),
    )


def measure_portion(data: bytes) -> bytes:
    """Read a portion of a source for the lengths of its documents: the task. Raises TokmillError."""
    question = msgspec.json.decode(data, type=_Question)
    source = load_same(question.place, question.checksum)
    operand = Operand(source, question.number, 0)
    try:
        found = _measured_portion(operand, int(question.seed), int(question.low), int(question.high), question.portion)
    finally:
        source.close()
    answer = _Answer(
        n_before=found.n_before,
        tokens_before=found.tokens_before,
        keys=found.keys.tobytes(),
        lengths=found.lengths.tobytes(),
        tokens=found.tokens.tobytes(),
    )
    return msgspec.msgpack.encode(answer)
