"""What a deduplication removed, for the report: shares, groups by size, and the largest groups with their texts side by side."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.deduplication import REMOVED_NAME, Removal
from tokmill.core.errors import TokmillError
from tokmill.core.records import is_url, text_to_path
from tokmill.core.system.tree import beside
from tokmill.core.text import counted, printable_bytes
from tokmill.dataset import open_dataset
from tokmill.reports.figures import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.core.config import Provenance
    from tokmill.core.manifest import Manifest
    from tokmill.dataset import Dataset, Ids
    from tokmill.reports.data import ReportData

_MOST_READ_BYTES = 64 << 20
"""Of the list of removed documents."""
_MOST_SHOWN = 10
_SHOWN_TOKENS = 80
_BEFORE_TOKENS = 16
"""Of these, as many as lie before the first that differs."""
_MOST_COMPARED = 1 << 20
"""Tokens of a document in which that is looked for."""
_SIZES = ((1, 1), (2, 3), (4, 9), (10, 99), (100, None))

Line = dict[str, Any]
Kept = tuple[int, str, int]
"""Source, side and number of a document that stays."""


def removal_tables(data: ReportData) -> list[Table]:
    """Return the tables about what was removed; none for an output from which nothing was removed."""
    manifest = data.manifest
    if manifest is None or not isinstance(manifest.removal, Removal):
        return []
    lines, is_cut = _lines(data)
    groups = Counter((line["kept_source"], line["kept_side"], line["kept_document"]) for line in lines)
    tables = [_shares(manifest, manifest.removal)]
    if groups:
        tables.append(_sizes(groups, is_cut=is_cut))
        tables += _largest(data, manifest, lines, groups, is_cut=is_cut)
    return tables


def _shares(manifest: Manifest, removal: Removal) -> Table:
    """Return what went from each source."""
    rows = []
    paths = [text_to_path(each.path) for each in _deduplicated(manifest)]
    for i, each in enumerate(removal.sources):
        share = (each.copy_tokens + each.near_copy_tokens) / each.tokens if each.tokens else 0.0
        name = paths[i] if i < len(paths) else "the inputs"
        rows.append((name, f"{each.documents:,}", f"{each.copies:,}", f"{each.near_copies:,}", f"{share:.2%}"))
    said = (
        f"{counted(removal.compared_pairs, 'pair')} compared, {removal.short:,} too short and {removal.long:,} too long for that; "
    )
    said += f"{removal.unexamined:,} kept though they had more candidates than were compared"
    caption = f"Documents of the training sides. {said if removal.clusters else 'Copies alone, no near copies'}."
    return Table(
        caption, ("source", "documents", "copies removed", "near copies removed", "share of tokens"), rows, numbers=(1, 2, 3, 4)
    )


def _deduplicated(manifest: Manifest) -> tuple[Provenance, ...]:
    """Return the outputs that were deduplicated, perhaps before this one was converted; none where they were steps of making it."""
    made_from = manifest.made_from or ()
    while made_from and made_from[0].how != "dedup":
        made_from = made_from[0].made_from
    return made_from


def _sizes(groups: Mapping[Kept, int], *, is_cut: bool) -> Table:
    """Return how many documents stay for how many that went."""
    rows = []
    for least, most in _SIZES:
        found = [n for n in groups.values() if least <= n and (most is None or n <= most)]
        label = f"{least:,}" if least == most else f"{least:,} or more" if most is None else f"{least:,} to {most:,}"
        rows.append((label, f"{len(found):,}", f"{sum(found):,}"))
    caption = "Documents that stay, by the number of documents that were removed for each"
    caption += f"; of the first {_MOST_READ_BYTES >> 20} MiB of {REMOVED_NAME}." if is_cut else "."
    return Table(caption, ("removed for one", "documents that stay", "removed"), rows, numbers=(1, 2))


def _largest(data: ReportData, manifest: Manifest, lines: list[Line], groups: Counter[Kept], *, is_cut: bool) -> list[Table]:
    """Return the largest groups, each with the document that stays and the one that is least like it, where the two differ."""
    largest = sorted(groups, key=lambda kept: (-groups[kept], kept))[:_MOST_SHOWN]
    least: dict[Kept, Line] = {}
    for line in lines:
        kept = (line["kept_source"], line["kept_side"], line["kept_document"])
        if kept in largest and (kept not in least or line["similarity"] < least[kept]["similarity"]):
            least[kept] = line
    rows = []
    try:
        with ExitStack() as stack:
            sources = _Sources(manifest, stack)
            for kept in largest:
                line = least[kept]
                stays, goes = sources.ids(*kept), sources.ids(line["source"], "train", line["document"])
                differ = _first_difference(stays, goes)
                begin = max(0, differ - _BEFORE_TOKENS) if differ is not None else 0
                texts = sources.text(kept[0], stays, begin), sources.text(line["source"], goes, begin)
                shown = "nowhere" if differ is None else f"{differ:,}"
                rows.append((f"{groups[kept]:,}", f"{line['similarity']:.3f}", shown, *texts))
    except (TokmillError, OSError, IndexError, KeyError):
        data.missing.append(
            "Texts of removed documents: the outputs that it was made from are not where they were, or not the same."
        )
        return []
    caption = (
        f"The {counted(len(rows), 'largest group', 'largest groups')}: {_SHOWN_TOKENS} tokens of the document that stays, and of "
    )
    caption += "the one among the removed that is least like it, from shortly before the first token that differs"
    caption += f"; of the first {_MOST_READ_BYTES >> 20} MiB of {REMOVED_NAME}." if is_cut else "."
    heads = ("removed", "similarity", "differ from token", "stays", "removed, least alike")
    return [Table(caption, heads, rows, numbers=(0, 1, 2), mono=(3, 4))]


def _first_difference(first: Ids, second: Ids) -> int | None:
    """Return the place of the first token in which two documents differ; None: they are the same, as far as is looked."""
    n = min(len(first), len(second), _MOST_COMPARED)
    places = np.flatnonzero(first[:n] != second[:n])
    if len(places):
        return int(places[0])
    return n if len(first) != len(second) and n < _MOST_COMPARED else None


class _Sources:
    """The outputs whose documents were compared, opened when they are asked for."""

    def __init__(self, manifest: Manifest, stack: ExitStack) -> None:
        origin = manifest.content.origin
        rule = origin.deduplicated if origin else None
        removal = manifest.removal or Removal(sources=())
        prints = [*(rule.sources if rule else ()), *(rule.against if rule else ())]
        paths = [each.path for each in _deduplicated(manifest)]
        first = (rule.part or 0) if rule else 0
        n_sources = len(rule.sources) if rule else 0
        self._places = {first + i: path for i, path in enumerate(paths)} | {
            n_sources + i: path for i, path in enumerate(removal.against)
        }
        self._prints = prints
        self._stack = stack
        self._opened: dict[int, Dataset] = {}

    def ids(self, source: int, side: str, number: int) -> Ids:
        """Return the ids of a document. Raises KeyError, IndexError, TokmillError."""
        if source not in self._opened:
            path = text_to_path(self._places[source])
            if is_url(path) or not Path(path).is_dir():
                raise KeyError(source)
            dataset = self._stack.enter_context(open_dataset(path))
            if dataset.manifest is None or dataset.manifest.fingerprint != self._prints[source]:
                raise KeyError(source)
            self._opened[source] = dataset
        return self._opened[source].document(side, number)

    def text(self, source: int, ids: Ids, begin: int) -> str:
        """Return tokens of a document of a source as text, from one on."""
        text = printable_bytes(self._opened[source].decode_bytes(ids[begin : begin + _SHOWN_TOKENS]))
        return f"... {text}" if begin else text


def _lines(data: ReportData) -> tuple[list[Line], bool]:
    """Return the lines about removed documents, and whether there are more. The file is not trusted."""
    found: list[Line] = []
    path = beside(data.directory / REMOVED_NAME)
    if not path.exists():
        return found, False
    n_read = 0
    with open(path.open(), "rb") as file:
        for line in file:
            n_read += len(line)
            if n_read > _MOST_READ_BYTES:
                return found, True
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict) and _is_sound(values):
                found.append(values)
    return found, False


def _is_sound(line: Line) -> bool:
    numbers = all(
        type(line.get(name)) is int and line[name] >= 0 for name in ("source", "document", "kept_source", "kept_document")
    )
    return numbers and line.get("kept_side") in ("train", "val") and isinstance(line.get("similarity"), (int, float))
