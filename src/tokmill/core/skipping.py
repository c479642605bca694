"""Skipped records, and how many of them are too many (`--max-skipped`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.errors import TooManySkippedError
from tokmill.core.text import counted

if TYPE_CHECKING:
    from tokmill.core.records import Counts

OTHER_FILE, HARD_LINK, SYMBOLIC_LINK = "other_file", "hard_link", "symbolic_link"
"""Reasons for archive members that are not text, or whose text is another member's: counted, but not as bad records."""
_NOT_BAD = ("empty", OTHER_FILE, HARD_LINK, SYMBOLIC_LINK)


def n_bad_records(counts: Counts) -> int:
    """Return how many records were skipped because they are bad."""
    return sum(n for reason, n in counts.skipped.items() if reason not in _NOT_BAD)


def check_skipped(counts: Counts, max_skipped: int | None, where: str) -> None:
    """Raise TooManySkippedError if more bad records were skipped than `--max-skipped` allows. where: the file that lists them."""
    n_bad = n_bad_records(counts)
    if max_skipped is None or n_bad <= max_skipped:
        return
    raise TooManySkippedError(
        f"skipped: {counted(n_bad, 'bad record')}",
        where=where,
        allowed=f"--max-skipped {max_skipped}",
        next_step="see what is wrong there; then start over with --fresh, or raise --max-skipped and run the same command again",
        resumes=True,
    )
