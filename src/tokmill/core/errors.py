"""The errors of tokmill, grouped by what the user does next, and the exit code of each.

    TokmillError                 1   (base; also: anything unforeseen)
    |- UsageError                2   fix the command
    |- InputError                1   fix the data
    |  |- DamagedInputError          truncated or corrupt compression, unreadable file
    |  |- BadRecordError             a record is not what its format says (or pass --on-error skip)
    |  `- BadTextError               a document is not UTF-8 (or pass --encoding-errors)
    |- EngineError               1   report it; the output is not complete
    |  |- AuditError                 the engine and the reference disagree
    |  `- WorkerDiedError            the worker was killed again and again
    |- StorageError              1   fix the disk, then run again to continue
    |- DamageError              10   the output is damaged: repair or rebuild
    |  `- LinkError                  a link in an output leads elsewhere; nothing is followed
    |- LockedError              11   wait for the other run
    |- ChangedError             12   restore input or configuration, or start over
    |- MemoryBudgetError        13   raise or shrink; resumable
    |- DiskFullError            14   free disk, then run again to continue
    |- TooManySkippedError      15   look at the records that were skipped
    `- Interrupted             130   run again to continue

An error carries fields and is put into words in one place: `details` here for Python, `cli/render.py` for the command line.
"""

from __future__ import annotations

import errno
import shlex
from typing import Any

from tokmill.core.secrets import shown


class TokmillError(Exception):
    """An error of tokmill: what happened, where, what is allowed, and what to do next."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        allowed: str | None = None,
        next_step: str | None = None,
        option: str | None = None,
        suggested: str | None = None,
        path: str | None = None,
        resumes: bool = False,
    ) -> None:
        """Make the error.

        Args:
            what: One sentence, without a full stop.
            where: File, position or option; by default `option` or `path`.
            allowed: What would have been right.
            next_step: What to do or type next. By default what `option` and `suggested`, or `path`, say; beside `suggested`,
                what else would help ("or leave --dtype out").
            option: The long option that is to be changed, `--memory`. The command line looks up where its value was given.
            suggested: A right value of `option`, or what was probably meant by `path`.
            path: A path that was given and is not there. The command line proposes the nearest that is.
            resumes: Whether the same command continues from the last commit; `next_step` then ends with "... again".
        """
        super().__init__(shown(what))
        if suggested is not None:
            typed = f"{option} {shlex.quote(suggested)}" if option else f"if {suggested} was meant, write it so"
            next_step = f"{typed}, {next_step}" if next_step else typed
        elif path is not None:
            next_step = next_step or "check the path"
        self.what = what
        self.where = where or option or path
        self.allowed = allowed
        self.next_step = next_step
        self.option = option
        self.suggested = suggested
        self.path = path
        self.resumes = resumes

    def __setattr__(self, name: str, value: object) -> None:
        """Set a field; no text of an error has a secret in it, wherever it goes from here."""
        super().__setattr__(name, shown(value) if isinstance(value, str) else value)

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"{label}: {text}" for label, text in self.details())])

    def details(self) -> list[tuple[str, str]]:
        """Return the parts after the first sentence that are known, each with its label."""
        what_next = f"{self.next_step} to continue from the last commit" if self.resumes else self.next_step
        named = (("where", self.where), ("allowed", self.allowed), ("next", what_next))
        return [(label, text) for label, text in named if text]


class UsageError(TokmillError):
    """The command or the call cannot be carried out as given."""

    exit_code = 2


class InputError(TokmillError):
    """The corpus is at fault: it cannot be read, or nothing of it could be written."""


class DamagedInputError(InputError):
    """An input is truncated, corrupt, or cannot be read."""


class BadRecordError(InputError):
    """A record is not what its format says."""


class BadTextError(InputError):
    """A document is not valid UTF-8."""


class EngineError(TokmillError):
    """The tokenizer engine failed."""


class AuditError(EngineError):
    """The engine's ids differ from the reference tokenizer's."""


class WorkerDiedError(EngineError):
    """The process that tokenizes died, and resuming did not help."""


class StorageError(TokmillError):
    """The output could not be written (other than a full disk)."""


class DamageError(TokmillError):
    """What is in the output directory is not what was written."""

    exit_code = 10


class LinkError(DamageError, OSError):
    """Below an output is a link, or what is no plain file or directory. What handles an OSError of a file handles it, too."""

    def __init__(self, what: str, **fields: Any) -> None:
        """Make the error; see TokmillError."""
        super().__init__(what, **fields)
        self.errno, self.strerror, self.filename = errno.ELOOP, what, self.where


class LockedError(TokmillError):
    """Another run is writing to the output directory."""

    exit_code = 11


class ChangedError(TokmillError):
    """Input, configuration or tokenizer differ from those of the run that is to be resumed, or whose output is to be compared."""

    exit_code = 12


class MemoryBudgetError(TokmillError):
    """It does not fit into the memory budget, or the machine runs low. Resumable."""

    exit_code = 13


class DiskFullError(TokmillError):
    """The disk is, or will be, full. Resumable."""

    exit_code = 14


class TooManySkippedError(TokmillError):
    """More records were skipped than --max-skipped allows."""

    exit_code = 15


class Interrupted(TokmillError):  # noqa: N818  it is the user's wish, not a fault
    """SIGINT or SIGTERM; the work so far is committed."""

    exit_code = 130


def error_classes() -> dict[str, type[TokmillError]]:
    """Every class of the tree by its name, the base included."""
    found: dict[str, type[TokmillError]] = {}
    pending: list[type[TokmillError]] = [TokmillError]
    while pending:
        cls = pending.pop()
        found[cls.__name__] = cls
        pending.extend(cls.__subclasses__())
    return found
