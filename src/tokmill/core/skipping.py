"""Skipped records: the list of them, and how many are too many (`--max-skipped`)."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import TooManySkippedError
from tokmill.core.records import NOT_SAMPLED, Skip, is_url
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokmill.core.config import Content
    from tokmill.core.protocols import OutputFile
    from tokmill.core.records import Counts

MOST_LISTED_BYTES = 16 << 20
"""The list of skipped records ends with the line that makes it longer; counts go on."""

OTHER_FILE, HARD_LINK, SYMBOLIC_LINK = "other_file", "hard_link", "symbolic_link"
"""Reasons for archive members that are not text, or whose text is another member's: counted, but not as bad records."""
_NOT_BAD = ("empty", NOT_SAMPLED, OTHER_FILE, HARD_LINK, SYMBOLIC_LINK)


def n_bad_records(counts: Counts) -> int:
    """Return how many records were skipped because they are bad."""
    return sum(n for reason, n in counts.skipped.items() if reason not in _NOT_BAD)


def check_skipped(counts: Counts, max_skipped: int | None, where: str) -> None:
    """Raise TooManySkippedError if more bad records were skipped than `--max-skipped` allows. where: the file that lists them."""
    n_bad = n_bad_records(counts)
    if max_skipped is None or n_bad <= max_skipped:
        return
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.skipped.items()) if reason not in _NOT_BAD)
    # A pattern is for the shell.
    pattern = shlex.quote(where).replace("/*/", "/'*'/")
    see = "see there which" if is_url(where) else f"see which: head {pattern}"
    raise TooManySkippedError(
        f"skipped: {counted(n_bad, 'bad record')} ({reasons})",
        where=where,
        allowed=f"--max-skipped {max_skipped}",
        next_step=f"{see}; then start over with --fresh, or raise --max-skipped and run the same command again",
        resumes=True,
    )


_REASONS = (
    "invalid_utf8",
    "invalid_json",
    "missing_text",
    "null_text",
    "not_a_string",
    "lone_surrogate",
    "invalid_csv",
    "too_long",
)
"""Reasons that may hold for many records in a row. New ones go to the end: the state of a run stores their numbers."""
_STATE = "skipped_"


class SkippedList:
    """The list of skipped records while it grows.

    The first record of a run of the same fault is one line, all that follow it directly are another, written when the run of them
    has ended. What is not written yet is part of the state of a commit, so the bytes depend on the records alone: not on batches,
    commits or interruptions.
    """

    def __init__(self, file: Callable[[], OutputFile], content: Content, state: Mapping[str, int]) -> None:
        """file: opens the list, when there is something to write. state: of the last commit, other entries are ignored."""
        self._file = file
        self._content = content
        self._last: Skip | None = None
        """The first record of the run that goes on, and how many it has so far."""
        reason, index = state.get(f"{_STATE}reason", -1), state.get(f"{_STATE}input", -1)
        if 0 <= reason < len(_REASONS) and 0 <= index < len(content.inputs):
            self._last = Skip(
                path=content.inputs[index].path,
                record=state.get(f"{_STATE}record", 0),
                offset=None,
                reason=_REASONS[reason],
                text_key=content.text_key if state.get(f"{_STATE}keyed") else msgspec.UNSET,
                records=state.get(f"{_STATE}records", 1),
            )

    def add(self, skip: Skip) -> None:
        """Add the next skipped record, or several."""
        if self._last is None or not skip.continues(self._last):
            self.end()
            self._write(msgspec.structs.replace(skip, records=msgspec.UNSET))
            can_go_on = skip.record is not None and skip.reason in _REASONS
            self._last = msgspec.structs.replace(skip, records=skip.n_records) if can_go_on else None
        else:
            self._last = msgspec.structs.replace(self._last, records=self._last.n_records + skip.n_records)

    def end(self) -> None:
        """No record of the run that goes on follows."""
        last, self._last = self._last, None
        if last is not None and last.record is not None and last.n_records > 1:
            n_more = last.n_records - 1 if last.n_records > 2 else msgspec.UNSET
            self._write(msgspec.structs.replace(last, record=last.record + 1, offset=None, records=n_more))

    def state(self) -> dict[str, int]:
        """Return what a commit must keep: nothing where no run goes on."""
        last = self._last
        if last is None or last.record is None:
            return {}
        index = next((i for i, each in enumerate(self._content.inputs) if each.path == last.path), -1)
        values = {
            "input": index,
            "reason": _REASONS.index(last.reason),
            "keyed": int(isinstance(last.text_key, str)),
            "record": last.record,
            "records": last.n_records,
        }
        return {f"{_STATE}{name}": n for name, n in values.items()}

    def _write(self, skip: Skip) -> None:
        file = self._file()
        if file.length < MOST_LISTED_BYTES:
            file.append(msgspec.json.encode(skip) + b"\n")


def without_list(state: Mapping[str, int]) -> dict[str, int]:
    """Return the state of a writer without that of the list."""
    return {name: n for name, n in state.items() if not name.startswith(_STATE)}


def list_state(state: Mapping[str, int], n_inputs: int = 0) -> dict[str, int]:
    """Return the state of the list alone, in a corpus in which so many inputs lie before."""
    found = {name: n for name, n in state.items() if name.startswith(_STATE)}
    return found | {f"{_STATE}input": found[f"{_STATE}input"] + n_inputs} if f"{_STATE}input" in found else found
