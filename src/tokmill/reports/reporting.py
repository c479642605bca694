"""`report`: one HTML page about an output directory, or about two, without references to anything else.

The page never replaces a file of an output, of the corpus, or that tokmill did not make.
"""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tokmill.core.config import local_path
from tokmill.core.errors import DiskFullError, StorageError, UsageError
from tokmill.core.records import STDIN, Location, is_url, text_to_path
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.refusals import explaining
from tokmill.core.system.tree import beside
from tokmill.core.text import counted, format_bytes, format_duration, format_memory, format_rate, printable, printable_line
from tokmill.output import why_protected
from tokmill.reports.comparing import comparison, missing_of, prepare
from tokmill.reports.data import MOST_SKIPS, ReportData, add_statistics, load_data
from tokmill.reports.figures import Table, document_figures, history_figures
from tokmill.reports.mixture import mixture_figures, val_table
from tokmill.reports.removals import removal_tables
from tokmill.reports.reproduce import commands, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template

    from tokmill.core.protocols import Observer
    from tokmill.core.records import Counts, Input

REPORT_NAME, COMPARISON_NAME = "report.html", "comparison.html"
_HEAD = b"<!doctype html>"
_TITLE = b"<title>tokmill: "
_HEAD_BYTES = 256
_MANY_INPUTS = 30
"""More are told by kind first."""
MOST_INPUTS = 200
"""Inputs, and files of the output, that are listed."""


class ReportPage(msgspec.Struct, frozen=True, kw_only=True):
    """The page that was made; the object that `--json` prints."""

    path: str
    """Absolute path of the page."""
    size_bytes: int
    is_complete: bool
    """Whether the output is complete."""
    missing: list[str]
    """What the report lacks, and why."""
    elapsed_s: float


def report(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    other: str | os.PathLike[str] | None = None,
    force: bool = False,
    tokenizer: str | None = None,
    observers: Sequence[Observer] = (),
) -> ReportPage:
    """Write a page about an output directory, complete or interrupted, or one that compares two, as `tokmill report` does.

    Args:
        directory: Of the output.
        out: The file to write; None: `report.html` in the directory, of a comparison `comparison.html` in the working directory.
        other: Another output, which is compared with the first: numbers, lengths, documents that both have, token frequencies
            and settings. Both must be complete.
        force: Replace another file that is there; never one of an output or of the corpus.
        tokenizer: Where the tokenizer of the output is now, as for `tokenize`. None: as the manifest says, without a network.
        observers: Told of the progress.

    Raises:
        UsageError: If there is no output, or the extra `report` is not installed.
        DamageError: If the output is damaged.
        StorageError: If the page cannot be written.
    """
    began_s = time.monotonic()
    sources = [Path(local_path(directory)), *([] if other is None else [Path(local_path(other, "other"))])]
    is_default = out is None and other is None
    usual = sources[0] / REPORT_NAME if other is None else Path(COMPARISON_NAME).absolute()
    target = usual if out is None else Path(local_path(out, "out"))
    with explaining(str(sources[0])):
        _check_target(target, is_default=is_default)
        found = [load_data(source) for source in sources]
        named = (text_to_path(each.path) for data in found for each in data.content.inputs if each.path != STDIN)
        inputs = [path for path in named if not is_url(path)]
        target = _check_free(target, sources, inputs, is_default=is_default, force=force)
        if other is not None:
            prepare(found)
        for data in found:
            add_statistics(data, observers, tokenizer)
        page = make_page(found[0]) if other is None else _template("comparison").render(**comparison(found))
        page_bytes = page.encode("utf-8", "backslashreplace")
        _write_page(target, page_bytes, is_default=is_default)
    return ReportPage(
        path=str(target),
        size_bytes=len(page_bytes),
        is_complete=all(data.manifest is not None for data in found),
        missing=found[0].missing if other is None else missing_of(found),
        elapsed_s=round(time.monotonic() - began_s, 3),
    )


def _check_target(path: Path, *, is_default: bool) -> None:
    """Raise UsageError if no file can be written there."""
    if path.is_dir() or not (path.parent.is_dir() or is_default):
        what = "the file of the report is a directory" if path.is_dir() else "the directory of the report is not there"
        raise UsageError(
            what,
            where=str(path if path.is_dir() else path.parent),
            allowed="--out FILE, in a directory that exists",
            next_step=f"tokmill report DIR --out {REPORT_NAME}",
        )


def _check_free(path: Path, sources: Sequence[Path], inputs: Sequence[str], *, is_default: bool, force: bool) -> Path:
    """Return the file to write: what a given link leads to, but not what a link at the default place leads to, or a pipe there.

    Args:
        path: Where the page is to go.
        sources: The outputs that the page is about.
        inputs: Their corpora.
        is_default: Whether nobody gave `path`.
        force: Replace any file that is neither of an output nor of the corpus.

    Raises:
        UsageError: If the file must not be replaced.
    """
    mode = beside(path).mode() if is_default else 0
    is_foreign = bool(mode) and not stat.S_ISREG(mode)
    if path.exists() and not path.is_file() and not is_foreign:
        # A pipe or a device: what it leads to may have no name.
        return path
    target = path if is_foreign else Path(os.path.realpath(path))
    taken = None if is_foreign else why_protected(target, sources, inputs)
    if taken:
        raise UsageError(
            f"the report would replace {taken}",
            where=str(target),
            allowed="a file of its own",
            next_step=f"choose another place: tokmill report DIR --out {REPORT_NAME}",
        )
    if not force and (is_foreign or not _is_replaceable(target)):
        raise UsageError(
            "a symbolic link is where the report goes"
            if stat.S_ISLNK(mode)
            else "a pipe or device is where the report goes"
            if is_foreign
            else "a file is there that is not a report of tokmill",
            where=str(target),
            allowed="no file, or an earlier report, which is replaced; with --force, any other file too",
            next_step="choose another --out FILE, or add --force",
        )
    return target


def _is_replaceable(path: Path) -> bool:
    """Return whether the file is missing, empty, or a page of tokmill."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not head or (head.startswith(_HEAD) and _TITLE in head)


def _write_page(path: Path, data: bytes, *, is_default: bool) -> None:
    """Replace a file as a whole, or write to a pipe or device that was named. Raise StorageError or DiskFullError."""
    try:
        with storage_errors(path):
            if is_default or not path.exists() or path.is_file():
                durable.write_aside(beside(path), data)
                return
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                durable.write_all(fd, data)
            finally:
                os.close(fd)
    except (StorageError, DiskFullError) as error:
        raise type(error)(
            f"the report could not be written: {error.__cause__.strerror if isinstance(error.__cause__, OSError) else error.what}",
            where=str(path),
            allowed=f"{counted(len(data), 'byte')} where this user may write",
            next_step=f"choose another place: tokmill report DIR --out {REPORT_NAME}",
        ) from error


def make_page(data: ReportData) -> str:
    """Return the page about an output."""
    content, counts = data.content, data.counts
    # First, as it may say what is missing.
    removed = removal_tables(data)
    done = "complete" if data.manifest else "not complete: interrupted, or still under way"
    distinct = f"{data.n_distinct_ids:,} of {content.tokenizer.n_ids:,} ids occur" if data.n_distinct_ids else ""
    return _template("page").render(
        name=data.directory.name or str(data.directory),
        where=_where(data),
        beginning=data.beginning,
        what=f"{counted(len(content.inputs), 'input')}, {content.tokenizer.name}, format {content.format}, {content.dtype}; {done}",
        unfinished=[] if data.manifest else _unfinished(data),
        facts=_facts(data),
        missing=data.missing,
        said=list(dict.fromkeys(said for _, said in data.history.notices)) if data.history else [],
        has_history=bool(data.history),
        run_figures=history_figures(data),
        mixture_figures=mixture_figures(data.manifest),
        val_sources=val_table(data.manifest),
        document_figures=document_figures(data),
        removed=removed,
        files=_files(data),
        kinds=_kinds(data),
        inputs=_inputs(data),
        skipped=_skipped(data) if any(counts.skipped.values()) else [],
        frequent=data.frequent,
        n_tokens=sum(side.n_tokens for side in data.sides.values()),
        distinct=distinct,
        commands=commands(
            content,
            data.manifest.made_from if data.manifest else (),
            str(data.directory),
            data.manifest.removal if data.manifest else None,
        ),
        settings=Table("Everything that decides the bytes", ("setting", "value"), settings(content), mono=(1,)),
        version=data.tokmill_version,
    )


def _where(data: ReportData) -> str:
    """Return where the output is, and when it was completed."""
    when = f", completed {datetime.fromtimestamp(data.made_at_s, UTC):%Y-%m-%d %H:%M} UTC" if data.made_at_s else ""
    return f"{data.directory.absolute()}{when}"


def _template(name: str) -> Template:
    """Return the template of a page. What comes from a corpus, a path or a tokenizer is escaped, and its controls are visible."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable_line(str(value)),
    )
    environment.filters["lines"] = lambda value: Markup(escape(printable(value)))  # noqa: S704  it is escaped
    return environment.get_template(f"{name}.html.jinja")


def _unfinished(data: ReportData) -> list[str]:
    said = "Below is what was committed so far. The same tokmill command again goes on from there."
    if not data.segments:
        return [said, "Nothing was committed yet."]
    after, inputs = data.segments[-1].after, data.content.inputs
    if after.input_index >= len(inputs):
        return [said, "It was at the end of the last input."]
    where = Location(path=inputs[after.input_index].path, offset=after.offset or None)
    return [said, f"It was at input {after.input_index + 1:,} of {len(inputs):,}: {where}."]


def _facts(data: ReportData) -> list[tuple[str, str, str]]:
    counts, content = data.counts, data.content
    n_tokens = counts.tokens_train + counts.tokens_val
    rows = [
        ("documents", f"{counts.documents:,}", f"train {counts.documents_train:,}, validation {counts.documents_val:,}"),
        ("tokens", f"{n_tokens:,}", f"train {counts.tokens_train:,}, validation {counts.tokens_val:,}"),
        *_density_facts(data, n_tokens),
        *_packed_facts(data),
        ("ids", content.dtype, f"vocabulary of {content.tokenizer.n_ids:,}"),
        ("time", f"{data.elapsed_s:.1f} s" if data.elapsed_s < 60 else format_duration(data.elapsed_s), _rate(data)),
    ]
    rows.append(_memory_fact(data))
    if not data.knows_reading:
        return rows
    rows.append(("audit", *_audit(counts)))
    if counts.invalid_utf8_documents:
        what = f"documents, {counted(counts.invalid_utf8_bytes, 'byte')}: changed by --encoding-errors {content.encoding_errors}"
        rows.append(("not UTF-8", f"{counts.invalid_utf8_documents:,}", what))
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.skipped.items()) if n)
    return [*rows, ("skipped", f"{sum(counts.skipped.values()):,}", reasons or "nothing was left out")]


def _packed_facts(data: ReportData) -> list[tuple[str, str, str]]:
    """Return what came of each side of a packed output."""
    sequence = data.content.packing.sequence if data.content.packing else 1
    rows = []
    for name, side in ((data.manifest.packed if data.manifest else None) or {}).items():
        padding = f"{side.padding / max(1, side.sequences * sequence):.2%} padding"
        cut = f"{side.cut:,} documents cut, by windows end to end {side.cut_by_windows:,}"
        rows.append((f"sequences of {name}", f"{side.sequences:,}", f"{sequence:,} tokens each, {padding}; {cut}"))
    return rows


def _density_facts(data: ReportData, n_tokens: int) -> list[tuple[str, str, str]]:
    if any(each.format == "ids" for each in data.content.inputs):
        return [("bytes per token", "not known", "ids that came from other tools' files: nobody said how much text they are")]
    if not data.knows_text:
        return []
    n_bytes = data.counts.bytes_text
    return [("bytes per token", f"{n_bytes / n_tokens:.3f}" if n_tokens else "none", f"{format_bytes(n_bytes)} of text")]


def _rate(data: ReportData) -> str:
    made_from = data.manifest.made_from if data.manifest else ()
    how = made_from[-1].how if isinstance(made_from, tuple) and made_from else None
    if how == "append":
        return "of the append alone, and so is what is said of memory: of the runs before it nothing is kept"
    if not data.elapsed_s or not data.counts.bytes_in or how:
        return "of copying, without start and end of the command" if how else ""
    attempts = data.history.n_attempts if data.history else 1
    rate = format_rate(data.counts.bytes_in / data.elapsed_s)
    return f"{rate}; of reading, encoding and writing, without start and end of the command" + (
        f", in {attempts} runs" if attempts > 1 else ""
    )


def _memory_fact(data: ReportData) -> tuple[str, str, str]:
    attempts = data.history.attempts if data.history else ()
    budget = max((attempt.budget_bytes for attempt in attempts), default=0)
    peak = max((rss for attempt in attempts for rss in attempt.rss_bytes), default=0)
    peak = max(peak, data.manifest.peak_rss_bytes if data.manifest else 0)
    note = "peak of coordinator and workers"
    note += f", of a budget of {format_memory(budget)} for all processes" if budget else ""
    return ("memory", format_memory(peak) if peak else "not known", note)


def _audit(counts: Counts) -> tuple[str, str]:
    if not counts.audited_documents:
        return "none", "no document was encoded a second time"
    documents = counted(counts.audited_documents, "document")
    return "the same", f"{documents}, {format_bytes(counts.audited_bytes)} of text, encoded again by the reference tokenizer"


def _files(data: ReportData) -> Table:
    files = data.manifest.files if data.manifest else {}
    rows = [
        (name, f"{entry.tokens:,}", f"{entry.documents:,}", format_bytes(entry.size_bytes))
        for name, entry in list(files.items())[:MOST_INPUTS]
    ]
    more = f", the first {MOST_INPUTS}" if len(files) > MOST_INPUTS else ""
    caption = f"{counted(len(files), 'file')} of the output{more}"
    return Table(caption, ("file", "tokens", "documents", "size"), rows, numbers=(1, 2, 3))


def _kinds(data: ReportData) -> Table:
    """Return what kinds of inputs there are, where they are many; else no rows."""
    inputs = data.content.inputs
    groups: dict[tuple[str, str], list[Input]] = {}
    for each in inputs if len(inputs) > _MANY_INPUTS else ():
        kind = each.format if each.compression == "none" else f"{each.format}, {each.compression}"
        groups.setdefault((os.path.splitext(each.path)[1] or "no suffix", kind), []).append(each)
    rows = [
        (
            suffix,
            kind,
            f"{len(group):,}",
            format_bytes(sum(each.size_bytes or 0 for each in group)),
            f"{sum(data.skipped_by_input[each.path] for each in group):,}",
        )
        for (suffix, kind), group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    caption = f"{counted(len(inputs), 'input')}, by suffix"
    return Table(caption, ("suffix", "kind", "inputs", "on disk", "bad records"), rows, numbers=(2, 3, 4))


def _inputs(data: ReportData) -> Table:
    inputs = data.content.inputs
    densities = _densities(data) if data.knows_text else {}
    rows = []
    for i, each in enumerate(inputs[:MOST_INPUTS]):
        kind = each.format if each.compression == "none" else f"{each.format}, {each.compression}"
        n_bytes, n_tokens = densities.get(i, (0, 0))
        density = [f"{n_bytes / n_tokens:.3f}" if n_tokens else "-"] if densities else []
        path = "standard input" if each.path == STDIN else each.path
        size = "not known" if each.size_bytes is None else format_bytes(each.size_bytes)
        rows.append((path, kind, size, *density, f"{data.skipped_by_input[each.path]:,}"))
    total = sum(each.size_bytes or 0 for each in inputs)
    shown = f"; the first {MOST_INPUTS} of them are listed" if len(inputs) > MOST_INPUTS else ""
    caption = f"{counted(len(inputs), 'input')}, {format_bytes(total)} on disk{shown}."
    if densities:
        caption += " Bytes per token: of the commits that lie wholly within an input (-: none does)."
    heads = ("input", "kind", "on disk", *["bytes per token"] * bool(densities), "bad records")
    return Table(caption, heads, rows, numbers=range(2, len(heads)))


def _densities(data: ReportData) -> dict[int, tuple[int, int]]:
    """Return bytes of text and tokens of the segments that lie within one input, by the input's number."""
    found: dict[int, tuple[int, int]] = {}
    index, before = 0, (0, 0)
    for segment in data.segments:
        after, counts = segment.after, segment.counts
        now = (counts.bytes_text, counts.tokens_train + counts.tokens_val)
        if after.input_index == index or (after.input_index == index + 1 and not after.offset and not after.record):
            n_bytes, n_tokens = found.get(index, (0, 0))
            found[index] = (n_bytes + now[0] - before[0], n_tokens + now[1] - before[1])
        index, before = after.input_index, now
    return found


def _skipped(data: ReportData) -> list[Table]:
    """Return how many records were skipped by reason, and where the first of them are."""
    reasons = [(reason, f"{n:,}") for reason, n in sorted(data.counts.skipped.items()) if n]
    rows = [(str(skip.get("path")), _records(skip), _number(skip.get("offset")), _reason(skip)) for skip in data.skips]
    listed = sum(data.skipped_by_input.values())
    shown = f"the first {MOST_SKIPS} of " if listed > MOST_SKIPS else ""
    caption = f"{counted(sum(data.counts.skipped.values()), 'record')}, by reason"
    where = Table(f"Where: {shown}{listed:,}", ("input", "record", "byte", "reason"), rows, numbers=(1, 2))
    return [Table(caption, ("reason", "records"), reasons, numbers=(1,)), *([where] if rows else [])]


def _reason(skip: dict[str, Any]) -> str:
    key = skip.get("text_key")
    return f"{skip.get('reason')}, under {key}" if key is not None else str(skip.get("reason"))


def _records(skip: dict[str, Any]) -> str:
    first, n = skip.get("record"), skip.get("records", 1)
    return _number(first) + (f" to {first + n - 1:,}" if isinstance(first, int) and isinstance(n, int) and n > 1 else "")


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
