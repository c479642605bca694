"""What shuffled and mixed outputs must be, from documents in memory: arithmetic of Python's own numbers, and `sorted`."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _key(seed: int, *numbers: int) -> int:
    key = _mix(seed)
    for number in numbers:
        key = _mix((key + (number + 1) * _STEP) & _MASK)
    return key


def _number(place: int, key: int) -> int:
    return _mix((place * _STEP + key) & _MASK)


def arranged(sources: Sequence[Sequence[bytes]], times: Sequence[Sequence[int]], seed: int) -> list[bytes]:
    """Documents of sources in the order of a seed. times: how often each is taken."""
    copies = [
        (_number(place, _key(seed, 2, number, repetition)), number, place, repetition)
        for number, documents in enumerate(sources)
        for place in range(len(documents))
        for repetition in range(times[number][place])
    ]
    return [sources[number][place] for _, number, place, _ in sorted(copies)]


def shuffled(documents: Sequence[bytes], seed: int) -> list[bytes]:
    return arranged([documents], [[1] * len(documents)], seed)


def times_of(lengths: Sequence[int], wished: int, seed: int, number: int) -> list[int]:
    """How often documents of these lengths are taken for so many tokens: the sum is as near as it can be."""
    whole, rest = divmod(wished, sum(lengths))
    in_order = sorted(range(len(lengths)), key=lambda place: _number(place, _key(seed, 3, number)))
    sums = [0]
    for place in in_order:
        sums.append(sums[-1] + lengths[place])
    # Of two that are equally near, the larger one.
    n = min(range(len(sums)), key=lambda i: (abs(sums[i] - rest), -i))
    chosen = set(in_order[:n])
    return [whole + (place in chosen) for place in range(len(lengths))]


def mixed(sources: Sequence[Sequence[bytes]], weights: Sequence[float], tokens: int, seed: int, item_bytes: int) -> list[bytes]:
    """Documents (their ids as bytes) by weight, in order."""
    total = sum(Fraction(str(weight)) for weight in weights)
    times = []
    for number, (documents, weight) in enumerate(zip(sources, weights, strict=True)):
        lengths = [len(document) // item_bytes for document in documents]
        times.append(times_of(lengths, round(tokens * Fraction(str(weight)) / total), seed, number))
    return arranged(sources, times, seed)
