"""The page that compares two complete outputs: numbers, lengths, documents that both have, token frequencies, settings."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.errors import UsageError
from tokmill.core.output_spec import SIDES
from tokmill.core.text import counted, format_bytes
from tokmill.reports.charts import ONE, TWO
from tokmill.reports.data import token_of
from tokmill.reports.figures import Figure, Table, size_figures
from tokmill.reports.reproduce import settings
from tokmill.reports.shared_documents import DocumentDigests, Shared, shared_documents
from tokmill.reports.token_stats import together

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.reports.data import ReportData

LABELS = ("A", "B")
_NAMES = {"train": "train", "val": "validation"}
_MOST_TOKENS = 20
"""Tokens that are listed."""


def prepare(both: Sequence[ReportData]) -> None:
    """Ask for what a comparison needs of the ids. Raises UsageError for an output that is not complete."""
    for data in both:
        if data.manifest is None:
            raise UsageError(
                "this output is not complete, and only complete ones are compared",
                where=str(data.directory),
                allowed="two complete outputs",
                next_step="run the command that makes it again: it goes on; tokmill report DIR shows what is there",
            )
        data.digests = {name: DocumentDigests() for name in SIDES}


def comparison(both: Sequence[ReportData]) -> dict[str, Any]:
    """Return what the template of a comparison shows of two outputs, whose statistics were added."""
    shared, shared_note, leaks = _shared(both)
    tokens, tokens_note = _tokens(both)
    wholes = [together(data.sides.values()) for data in both]
    return {
        "name": " and ".join(_names(both)),
        "compared": [(label, str(data.directory), _what(data)) for label, data in zip(LABELS, both, strict=True)],
        "leaks": leaks,
        "missing": missing_of(both),
        "numbers": _numbers(both),
        "document_figures": _figures(both, wholes),
        "shared": shared,
        "shared_note": shared_note,
        "tokens": tokens,
        "tokens_note": tokens_note,
        "settings": _settings(both),
        "commands": _commands(both) if shared.rows and len({_tokenizer_of(data) for data in both}) == 1 else "",
        "version": both[0].tokmill_version,
    }


def missing_of(both: Sequence[ReportData]) -> list[str]:
    """Return what a comparison lacks, and why."""
    said = [
        f"{label}: {sentence}"
        for label, data in zip(LABELS, both, strict=True)
        for sentence in data.missing
        if not sentence.startswith("Speed and memory")
    ]
    if _tokenizer_of(both[0]) != _tokenizer_of(both[1]):
        said.append(
            "Documents and tokens that both have: the ids are of two tokenizers. Lengths are in the tokens of each; compare bytes."
        )
    elif not both[0].content.tokenizer.sha256:
        said.append("Nobody said which tokenizers made these ids: documents and tokens are compared as if it were one.")
    return said


def _names(both: Sequence[ReportData]) -> list[str]:
    """Return the names of the directories, or their last two parts where those are the same."""
    names = [data.directory.name or str(data.directory) for data in both]
    return names if len({*names}) > 1 else ["/".join(data.directory.absolute().parts[-2:]) for data in both]


def _what(data: ReportData) -> str:
    content = data.content
    return f"{counted(len(content.inputs), 'input')}, {content.tokenizer.name}, format {content.format}, {content.dtype}"


def _tokenizer_of(data: ReportData) -> tuple[str, int]:
    """Return what says whether two outputs have ids of the same tokenizer."""
    return data.content.tokenizer.sha256 or "", data.content.tokenizer.n_ids


def _numbers(both: Sequence[ReportData]) -> Table:
    """Return the numbers of both outputs side by side."""
    columns = [_column(data) for data in both]
    rows = [(name, *(column.get(name, "-") for column in columns)) for name in dict.fromkeys(n for c in columns for n in c)]
    return Table("-: not known", ("", *LABELS), rows, numbers=(1, 2))


def _column(data: ReportData) -> dict[str, str]:
    """Return the numbers of one output, by name."""
    counts, whole = data.counts, together(data.sides.values())
    n_tokens = counts.tokens_train + counts.tokens_val
    found = {
        "documents": f"{counts.documents:,}",
        "for training": f"{counts.documents_train:,}",
        "for validation": f"{counts.documents_val:,}",
        "tokens": f"{n_tokens:,}",
        "tokens for training": f"{counts.tokens_train:,}",
        "tokens for validation": f"{counts.tokens_val:,}",
    }
    if data.knows_text:
        found["text"] = format_bytes(counts.bytes_text)
        found["bytes per token"] = f"{counts.bytes_text / n_tokens:.3f}" if n_tokens else "-"
    if whole.n_documents:
        found["median length, about"] = f"{whole.quantile(0.5):,.0f} tokens"
        found["longest document"] = f"{whole.longest:,} tokens"
        found["empty documents"] = f"{whole.n_empty:,}"
    if data.n_distinct_ids is not None:
        found["ids that occur"] = f"{data.n_distinct_ids:,} of {data.content.tokenizer.n_ids:,}"
    if data.knows_reading:
        found["records skipped"] = f"{sum(counts.skipped.values()):,}"
    return found


def _figures(both: Sequence[ReportData], wholes: Sequence[Any]) -> list[Figure]:
    """Return the figures of lengths and densities, both outputs in one."""
    sides = [(label, colour, whole) for label, colour, whole in zip(LABELS, (ONE, TWO), wholes, strict=True)]
    return size_figures(sides, knows_sizes=all(data.knows_sizes for data in both))


def _shared(both: Sequence[ReportData]) -> tuple[Table, str, list[str]]:
    """Return the table of what each side shares with each other, what is to be known of it, and what is a danger."""
    tokenizers = [_tokenizer_of(data) for data in both]
    sides = [
        (f"{label} {_NAMES[name]}", name, LABELS.index(label), data.digests[name], tokenizers.index(_tokenizer_of(data)))
        for label, data in zip(LABELS, both, strict=True)
        for name in SIDES
        if name in data.sides and data.sides[name].n_documents > data.sides[name].n_empty
    ]
    found, level = shared_documents([each[3] for each in sides], [each[4] for each in sides])
    scale, about = 1 << level, "about " if level else ""
    rows = []
    for (label, *_), own in zip(sides, found, strict=True):
        cells = ["-" if n is None else _share(n * scale, own.documents * scale, about) for n in own.also_in]
        rows.append((label, f"{about}{own.documents * scale:,}", _share(own.copies * scale, own.documents * scale, about), *cells))
    heads = ("documents of", "in all", "copies", *(f"also in {each[0]}" for each in sides))
    note = "Documents with the same ids, end-of-text ids and empty documents aside. Copies: all but the first on their own side."
    if level:
        note += f" Estimated from one in {scale:,} documents, chosen by what is in them."
    return Table("Exact copies", heads, rows, numbers=range(1, len(heads))), note, _leaks(sides, found, scale, about)


def _leaks(sides: Sequence[tuple[Any, ...]], found: Sequence[Shared], scale: int, about: str) -> list[str]:
    """Return sentences about validation documents that are in a training side."""
    return [
        f"{about}{n * scale:,} of the {own.documents * scale:,} documents of {label} are also in {sides[j][0]}."
        for (label, name, *_), own in zip(sides, found, strict=True)
        for j, n in enumerate(own.also_in)
        if name == "val" and n and sides[j][1] == "train"
    ]


def _share(n: int, of: int, about: str) -> str:
    return f"{about}{n:,} ({100 * n / of:.1f} %)" if n else "0"


def _tokens(both: Sequence[ReportData]) -> tuple[Table, str]:
    """Return the tokens whose shares differ most, and how much all of them do; no rows if the ids are of two tokenizers."""
    heads = ("id", "token", "share in A", "share in B", "B less A")
    counts = [_frequencies(data) for data in both]
    if _tokenizer_of(both[0]) != _tokenizer_of(both[1]) or any(each is None or not each.sum() for each in counts):
        return Table("", heads, ()), ""
    a, b = (each / each.sum() for each in counts if each is not None)
    differ = np.argsort(-np.abs(b - a), kind="stable")[:_MOST_TOKENS].tolist()
    rows = [
        (f"{i:,}", _text(both, i), f"{100 * a[i]:.3f} %", f"{100 * b[i]:.3f} %", f"{100 * (b[i] - a[i]):+.3f}")
        for i in differ
        if a[i] != b[i]
    ]
    only = [int(np.count_nonzero((one > 0) & (other == 0))) for one, other in ((a, b), (b, a))]
    note = (
        f"{100 * float(np.abs(a - b).sum()) / 2:.1f} % of the tokens of one would have to be others for both to have the same "
        f"frequencies. {counted(only[0], 'id occurs', 'ids occur')} in A alone, {only[1]:,} in B alone."
    )
    return Table("Tokens whose shares differ most; the last column is in percentage points", heads, rows, (0, 2, 3, 4), (1,)), note


def _frequencies(data: ReportData) -> NDArray[np.int64] | None:
    """Return how often each id occurs, without the end-of-text id."""
    if data.frequencies is None:
        return None
    found = data.frequencies.copy()
    found[data.content.tokenizer.eot_id : data.content.tokenizer.eot_id + 1] = 0
    return found


def _text(both: Sequence[ReportData], number: int) -> str:
    texts = [token_of(data, number, 0).text for data in both]
    return next((text.replace(" ", "\u2423") for text in texts if text is not None), "-")


def _settings(both: Sequence[ReportData]) -> Table:
    """Return the settings that are not the same."""
    columns = [dict(settings(data.content)) for data in both]
    names = [name for name in dict.fromkeys(n for c in columns for n in c) if name != "fingerprint"]
    rows = [
        (name, *(column.get(name, "-") for column in columns)) for name in names if columns[0].get(name) != columns[1].get(name)
    ]
    return Table("What decides the bytes, where it differs", ("setting", *LABELS), rows, mono=(1, 2))


def _commands(both: Sequence[ReportData]) -> str:
    """Return commands that do something about what the page shows."""
    a, b = (shlex.quote(os.fspath(data.directory)) for data in both)
    out = shlex.quote(f"{os.fspath(both[0].directory).rstrip('/')}-without-b")
    return "\n".join(
        (
            "# A without the documents that B has; --near 0.8 finds near copies, too",
            f"tokmill dedup {a} --against {b} --out {out}",
            "# a page about each",
            f"tokmill report {a}",
            f"tokmill report {b}",
        )
    )
