"""What may be left out of a corpus before somebody should look at it (`--max-skipped`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.errors import TooManySkippedError
from tokmill.core.text import counted

if TYPE_CHECKING:
    from tokmill.core.records import Counts

OTHER_FILE = "other_file"
"""Why a member of an archive was passed over that is no text: counted, but nothing that anybody would call a bad record."""


def n_bad_records(counts: Counts) -> int:
    """Records that were left out for what is wrong with them."""
    return sum(n for reason, n in counts.skipped.items() if reason not in ("empty", OTHER_FILE))


def too_many_error(counts: Counts, max_skipped: int, where: str) -> TooManySkippedError:
    """The error for more bad records than `--max-skipped` allows. where: what lists them."""
    return TooManySkippedError(
        f"skipped: {counted(n_bad_records(counts), 'bad record')}",
        where=where,
        allowed=f"--max-skipped {max_skipped}",
        next_step="see there what is wrong; then start over with --fresh, or raise --max-skipped and run the same command again",
        resumes=True,
    )
