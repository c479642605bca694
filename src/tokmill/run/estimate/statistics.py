"""What a sample says of a corpus, and how sure that is: a ratio estimator over windows, with a 95 % interval.

A window is drawn with a chance proportional to the bytes it stands for, one from each of equal stretches of the corpus. The error
comes from the differences between neighbouring windows (the successive differences of Wolter, Introduction to Variance Estimation,
chapter 8): a corpus whose parts differ is not taken for one that is uncertain everywhere, and one that changes within a stretch is.
Refused: the plain variance of all windows, which calls a corpus of two languages twice as uncertain as it is.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Content

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FLOOR = 0.0005
"""A sample is never surer than this: where it is cut, a window gains or loses a token."""
_UNSEEN_FLOOR = 0.1
"""Of what was never looked at: the rest of a compressed file of which only the beginning was read."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the sampling process is asked."""

    content: Content
    engine: str
    sample_bytes: int
    """Text to be encoded, about; a corpus up to this size is encoded whole."""
    decode_s: float
    """Time for decompressing, about."""
    encode_s: float
    """Time for encoding, about; what is not reached is left out, evenly."""
    urls: dict[str, str] = {}
    """See `config.Job`."""


class Window(msgspec.Struct, frozen=True, array_like=True):
    """One place of the corpus: what begins there, up to where the next place begins."""

    chance: float
    """Of being drawn, in any unit that is the same for all windows of its group."""
    raw_bytes: int
    """Its actual length, cut at documents, lines or safe places."""
    text_bytes: int
    tokens: int
    """End-of-text ids included."""
    documents: int
    large_ids: int
    """Ids of text of which Python keeps no ready-made int (the end-of-text id is one int, however often it stands in a list)."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs that are estimated together."""

    windows: list[Window]
    """In the order of the corpus."""
    seen_bytes: int
    """Decompressed bytes from all of which the windows were drawn."""
    unseen_bytes: int = 0
    """Decompressed bytes, estimated, of what could not be looked at in the time."""
    is_whole: bool = False
    """The windows are all there is."""
    extra_documents: int = 0
    """Documents that end with their file, which no window counts."""
    extra_tokens: int = 0
    """The end-of-text ids of those."""
    extra_error: int = 0
    """Half the width of the 95 % interval of that, where only some ends were looked at."""
    is_stored: bool = False
    """The bytes are those of a column as it is stored (Parquet); what will be read of it is its text."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the sampling process found."""

    groups: list[Group]
    decompressed: list[tuple[int, int, bool]]
    """Compressed inputs: index, decompressed bytes, whether they are counted (true) or estimated."""
    n_unknown: int
    """Inputs of which nothing can be said: standard input, pipes."""
    engine_bytes_per_s: float | None
    """Of one encoder thread, warmed up by the first half of the sample; None when the sample is too small to tell."""
    notices: list[str]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A number and its 95 % interval; all three the same when it was counted."""

    value: int
    low: int
    high: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole corpus."""

    bytes_in: Estimate
    """Decompressed."""
    bytes_text: Estimate
    documents: Estimate
    tokens: Estimate
    """End-of-text ids included."""
    large_ids: Estimate
    sampled_bytes: int
    n_windows: int


def totals(groups: Sequence[Group]) -> Totals:
    """What the groups say together."""
    fields: dict[str, Callable[[Window], int]] = {
        "bytes_text": lambda w: w.text_bytes,
        "documents": lambda w: w.documents,
        "tokens": lambda w: w.tokens,
        "large_ids": lambda w: w.large_ids,
    }
    extras = {"documents": "extra_documents", "tokens": "extra_tokens"}
    found = {name: _sum([_with_extra(group, of, name, extras) for group in groups]) for name, of in fields.items()}
    return Totals(
        bytes_in=_sum([_bytes_in(group) for group in groups]),
        sampled_bytes=sum(w.raw_bytes for g in groups for w in g.windows),
        n_windows=sum(len(g.windows) for g in groups),
        **found,
    )


def _bytes_in(group: Group) -> tuple[float, float]:
    """What will be read of a group, and half the width of its interval."""
    if group.is_stored:
        return _of_group(group, lambda w: w.text_bytes, 0)
    return float(group.seen_bytes + group.unseen_bytes), _unseen_error(group) * group.unseen_bytes


def _sum(parts: Sequence[tuple[float, float]]) -> Estimate:
    """The sum of independent estimates, each with half the width of its interval."""
    value = sum(v for v, _ in parts)
    half = math.sqrt(sum(h * h for _, h in parts))
    return Estimate(value=round(value), low=max(0, math.floor(value - half)), high=math.ceil(value + half))


def _with_extra(group: Group, of: Callable[[Window], int], name: str, extras: dict[str, str]) -> tuple[float, float]:
    value, half = _of_group(group, of, getattr(group, extras[name]) if name in extras else 0)
    return value, math.hypot(half, group.extra_error) if name == "tokens" else half


def _of_group(group: Group, of: Callable[[Window], int], extra: int) -> tuple[float, float]:
    """The total of a group and half the width of its interval."""
    n_bytes = group.seen_bytes + group.unseen_bytes
    if group.is_whole:
        return float(sum(map(of, group.windows)) + extra), 0.0
    windows = [w for w in group.windows if w.chance]
    mean_raw = sum(w.raw_bytes / w.chance for w in windows)
    if not mean_raw:
        return float(extra), float(n_bytes)
    ratio = sum(of(w) / w.chance for w in windows) / mean_raw
    total = ratio * n_bytes
    error = _ratio_error(windows, of, ratio, n_bytes) * n_bytes
    return total + extra, max(error, _FLOOR * total) + _unseen_error(group) * ratio * group.unseen_bytes


def of_all(n_found: int, n_looked: int, n_all: int) -> tuple[int, int]:
    """How many of all have what was found in some, and half the width of the 95 % interval of that."""
    if n_looked >= n_all:
        return n_found, 0
    # With one more of each kind (Wilson), so that all alike is not taken for certain.
    share = (n_found + 2) / (n_looked + 4)
    half = 1.96 * math.sqrt(share * (1 - share) / (n_looked + 4) * (1 - n_looked / n_all))
    return round(n_all * n_found / n_looked), math.ceil(n_all * half)


def _ratio_error(windows: Sequence[Window], of: Callable[[Window], int], ratio: float, n_bytes: int) -> float:
    """Half the width of the 95 % interval of a ratio, per byte."""
    n = len(windows)
    if n < 2:
        return ratio
    residuals = [(of(w) - ratio * w.raw_bytes) / w.chance for w in windows]
    mean_raw = sum(w.raw_bytes / w.chance for w in windows) / n
    variance = sum((b - a) ** 2 for a, b in pairwise(residuals)) / (2 * (n - 1))
    unsampled = max(0.0, 1 - sum(w.raw_bytes for w in windows) / max(1, n_bytes))
    return student(n - 1) * math.sqrt(variance / n * unsampled) / mean_raw


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution, within 1 % from three degrees on (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    g1, g2, g3 = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / degrees + g2 / degrees**2 + g3 / degrees**3


def _unseen_error(group: Group) -> float:
    """Half the width, relative, of what is claimed of the unseen part: by how much stretches of the seen part differ, twice."""
    if not group.unseen_bytes:
        return 0.0
    step = max(1, len(group.windows) // 10)
    stretches = [group.windows[i : i + step] for i in range(0, len(group.windows), step)]
    ratios = [sum(w.tokens for w in s) / n for s in stretches if (n := sum(w.raw_bytes for w in s))]
    if len(ratios) < 2:
        return 0.5
    mean = sum(ratios) / len(ratios)
    spread = math.sqrt(sum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1))
    return max(_UNSEEN_FLOOR, 2 * spread / mean) if mean else 0.5
