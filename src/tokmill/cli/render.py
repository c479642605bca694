"""Results and errors as text for people and as JSON. Pure functions; the command line writes what they return."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.outcome import share_text
from tokmill.core.records import NOT_SAMPLED, STDIN, is_url
from tokmill.core.secrets import shown_in
from tokmill.core.text import (
    counted,
    format_bytes,
    format_duration,
    format_memory,
    format_rate,
    printable_line,
    quoted,
    shortened,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokmill.check import Inspection, Preview, Problem, Report
    from tokmill.core.deduplication import Removal
    from tokmill.core.errors import TokmillError
    from tokmill.core.outcome import Outcome
    from tokmill.core.packing import PackedSide
    from tokmill.core.records import FileEntry
    from tokmill.encode import Fetched, Vocabulary
    from tokmill.reports import ReportPage
    from tokmill.run import Estimate, InputPlan, Plan, Summary


def json_line(value: object) -> str:
    """One JSON object on one line, ASCII only: nothing in it can act upon a terminal."""
    # DEL alone is a control character that JSON does not escape.
    return json.dumps(shown_in(msgspec.to_builtins(value), is_ours=False), ensure_ascii=True).replace("\x7f", "\\u007f")


def error_lines(error: TokmillError) -> str:
    """Return the four parts of an error, one a line."""
    lines = [f"tokmill: error: {printable_line(error.what)}"]
    for label, text in error.details():
        # What is to be typed may name many files, each of them given.
        most = _LONGEST_COMMAND if label == "next" else _LONGEST_PART
        first, *more = (printable_line(line, most) for line in text.split("\n"))
        lines += [f"  {label + ':':<8} {first}", *(f"           {line}" for line in more)]
    return "\n".join(lines)


def error_object(error: TokmillError) -> dict[str, object]:
    """Return what `--json` prints of an error."""
    parts = {"what": error.what, "where": None, "allowed": None, "next": None, **dict(error.details())}
    fields = {"option": error.option, "suggested": error.suggested, "path": error.path, "resumes": error.resumes}
    return {"error": {"type": type(error).__name__, **parts, **fields}, "exit_code": error.exit_code}


def summary_lines(summary: Summary, *, is_empty: bool = False) -> str:
    """Return the summary of a run of tokenize. is_empty: no token came of it, and the error for that follows."""
    n_tokens = summary.tokens_train + summary.tokens_val
    removed = summary.removal.sources if summary.removal else ()
    n_encoded = n_tokens + sum(each.copy_tokens + each.near_copy_tokens for each in removed)
    rows = [
        ("documents", f"{summary.documents:,}  ({_parts(summary)})"),
        ("tokens", f"{n_tokens:,}  (train {summary.tokens_train:,}, validation {summary.tokens_val:,}), {summary.dtype}"),
        *_added_rows(summary),
        *(_removal_rows(summary.removal, [""]) if summary.removal else []),
        ("read", format_bytes(summary.bytes_in)),
        ("text", f"{format_bytes(summary.bytes_text)}{_per_token(summary.bytes_text, n_encoded)}"),
    ]
    if not summary.already_complete:
        memory = f"{format_memory(summary.peak_rss_bytes)} at the peak, of {format_memory(summary.budget_bytes)}"
        rows += [*_times(summary), ("memory", memory)]
    if summary.uploaded_bytes:
        rows.append(
            ("sent", f"{format_bytes(summary.uploaded_bytes)}, the run waited {_seconds(summary.upload_s)} for the last upload")
        )
    if summary.restarts:
        rows.append(("restarts", f"{summary.restarts} (a process was lost; the run continued from the last commit)"))
    rows += [("skipped", ", ".join(f"{n:,} {reason}" for reason, n in sorted(summary.skipped.items())) or "none")]
    rows += _replaced_rows(summary.invalid_utf8_documents)
    audited = f"{counted(summary.audited_documents, 'document')} encoded again by the reference tokenizer: the same ids"
    rows.append(("audited", audited if summary.audited_documents else "none"))
    rows += [("files", _file_names(summary.files))]
    rows.append(("in", summary.out))
    if not is_empty:
        rows.append(("next", summary.next_step or f"tokmill verify {quoted(summary.out)}"))
    return "\n".join([_head(summary.already_complete, is_empty), *_aligned(rows), *_notes(summary.notices)])


def _head(already_complete: bool, is_empty: bool) -> str:  # noqa: FBT001
    if is_empty:
        return f"tokmill: {'complete already, and nothing came of it' if already_complete else 'ended, and nothing came of it'}"
    return f"tokmill: {'complete already, nothing to do' if already_complete else 'done'}"


def _added_rows(summary: Summary) -> list[tuple[str, str]]:
    """Return what an append added; the rows above count what there is now."""
    old = summary.appended_to
    if old is None:
        return []
    parts = []
    for unit in ("documents", "tokens"):
        train, val = (getattr(summary, f"{unit}_{side}") - getattr(old, f"{unit}_{side}") for side in ("train", "val"))
        parts.append(f"{counted(train + val, unit[:-1])} (train {train:,}, validation {val:,})")
    return [("of it added", ", ".join(parts))]


def _times(summary: Summary) -> list[tuple[str, str]]:
    """Return time and speed of the command, and of the work alone, as a report shows them."""
    went_on = ", continued from an earlier run" if summary.resumed and summary.appended_to is None else ""
    tokens = f"{summary.tokens_per_s / 1e6:,.1f} Mtokens/s"
    rows = [("time", f"{_seconds(summary.elapsed_s)} of the command, {format_rate(summary.bytes_per_s)}, {tokens}{went_on}")]
    if summary.work_s and not summary.restarts:
        rate = format_rate(summary.bytes_per_s * summary.elapsed_s / summary.work_s)
        rows.append(("", f"{_seconds(summary.work_s)} of it reading, encoding and writing, {rate}"))
    return rows


def _replaced_rows(n_documents: int) -> list[tuple[str, str]]:
    return [("not UTF-8", f"{counted(n_documents, 'document')}, corrected as --encoding-errors says")] if n_documents else []


def _parts(summary: Summary) -> str:
    """Return where the documents went: counts that add up to all, except for documents divided between the sides."""
    n_empty = summary.skipped.get("empty", 0)
    n_left_out = summary.skipped.get(NOT_SAMPLED, 0)
    n_skipped = sum(summary.skipped.values()) - n_empty - n_left_out
    n_divided = summary.documents_train + summary.documents_val + n_empty + n_left_out + n_skipped - summary.documents
    parts = [f"train {summary.documents_train:,}", f"validation {summary.documents_val:,}"]
    parts += [f"{name} {n:,}" for name, n in (("not sampled", n_left_out), ("empty", n_empty), ("skipped", n_skipped)) if n]
    return ", ".join(parts) + (f"; {counted(n_divided, 'piece')} more, of documents over 64 MiB" if n_divided else "")


def _file_names(files: Mapping[str, FileEntry]) -> str:
    """Return names and sizes if there are few files, else their number and total size."""
    if len(files) <= _MOST_FILES:
        return ", ".join(f"{name} ({format_bytes(entry.size_bytes)})" for name, entry in sorted(files.items()))
    return f"{len(files):,}, {format_bytes(sum(entry.size_bytes for entry in files.values()))}"


_LONGEST_PART, _LONGEST_COMMAND = 4096, 1 << 20
"""Characters of a line of an error."""
_MOST_FILES = 6
"""Files of an output that are named."""
_MOST_INPUTS = 12
"""Inputs that are listed."""
_MOST_OTHERS = 5
_MOST_REPAIRED = 12
"""Repaired ranges that are listed."""


def plan_lines(plan: Plan) -> str:
    """Return the estimates of a plan."""
    lines = ["tokmill: plan", "  inputs", *_indented(_input_rows(plan))]
    lines += _aligned([*_text_rows(plan), *_disk_rows(plan), *_time_rows(plan)])
    lines += ["  memory", *_indented(_memory_rows(plan))]
    return "\n".join([*lines, *_notes(plan.notices)])


def rows_of(head: str, rows: list[tuple[str, str]]) -> str:
    """Return rows below a headline."""
    return "\n".join([head, *_aligned(rows)])


def _notes(notices: Sequence[str]) -> list[str]:
    return [f"  note: {printable_line(notice)}" for notice in notices]


def _input_rows(plan: Plan) -> list[tuple[str, str]]:
    shown = plan.inputs if len(plan.inputs) <= _MOST_INPUTS + 1 else plan.inputs[:_MOST_INPUTS]
    rows = [(each.path if each.path != STDIN else "standard input", _input_text(each)) for each in shown]
    if len(shown) < len(plan.inputs):
        rows.append((f"... {len(plan.inputs) - len(shown):,} more", ""))
    if len(plan.inputs) > 1:
        sizes = [each.size_bytes or 0 for each in plan.inputs]
        on_disk = sum(each.disk_bytes or 0 for each in plan.inputs)
        rows.append((counted(len(plan.inputs), "input"), f"{format_bytes(sum(sizes))}, {format_bytes(on_disk)} on disk"))
    return rows


def _input_text(each: InputPlan) -> str:
    for_val = ", for validation" if each.side else ""
    if each.size_bytes is None:
        return f"{each.format}, size not known{for_val}"
    kind = each.format if each.compression == "none" else f"{each.format}, {each.compression}"
    on_disk = "" if each.disk_bytes is None else f"{format_bytes(each.disk_bytes)} on disk, "
    text = f"{format_bytes(each.size_bytes)}, {on_disk}{kind}"
    if each.compression != "none" and each.decompressed_bytes is not None:
        text += f", {'about ' if each.decompressed_is_estimate else ''}{format_bytes(each.decompressed_bytes)} decompressed"
    return text + for_val


def _text_rows(plan: Plan) -> list[tuple[str, str]]:
    if plan.totals is None:
        return [("tokens", f"not known: standard input and pipes can be read only once; ids are {plan.dtype}")]
    found = plan.totals
    density = f", {plan.bytes_per_token:.2f} bytes per token" if plan.bytes_per_token else ""
    rows = [
        ("to read", _estimate(found.bytes_in, format_bytes)),
        ("text", f"{_estimate(found.bytes_text, format_bytes)}{density}"),
        ("documents", _estimate(found.documents)),
        ("tokens", _estimate(found.tokens)),
    ]
    how = (
        "all of it was encoded"
        if plan.is_exact
        else f"from {counted(found.n_windows, 'window')}, {format_bytes(found.sampled_bytes)} of text"
    )
    return [*rows, ("sample", how)]


def _disk_rows(plan: Plan) -> list[tuple[str, str]]:
    if plan.output_bytes is None:
        return []
    rows = [("output", f"{_estimate(plan.output_bytes, format_bytes)}, {plan.dtype}")]
    if plan.passes > 1 and plan.scratch_bytes is not None:
        passes = "tokenized, into buckets, in order" if plan.passes > 2 else "tokenized, then without copies"
        rows.append(("passes", f"{plan.passes}: {passes}; {_estimate(plan.scratch_bytes, format_bytes)} of temporary disk"))
    if plan.disk is None:
        return [*rows, ("disk", "not checked (pass --out DIR)")]
    disk = plan.disk
    verdict = "complete already, nothing will be written" if plan.is_complete else "it fits" if disk.fits else "IT DOES NOT FIT"
    written = f", {format_bytes(disk.written_bytes)} of it written already" if disk.written_bytes else ""
    needed = f"{format_bytes(disk.needed_bytes)} needed ({format_bytes(disk.bookkeeping_bytes)} for journal and manifest{written})"
    free = "what is free is not known" if disk.free_bytes is None else f"{format_bytes(disk.free_bytes)} free: {verdict}"
    return [*rows, ("disk", f"{needed}, {free}"), ("on", printable_line(disk.path))]


def _time_rows(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    if plan.time is not None:
        time = plan.time
        rate = (
            f", engine {time.engine_bytes_per_s / 1e6:,.0f} MB/s a thread, measured on the sample"
            if time.engine_bytes_per_s
            else ""
        )
        between = f"{_seconds(time.low_s)} to {_seconds(time.high_s)}"
        rows.append(("time", f"about {_seconds(time.expected_s)} ({between}), {counted(time.n_threads, 'thread')}{rate}"))
    if plan.list_of_ints_bytes is not None:
        rows.append(("as a list", f"{format_bytes(plan.list_of_ints_bytes)} if these ids were Python ints in a list"))
    return rows


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    memory = plan.memory
    n = memory.terms.n_threads
    terms = [
        ("this process", memory.parent_bytes),
        ("coordinator", memory.coordinator_bytes),
        (f"{counted(n, 'worker')} at rest", n * memory.worker_bytes),
        ("reference tokenizer", memory.reference_bytes),
        ("list of inputs", memory.inputs_bytes),
        ("what they read", n * memory.reader_bytes + memory.held_whole_bytes),
        ("batches in flight", n * memory.in_flight_bytes),
        ("engine's caches, at most", memory.caches_bytes),
        ("all of these", memory.peak_bytes),
        ("budget (--memory)", memory.budget_bytes),
    ]
    if memory.peak_bytes >> 20 == memory.budget_bytes >> 20:
        # The caches may take what is left: the sum is no forecast, it is the budget.
        terms.pop(-2)
    rows = [(label, f"{n_bytes / (1 << 20):>7,.0f} MiB") for label, n_bytes in terms]
    if memory.available_bytes is not None:
        rows.append(("available now", f"{memory.available_bytes / (1 << 20):>7,.0f} MiB"))
    return rows


def _estimate(estimate: Estimate, text: Callable[[float], str] = lambda n: f"{n:,.0f}") -> str:
    """Return a number with its interval, or alone if it was counted."""
    if estimate.low == estimate.high:
        return text(estimate.value)
    percent = f" (± {50 * (estimate.high - estimate.low) / estimate.value:.1f} %)" if estimate.value else ""
    return f"about {text(estimate.value)}{percent}"


def _indented(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {line}" for line in _aligned(rows)]


def _compared(report: Report) -> str:
    n, size, by = report.compared_documents, format_bytes(report.compared_bytes), report.by_reference_documents
    if report.gives_text_back:
        return (
            f"{counted(n, 'document')}, {size}, decoded: the same; {by:,} of them encoded again by {report.reference}: the same ids"
        )
    again = f"{counted(n, 'document')}, {size}, encoded again, {by:,} of them by {report.reference}"
    return f"{again}: the same ids; this tokenizer does not give the text back"


def report_lines(report: Report, notices: Sequence[str] = ()) -> str:
    """Return what verify found if all is well; damage is printed as an error. notices: of the command."""
    compared = _compared(report)
    if not report.sources_compared:
        is_possible = not is_url(report.directory) and report.can_repair
        compared = "not compared (--source compares with the corpus)" if is_possible else "not compared"
    rows = [
        (
            "files",
            f"{report.n_files:,}, {format_bytes(report.bytes_checked)} in {counted(report.n_segments, 'segment')}: as written",
        ),
        ("tokens", f"train {report.tokens_train:,}, validation {report.tokens_val:,}: all in range"),
        ("documents", f"train {report.documents_train:,}, validation {report.documents_val:,}"),
        *[("order", "each document that was taken from the sources is in its place")] * report.order_checked,
        *(_repaired_rows(report.repaired) if report.repaired is not None else [("sources", compared)]),
        ("time", _seconds(report.elapsed_s)),
        ("in", report.directory),
        ("next", f"tokmill inspect {quoted(report.directory)}"),
    ]
    others = ", ".join(shortened(report.others, _MOST_OTHERS))
    notices = [*notices, *[f"not of the output, and read by no trainer: {others}"] * bool(others)]
    head = "tokmill: sound" + ("" if report.tokens_train or report.tokens_val else ", but it holds no token")
    return "\n".join([head, *_aligned(rows), *_notes(notices)])


def outcome_lines(outcome: Outcome, made_of: str = "output", *, is_empty: bool = False) -> str:
    """Return the summary of a merge, a conversion or a reshard. made_of: what its sources are called; is_empty: as above."""
    n_tokens = outcome.tokens_train + outcome.tokens_val
    rows = [
        ("from", counted(len(outcome.sources), made_of)),
        ("tokens", f"{n_tokens:,}  (train {outcome.tokens_train:,}, validation {outcome.tokens_val:,}), {outcome.dtype}"),
        ("documents", f"train {outcome.documents_train:,}, validation {outcome.documents_val:,}"),
        ("format", outcome.format),
        *(("mixture", f"{share_text(each)}: {each.name or each.path}") for each in outcome.mixture),
        *((f"packed {side}", _packed_line(outcome.sequence or 1, each)) for side, each in outcome.packed.items() if each.sequences),
        *(_removal_rows(outcome.removal, outcome.sources) if outcome.removal else []),
    ]
    if not outcome.already_complete:
        went_on = ", continued from an earlier run" if outcome.resumed else ""
        rate = f", {format_rate(outcome.bytes_per_s)}" if outcome.bytes_per_s else ""
        rows.append(("time", f"{_seconds(outcome.elapsed_s)}{rate}{went_on}"))
        rows.append(("memory", f"{format_memory(outcome.peak_rss_bytes)} at the peak"))
    if outcome.dry_run:
        rows.append(("output", f"none; the same command without --dry-run goes on with what was found, in {outcome.out}"))
        return "\n".join(["tokmill: looked, and made nothing", *_aligned(rows), *_notes(outcome.notices)])
    rows.append(("files", f"{len(outcome.files):,}, {format_bytes(outcome.bytes_out)}"))
    rows.append(("in", outcome.out))
    if not is_empty:
        rows.append(("next", f"tokmill verify {quoted(outcome.out)}"))
    return "\n".join([_head(outcome.already_complete, is_empty), *_aligned(rows), *_notes(outcome.notices)])


def _removal_rows(removal: Removal, sources: Sequence[str]) -> list[tuple[str, str]]:
    """Return what was removed from each source. sources: their directories, empty if tokenized here; of parts of a recipe, all."""
    rows = []
    for each, path in zip(removal.sources, sources, strict=False):
        n, n_tokens = each.copies + each.near_copies, each.copy_tokens + each.near_copy_tokens
        kinds = f"{counted(each.copies, 'copy', 'copies')}, {counted(each.near_copies, 'near copy', 'near copies')}"
        share = f"{n_tokens / each.tokens:.2%} of the tokens" if each.tokens else "no token"
        of = f": {path}" if path else ""
        rows.append(("removed", f"{n:,} of {counted(each.documents, 'document')} ({kinds}), {share}{of}"))
    if removal.compared_pairs or removal.short or removal.long:
        told = f"{counted(removal.compared_pairs, 'pair')} of {counted(removal.clusters, 'cluster')} compared"
        left = f"{removal.short:,} too short and {removal.long:,} too long to be near copies"
        rows.append(("looked at", f"{told}; left alone: {left}; {removal.unexamined:,} not compared with all candidates"))
    return rows


def _packed_line(sequence: int, side: PackedSide) -> str:
    padding = side.padding / (side.sequences * sequence)
    cut, by_windows = (f"{n:,} ({n / max(1, side.source_documents):.2%})" for n in (side.cut, side.cut_by_windows))
    parts = [
        f"{counted(side.sequences, 'sequence')} of {sequence:,}, {padding:.2%} padding",
        f"documents cut {cut}, by windows end to end {by_windows}",
    ]
    return ", ".join(parts) + (f", {side.dropped_tokens:,} tokens left out" if side.dropped_tokens else "")


def page_lines(made: ReportPage) -> str:
    """Return where the report is, and what it lacks."""
    state = "" if made.is_complete else ", of an output that is not complete"
    size, seconds = format_bytes(made.size_bytes), _seconds(made.elapsed_s)
    head = f"tokmill: {printable_line(made.path)} ({size}, {seconds}{state})"
    return "\n".join([head, *_notes([f"not in it: {sentence}" for sentence in made.missing])])


def _repaired_rows(repaired: list[Problem]) -> list[tuple[str, str]]:
    shown = shortened([str(each) for each in repaired], _MOST_REPAIRED)
    return [("repaired", text) for text in shown or ["nothing: nothing was damaged"]]


def inspection_lines(found: Inspection) -> str:
    """Return what inspect found."""
    tokenizer = found.tokenizer or "not known (pass --tokenizer for a preview)"
    if found.tokenizer_sha256:
        tokenizer += f"  (sha256 {found.tokenizer_sha256[:12]}...)"
    eot = "none between documents" if found.eot == "none" else f"{found.eot_id} {found.eot} each document"
    rows = [("tokenizer", tokenizer), ("ids", f"{found.dtype}, little-endian"), ("end of text", eot)]
    if found.eot_id is None:
        rows[-1] = ("end of text", "not known (pass --eot-id to find documents)")
    if found.format is not None:
        rows.insert(1, ("format", found.format))
    for side in found.sides:
        documents = f", {counted(side.documents, 'document')}" if side.documents is not None else ""
        files = f" in {counted(side.n_files, 'file')}" if found.kind == "directory" and side.n_files else ""
        rows.append((side.side, f"{counted(side.tokens, 'token')}{documents}, {format_bytes(side.size_bytes)}{files}"))
    rows += [(f"packed {side}", _packed_line(found.sequence or 1, each)) for side, each in found.packed.items() if each.sequences]
    if found.bytes_text is not None:
        per_token = f", {found.bytes_per_token:.2f} bytes per token" if found.bytes_per_token else ""
        rows.append(("text", f"{format_bytes(found.bytes_text)}{per_token}"))
    if found.skipped is not None:
        rows.append(("skipped", ", ".join(f"{n:,} {reason}" for reason, n in sorted(found.skipped.items())) or "none"))
    rows += _replaced_rows(found.invalid_utf8_documents)
    made = (
        f"made by tokmill {found.tokmill_version} from {counted(found.n_inputs or 0, 'input')}"
        if found.kind == "directory"
        else "a bare file"
    )
    lines = [printable_line(f"{found.path}: {made}"), *_aligned(rows)]
    for preview in found.previews:
        lines += ["", *_preview_lines(preview)]
    return "\n".join(lines)


def _preview_lines(preview: Preview) -> list[str]:
    more = "" if preview.shown_tokens == preview.n_tokens else f", the first {preview.shown_tokens:,}"
    what = (
        f"document {preview.document:,}"
        if preview.document is not None
        else "all documents, which cannot be told apart (--eot none)"
    )
    head = f"{preview.side}, {what}: {counted(preview.n_tokens, 'token')}{more}"
    return [head, *(f"  | {line}" for line in preview.text.split("\n"))]


def _per_token(n_bytes: int, n_tokens: int) -> str:
    return f", {n_bytes / n_tokens:.2f} bytes per token" if n_tokens else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    rows = [(printable_line(label), printable_line(text)) for label, text in rows]
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {text}" for label, text in rows]


def vocabulary_line(found: Vocabulary) -> str:
    """Return one published encoding, what it is for, and where it is."""
    where = printable_line(found.path) if found.path else f"not here: tokmill vocab fetch {found.name} --to DIR"
    return f"{found.name:<12} {found.n_ids:>7,} ids, end of text {found.eot_id:>7,}  {found.models}\n    {where}"


def fetched_line(fetched: Fetched) -> str:
    """Return where the file is now, and how to use it."""
    how = "was there already" if fetched.was_there else format_bytes(fetched.size_bytes)
    lines = (f"{fetched.name}: {fetched.path} ({how}, SHA-256 as published)", f"    --tokenizer {quoted(fetched.path)}")
    return "\n".join(map(printable_line, lines))
