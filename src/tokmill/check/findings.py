"""What a check of an output finds: problems while it is under way, a report at its end."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB
from tokmill.core.errors import DamageError, MemoryBudgetError, TokmillError, UsageError
from tokmill.core.history import History
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Input, is_url
from tokmill.core.text import counted, shortened
from tokmill.read import source_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Observer

MAX_PROBLEMS = 100
"""Problems that are described; the rest are counted."""

NOT_LISTED = "the manifest does not list this file"


@contextmanager
def naming_options(inputs: Sequence[Input], *, with_format: bool) -> Iterator[None]:
    """Say in the error for sources that are not found which options those of the run need. with_format: --input-format, too."""
    try:
        yield
    except UsageError as error:
        options = [each for each in source_options(inputs) if with_format or each.startswith("--glob")]
        # What the run was given is better than a pattern that a directory's files propose.
        if options and (not error.option or (error.option == "--glob" and error.suggested)):
            error.option = error.suggested = None
            error.next_step = f"the same command with {' '.join(options)}"
        raise


def as_often(found: tuple[Input, ...], inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """Return found sources, each as often and where the inputs have it, and for the same side.

    None is found twice, but merged outputs may have it; those for validation may have been found among the others.
    """
    places = {path: place for place, path in enumerate(dict.fromkeys(each.path for each in inputs))}
    if any(each.side for each in inputs):
        paths = {each.path: place for place, each in enumerate(found)}
        places = paths if paths.keys() == places.keys() else places
    elif len(found) == len(inputs):
        return found
    if len(found) != len(places):
        return found
    return tuple(msgspec.structs.replace(found[places[each.path]], side=each.side) for each in inputs)


def as_encoded(found: tuple[Input, ...], inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """Return found sources, each in the encoding of the input in its place; where there are not as many, of those all alike."""
    encodings = [each.encoding for each in inputs]
    if len(found) != len(inputs):
        encodings = [encodings[0] if len(set(encodings)) == 1 else msgspec.UNSET] * len(found)
    return tuple(msgspec.structs.replace(each, encoding=encoding) for each, encoding in zip(found, encodings, strict=True))


def name_budget(error: TokmillError, manifest: Manifest) -> None:
    """Say in the error for a budget that is too small for a record which one the run had: it was enough."""
    history = manifest.history
    budget = max((attempt.budget_bytes for attempt in history.attempts), default=0) if isinstance(history, History) else 0
    if isinstance(error, MemoryBudgetError) and error.option == "--memory" and budget:
        error.suggested, error.next_step = f"{budget // MIB}MiB", "which the run had"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    file: str
    """Name within the directory."""
    what: str
    begin_byte: int | None = None
    """Where in the file it begins; None: the problem has no place."""
    end_byte: int | None = None
    """Where it ends, exclusive; None: at the end of the file."""

    def __str__(self) -> str:
        if self.begin_byte is None:
            return f"{self.file}: {self.what}"
        end = "end" if self.end_byte is None else f"{self.end_byte:,}"
        return f"{self.file}, bytes {self.begin_byte:,} to {end}: {self.what}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found."""

    directory: str
    ok: bool
    problems: list[Problem]
    """At most `MAX_PROBLEMS` of them."""
    n_problems: int
    n_files: int
    n_segments: int
    tokens_train: int
    tokens_val: int
    documents_train: int
    documents_val: int
    bytes_checked: int
    """Bytes of the output that were read."""
    sources_compared: bool
    compared_documents: int
    compared_bytes: int
    """Bytes of text that were decoded, or encoded again, and are the same."""
    elapsed_s: float
    reference: str = ""
    """The engine that gave the ids to compare with."""
    by_reference_documents: int = 0
    """Documents that it encoded again, with the same ids."""
    gives_text_back: bool = True
    """Whether the ids give the text back; else documents were encoded again, and the ids compared."""
    others: list[str] = msgspec.field(default_factory=list)
    """Files beside those of the output that no trainer reads: no damage."""
    repaired: list[Problem] | None = None
    """What was damaged and has been repaired; None: no repair was asked for."""
    can_repair: bool = True
    """Whether `--repair` is possible: not for outputs made from runs with different settings, or from bare files."""
    made_by: str = "tokenize"
    """The command that made it."""
    order_checked: bool = False
    """Whether it is a shuffled, mixed, packed or deduplicated output, each of whose documents was found in its place."""

    def raise_for_damage(self) -> None:
        """Raise DamageError if anything is wrong."""
        if self.ok:
            return
        directory = shlex.quote(self.directory)
        again = f"tokmill {self.made_by} ... --out {directory} --fresh"
        next_step = f"tokmill verify {directory} --repair, restore it from a copy, or make it again: {again}"
        if not self.can_repair:
            next_step = f"restore it from a copy, or make it again from what it was made from (made_from in its manifest): {again}"
        elif is_url(self.directory):
            # Nothing is repaired in a store.
            next_step = f"make it again: {again}; or copy it to a directory and tokmill verify DIR --repair"
        if self.repaired is not None:
            next_step = f"move away what the manifest does not list, or make all of it again: {again}"
        elif self.problems and all(problem.what == NOT_LISTED for problem in self.problems):
            next_step = "move away what the manifest does not list: a trainer that takes every file would read it"
        shown = shortened([str(problem) for problem in self.problems], len(self.problems), self.n_problems)
        raise DamageError(
            f"the output is damaged: {counted(self.n_problems, 'problem')}",
            where="\n".join([self.directory, *shown]),
            allowed="every byte as the manifest says",
            next_step=next_step,
        )


class Findings:
    """Problems that a check finds, a bounded number of them, and the reporter of its progress."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.reporter = ProgressReporter(observers)
        self.problems: list[Problem] = []
        self.n_problems = 0
        self.others: list[str] = []
        self.bytes_checked = 0

    def add(self, file: str, what: str, begin_byte: int | None = None, end_byte: int | None = None) -> None:
        """Record a problem."""
        self.n_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(file=file, what=what, begin_byte=begin_byte, end_byte=end_byte))
