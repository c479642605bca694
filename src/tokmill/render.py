"""Results and errors as text for people and as JSON. Pure functions; the command line writes what they return."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import msgspec

from tokmill.printable import printable, printable_line
from tokmill.progress import format_bytes, format_duration, format_memory

if TYPE_CHECKING:
    from tokmill.api import Summary
    from tokmill.errors import TokmillError
    from tokmill.inspection import Inspection, Preview
    from tokmill.verification import Report


def json_line(value: object) -> str:
    """One JSON object on one line, ASCII only: nothing in it can act upon a terminal."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=True)


def error_lines(error: TokmillError) -> str:
    """The four parts of an error, one below the other."""
    lines = [f"tokmill: error: {printable_line(error.what)}"]
    for label, text in error.details():
        first, *more = printable(text).split("\n")
        lines += [f"  {label + ':':<8} {first}", *(f"           {line}" for line in more)]
    return "\n".join(lines)


def error_object(error: TokmillError) -> dict[str, object]:
    """What `--json` prints of an error."""
    parts = {"what": error.what, "where": error.where, "allowed": error.allowed, "next": error.next_step}
    return {"error": {"type": type(error).__name__, **parts}, "exit_code": error.exit_code}


def summary_lines(summary: Summary) -> str:
    """The end of a run of tokenize."""
    n_tokens = summary.tokens_train + summary.tokens_val
    head = "complete already, nothing to do" if summary.already_complete else "done"
    rows = [
        ("documents", f"{summary.documents:,}  (train {summary.documents_train:,}, validation {summary.documents_val:,})"),
        ("tokens", f"{n_tokens:,}  (train {summary.tokens_train:,}, validation {summary.tokens_val:,}), {summary.dtype}"),
        ("text in", f"{format_bytes(summary.bytes_in)}{_per_token(summary.bytes_text, n_tokens)}"),
    ]
    if not summary.already_complete:
        speed = f"{summary.bytes_per_s / 1e6:,.0f} MB/s, {summary.tokens_per_s / 1e6:,.1f} Mtokens/s"
        went_on = ", gone on from an earlier run" if summary.resumed else ""
        memory = f"{format_memory(summary.peak_rss_bytes)} at the peak, of {format_memory(summary.budget_bytes)}"
        rows += [("time", f"{_seconds(summary.elapsed_s)}, {speed}{went_on}"), ("memory", memory)]
    if summary.restarts:
        rows.append(("restarts", f"{summary.restarts} (the worker was lost and went on from the last commit)"))
    rows += [("skipped", ", ".join(f"{n:,} {reason}" for reason, n in sorted(summary.skipped.items())) or "none")]
    if summary.invalid_utf8_documents:
        rows.append(("not UTF-8", f"{summary.invalid_utf8_documents:,} documents, mended as --encoding-errors says"))
    rows.append(("audited", f"{summary.audited_documents:,} documents, the same as the reference tokenizer's"))
    rows += [("files", ", ".join(f"{name} ({format_bytes(e.size_bytes)})" for name, e in sorted(summary.files.items())))]
    rows += [("in", printable_line(summary.out)), ("next", f"tokmill verify {_quoted(summary.out)}")]
    return "\n".join([f"tokmill: {head}", *_aligned(rows)])


def report_lines(report: Report) -> str:
    """What verify found, when all is well; damage is rendered as the error that it is."""
    compared = f"{report.compared_documents:,} documents, {format_bytes(report.compared_bytes)}: the same"
    rows = [
        ("files", f"{report.n_files:,}, {format_bytes(report.bytes_checked)} in {report.n_segments:,} segments: as written"),
        ("tokens", f"train {report.tokens_train:,}, validation {report.tokens_val:,}: all in range"),
        ("documents", f"train {report.documents_train:,}, validation {report.documents_val:,}"),
        ("sources", compared if report.sources_compared else "not compared (pass --source INPUT...)"),
        ("time", _seconds(report.elapsed_s)),
        ("in", printable_line(report.directory)),
        ("next", f"tokmill inspect {_quoted(report.directory)}"),
    ]
    return "\n".join(["tokmill: sound", *_aligned(rows)])


def inspection_lines(found: Inspection) -> str:
    """What inspect found."""
    tokenizer = printable_line(found.tokenizer or "not known (pass --tokenizer for a preview)")
    if found.tokenizer_sha256:
        tokenizer += f"  (sha256 {found.tokenizer_sha256[:12]}...)"
    eot = "none between documents" if found.eot == "none" else f"{found.eot_id} {found.eot} each document"
    rows = [("tokenizer", tokenizer), ("ids", f"{found.dtype}, little-endian"), ("end of text", eot)]
    if found.eot_id is None:
        rows[-1] = ("end of text", "not known (pass --eot-id to find documents)")
    for side in found.sides:
        documents = f", {side.documents:,} documents" if side.documents is not None else ""
        rows.append((side.side, f"{side.tokens:,} tokens{documents}, {format_bytes(side.size_bytes)}"))
    if found.bytes_text is not None:
        n_tokens = sum(side.tokens for side in found.sides)
        rows.append(("text", f"{format_bytes(found.bytes_text)}{_per_token(found.bytes_text, n_tokens)}"))
        rows.append(("skipped", ", ".join(f"{n:,} {reason}" for reason, n in sorted(found.skipped.items())) or "none"))
    made = (
        f"made by tokmill {found.tokmill_version} from {found.n_inputs:,} inputs"
        if found.kind == "directory"
        else "a bare file"
    )
    lines = [f"{printable_line(found.path)}: {made}", *_aligned(rows)]
    for preview in found.previews:
        lines += ["", *_preview_lines(preview)]
    return "\n".join(lines)


def _preview_lines(preview: Preview) -> list[str]:
    more = "" if preview.shown_tokens == preview.n_tokens else f", the first {preview.shown_tokens:,}"
    head = f"{preview.side}, document {preview.document:,}: {preview.n_tokens:,} tokens{more}"
    return [head, *(f"  | {line}" for line in preview.text.split("\n"))]


def _per_token(n_bytes: int, n_tokens: int) -> str:
    return f", {n_bytes / n_tokens:.2f} bytes per token" if n_tokens else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)


def _quoted(path: str) -> str:
    return printable_line(shlex.quote(path))


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {text}" for label, text in rows]
