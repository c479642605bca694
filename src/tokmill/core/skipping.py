"""Skipped records, and how many of them are too many (`--max-skipped`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.errors import TooManySkippedError
from tokmill.core.text import counted

if TYPE_CHECKING:
    from tokmill.core.records import Counts

OTHER_FILE = "other_file"
"""Reason for archive members that are not text: counted, but not as bad records."""


def n_bad_records(counts: Counts) -> int:
    """Return how many records were skipped because they are bad."""
    return sum(n for reason, n in counts.skipped.items() if reason not in ("empty", OTHER_FILE))


def too_many_error(counts: Counts, max_skipped: int, where: str) -> TooManySkippedError:
    """Return the error for more bad records than `--max-skipped` allows. where: the file that lists them."""
    return TooManySkippedError(
        f"skipped: {counted(n_bad_records(counts), 'bad record')}",
        where=where,
        allowed=f"--max-skipped {max_skipped}",
        next_step="see what is wrong there; then start over with --fresh, or raise --max-skipped and run the same command again",
        resumes=True,
    )
