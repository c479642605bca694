"""What a sample says of a corpus, and how sure that is: a ratio estimator over windows, with a 95 % interval.

One window is drawn from each of equal stretches of the corpus. The error comes from the differences between neighbouring windows
(successive differences; Wolter, Introduction to Variance Estimation, chapter 8). The plain variance of all windows would call a
corpus of two languages, one after the other, twice as uncertain as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

_FLOOR = 0.0005
"""A sample is never surer than this: a window may gain or lose a token where it is cut."""
_VARIES = 2.0
"""Standard deviation of the lengths of documents by their mean, about, as on the web."""
_UNSEEN_FLOOR = 0.1
"""Nor is it surer than this of what was never read: the rest of a file of which only a part was read."""


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the sampling process is asked."""

    job: Job
    sample_bytes: int
    """Text to encode, about; a corpus up to this size is encoded whole."""
    decode_s: float
    """Time for reading what has to be read from its beginning, about."""
    encode_s: float
    """Time for encoding, about; what is not reached is left out, evenly."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A number and its 95 % interval; all three are equal if it was counted."""

    value: int
    low: int
    high: int

    def __mul__(self, factor: int) -> Estimate:
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the whole corpus."""

    bytes_in: Estimate
    """Decompressed."""
    bytes_text: Estimate
    documents: Estimate
    tokens: Estimate
    """End-of-text ids included."""
    sampled_bytes: int
    n_windows: int


class SampleResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the sampling process found."""

    totals: Totals | None
    """None if an input is standard input or a pipe, which cannot be sampled."""
    is_exact: bool
    """The corpus was encoded whole."""
    decompressed: dict[int, tuple[int, bool]]
    """By index of an input that was read from its beginning: decompressed bytes, and whether these were counted."""
    engine_bytes_per_s: float | None
    """Speed of one worker; None if the sample is too small to tell."""
    notices: list[str]


@dataclass(slots=True)
class Window:
    """A stretch of the corpus, and what was counted in it."""

    chance: float = 1.0
    """Its chance of being drawn, in a unit that all windows of a group share."""
    raw_bytes: int = 0
    text_bytes: int = 0
    tokens: int = 0
    """End-of-text ids included."""
    documents: int = 0
    """That end here."""
    texts: list[bytes] = field(default_factory=list)
    """None of them empty; not checked to be UTF-8."""
    is_again: bool = False
    """It was drawn before."""

    def __iadd__(self, other: Window) -> Self:
        self.raw_bytes += other.raw_bytes
        self.tokens += other.tokens
        self.documents += other.documents
        self.texts += other.texts
        return self


@dataclass(slots=True)
class Group:
    """Inputs that are estimated together."""

    windows: list[Window]
    """In the order of the corpus."""
    seen_bytes: int
    """Decompressed bytes that the windows were drawn from."""
    unseen_bytes: int = 0
    """Decompressed bytes, estimated, that could not be read in the time."""
    is_whole: bool = False
    """The windows are all there is."""
    extra_documents: int = 0
    """Documents, counted, that are in no window."""


def totals(groups: Sequence[Group]) -> Totals:
    """Return the sums over all groups."""
    return Totals(
        bytes_in=_sum((float(g.seen_bytes + g.unseen_bytes), _unseen_error(g) * g.unseen_bytes) for g in groups),
        bytes_text=_sum(_of_group(g, lambda w: w.text_bytes) for g in groups),
        documents=_sum(_of_group(g, lambda w: w.documents, g.extra_documents) for g in groups),
        tokens=_sum(_of_group(g, lambda w: w.tokens) for g in groups),
        sampled_bytes=sum(w.raw_bytes for g in groups for w in g.windows if not w.is_again),
        n_windows=sum(len(g.windows) for g in groups),
    )


def share_of(found: Totals, share: float) -> Totals:
    """Return what a random share of the documents comes to; all of them are read."""
    if share == 1:
        return found
    n = max(1.0, share * found.documents.value)
    # Lengths vary: of so many documents, the sum varies by more than their number does.
    spread = 2 * _VARIES * math.sqrt((1 - share) / n)
    scaled = {
        name: Estimate(
            value=round(share * each.value),
            low=math.floor(share * each.low * max(0.0, 1 - spread)),
            high=min(each.high, math.ceil(share * each.high * (1 + spread))),
        )
        for name in ("bytes_text", "documents", "tokens")
        for each in [getattr(found, name)]
    }
    return msgspec.structs.replace(found, **scaled)


def ended_after(found: Totals, most_tokens: int) -> Totals:
    """Return what a run comes to that ends with the document that reaches so many tokens."""
    if found.tokens.low <= most_tokens:
        return found
    share = min(1.0, most_tokens / max(1, found.tokens.value))
    scaled = {
        name: Estimate(value=round(share * each.value), low=math.floor(share * each.low), high=math.ceil(share * each.high))
        for name in ("bytes_in", "bytes_text", "documents", "tokens")
        for each in [getattr(found, name)]
    }
    return msgspec.structs.replace(found, **scaled)


def _sum(parts: Iterable[tuple[float, float]]) -> Estimate:
    """Return the sum of independent estimates, each with half the width of its interval."""
    values, halves = zip(*parts, (0.0, 0.0), strict=True)
    value, half = sum(values), math.hypot(*halves)
    return Estimate(value=round(value), low=max(0, math.floor(value - half)), high=math.ceil(value + half))


def _of_group(group: Group, of: Callable[[Window], int], extra: int = 0) -> tuple[float, float]:
    """Return the total of a group and half the width of its interval."""
    if group.is_whole:
        return float(sum(map(of, group.windows)) + extra), 0.0
    n_bytes = group.seen_bytes + group.unseen_bytes
    raw = sum(w.raw_bytes / w.chance for w in group.windows)
    if not raw:
        return float(extra), float(n_bytes)
    ratio = sum(of(w) / w.chance for w in group.windows) / raw
    half = max(_ratio_error(group.windows, of, ratio, n_bytes), _FLOOR * ratio) * n_bytes
    return ratio * n_bytes + extra, half + _unseen_error(group) * ratio * group.unseen_bytes


def _ratio_error(windows: Sequence[Window], of: Callable[[Window], int], ratio: float, n_bytes: int) -> float:
    """Return half the width of the 95 % interval of a ratio, per byte."""
    n = len(windows)
    if n < 2:
        return ratio
    residuals = [(of(w) - ratio * w.raw_bytes) / w.chance for w in windows]
    variance = sum((b - a) ** 2 for a, b in pairwise(residuals)) / (2 * (n - 1))
    unsampled = max(0.0, 1 - sum(w.raw_bytes for w in windows if not w.is_again) / max(1, n_bytes))
    # Student's quantile, from three degrees of freedom on a little more.
    quantile = 2 + 3 / (n - 1)
    return quantile * math.sqrt(n * variance * unsampled) / sum(w.raw_bytes / w.chance for w in windows)


def _unseen_error(group: Group) -> float:
    """Return half the relative width of the interval of the unseen part: twice what stretches of the seen part differ by."""
    if not group.unseen_bytes:
        return 0.0
    step = max(1, len(group.windows) // 10)
    stretches = [group.windows[i : i + step] for i in range(0, len(group.windows), step)]
    ratios = [sum(w.tokens for w in s) / n for s in stretches if (n := sum(w.raw_bytes for w in s))]
    if len(ratios) < 2 or not sum(ratios):
        return 0.5
    import statistics

    return max(_UNSEEN_FLOOR, 2 * statistics.stdev(ratios) / statistics.mean(ratios))
