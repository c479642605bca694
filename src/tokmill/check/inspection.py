"""What is in an output directory or a bare file of ids: counts, sizes, and a decoded preview of documents."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import path_text
from tokmill.core.errors import UsageError
from tokmill.core.manifest import knows_reading
from tokmill.core.output_spec import SIDES
from tokmill.core.packing import PackedSide
from tokmill.core.records import is_url
from tokmill.core.text import counted, printable_bytes
from tokmill.dataset import Dataset, extents_of, open_dataset, refuse_options
from tokmill.formats import FORMATS
from tokmill.store import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.manifest import Manifest
    from tokmill.core.records import IdType

MAX_PREVIEW_TOKENS = 100_000


class SideSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One side of the output."""

    side: str
    tokens: int
    documents: int | None
    """None where the end of documents is not marked or not known."""
    size_bytes: int
    """Size of the ids."""
    n_files: int
    """That hold the ids; an index beside them does not count."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of one document, decoded."""

    side: str
    document: int | None
    """From 0. None: documents cannot be told apart, and this is the beginning of the side."""
    n_tokens: int
    """Tokens of the whole document, or of the whole side."""
    shown_tokens: int
    ids: list[int]
    """The ids that are shown."""
    text: str
    """Controls and bytes that are not UTF-8 as escapes: safe on a terminal."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What `inspect` found."""

    path: str
    kind: str
    """`directory` (complete, with a manifest) or `file` (bare ids)."""
    format: str | None
    """None of a bare file."""
    dtype: str
    eot: str
    eot_id: int | None
    tokenizer: str | None
    tokenizer_sha256: str | None
    tokmill_version: str | None
    sides: list[SideSummary]
    bytes_text: int | None
    """Text that was encoded; None: no manifest says it, as for ids from another tool's files."""
    bytes_per_token: float | None
    """End-of-text ids count as tokens, not as text."""
    skipped: dict[str, int] | None
    """Records by reason; None: nobody counted them, as for documents that were shuffled or chosen later."""
    invalid_utf8_documents: int
    """Documents changed by --encoding-errors replace or ignore."""
    n_inputs: int | None
    sequence: int | None = None
    """Tokens of each sequence of a packed output."""
    packed: dict[str, PackedSide] = {}
    """What became of each side of a packed output."""
    previews: list[Preview]


def inspect(
    path: str | Path,
    *,
    dtype: IdType | None = None,
    tokenizer: str | None = None,
    eot_id: int | None = None,
    documents: Sequence[int] | None = None,
    side: str = "train",
    n_tokens: int = 100,
) -> Inspection:
    """Describe an output, or a bare file of ids.

    Args:
        path: Output directory, URL of an output in a store, or file of ids.
        dtype: Of a bare file.
        tokenizer: Of a bare file, of a directory whose manifest does not know it, or where the manifest's own is now.
        eot_id: Of a bare file.
        documents: Numbers (from 0) of the documents to preview on `side`. None: the first one, or, if documents cannot be told
            apart, the beginning of the side.
        side: `train` or `val`.
        n_tokens: Shown of each document, at most.

    Raises:
        UsageError: If there is no output, or a document is asked for that cannot be found or decoded.
        DamageError: If the output is damaged.
    """
    _check_options(side, n_tokens, documents)
    with _opened(path, dtype=dtype, eot_id=eot_id, tokenizer=tokenizer) as dataset:
        manifest = dataset.manifest
        counts = manifest.counts if manifest else None
        n_text = (
            (counts.bytes_text or None) if manifest and counts and all(i.format != "ids" for i in manifest.content.inputs) else None
        )
        # Those of shards that were left out, too: the text is that of all.
        n_all = counts.tokens_train + counts.tokens_val if counts else 0
        return Inspection(
            path=redacted(str(path)) if is_url(str(path)) else str(Path(path)),
            kind="directory" if manifest else "file",
            format=manifest.content.format if manifest else None,
            dtype=dataset.dtype.name,
            eot=dataset.eot,
            eot_id=dataset.eot_id,
            tokenizer=dataset.tokenizer.name if dataset.tokenizer else None,
            tokenizer_sha256=dataset.tokenizer.sha256 if dataset.tokenizer else None,
            tokmill_version=manifest.tokmill_version if manifest else None,
            sides=[_summarize(dataset, name) for name in SIDES if manifest or name == "train"],
            bytes_text=n_text,
            bytes_per_token=n_text / n_all if n_text is not None and n_all else None,
            skipped=dict(counts.skipped) if manifest and counts and knows_reading(manifest.content, counts) else None,
            invalid_utf8_documents=counts.invalid_utf8_documents if counts else 0,
            n_inputs=len(manifest.content.inputs) if manifest else None,
            sequence=dataset.packing.sequence if dataset.packing else None,
            packed=(manifest.packed or {}) if manifest else {},
            previews=_previews(dataset, side, documents, n_tokens),
        )


def _opened(path: str | Path, *, dtype: IdType | None, eot_id: int | None, tokenizer: str | None) -> Dataset:
    """Open what is inspected. An output in a store says everything about itself, but where its tokenizer is now."""
    if not is_url(path_text(path, "path")):
        return open_dataset(path, dtype=dtype, eot_id=eot_id, tokenizer=tokenizer)
    from tokmill.check.remote_dataset import RemoteDataset

    refuse_options(str(path), dtype, eot_id)
    return RemoteDataset(str(path), tokenizer)


def _check_options(side: str, n_tokens: int, documents: Sequence[int] | None) -> None:
    given: tuple[object, ...] = (n_tokens, *(documents or ()))
    wrong = [each for each in given if not isinstance(each, Integral)]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not a whole number", where="documents, n_tokens", allowed="int", next_step="give an int")
    if side not in SIDES:
        raise UsageError(f"there is no side {side!r}", option="--side", allowed="train or val", suggested="train")
    if not 0 <= n_tokens <= MAX_PREVIEW_TOKENS:
        raise UsageError(
            f"a preview of {counted(n_tokens, 'token')}",
            option="--tokens",
            allowed=f"0 to {MAX_PREVIEW_TOKENS:,}",
            suggested="100",
        )


def _has_documents(dataset: Dataset) -> bool:
    return dataset.eot != "none" and dataset.eot_id is not None and (dataset.packing is None or dataset.knows_starts)


def _summarize(dataset: Dataset, side: str) -> SideSummary:
    ids = dataset.side(side)
    is_known = dataset.manifest is not None or _has_documents(dataset)
    return SideSummary(
        side=side,
        tokens=len(ids),
        documents=_n_documents(dataset, side) if is_known else None,
        size_bytes=ids.nbytes,
        n_files=_n_files(dataset.manifest, side) if dataset.manifest else 1,
    )


def _n_documents(dataset: Dataset, side: str) -> int:
    """Return the documents of a side; in a packed output one that is cut is one all the same."""
    packed = dataset.manifest.packed if dataset.manifest else None
    return packed[side].documents if packed else dataset.n_documents(side)


def _n_files(manifest: Manifest, side: str) -> int:
    suffix = FORMATS[manifest.content.format].suffix
    return sum(extent.name.endswith(suffix) for extent in extents_of(manifest, side))


def _previews(dataset: Dataset, side: str, documents: Sequence[int] | None, n_tokens: int) -> list[Preview]:
    """Return previews of the documents asked for; by default of the first one, or of the beginning of the side."""
    if documents is not None:
        return [_preview(dataset, side, _checked(dataset, side, number), n_tokens) for number in documents]
    if dataset.tokenizer is None or not len(dataset.side(side)):
        return []
    return [_preview(dataset, side, 0 if _has_documents(dataset) else None, n_tokens)]


def _checked(dataset: Dataset, side: str, number: int) -> int:
    """Return the number of a document, if there is one. Raise UsageError."""
    n_documents = dataset.n_documents(side) if _has_documents(dataset) else None
    if number < 0 or (n_documents is not None and number >= n_documents):
        raise UsageError(
            f"there is no document {number:,}",
            where=f"side {side}",
            allowed=f"0 to {n_documents - 1:,}"
            if n_documents
            else "0 or more"
            if n_documents is None
            else "none: this side is empty",
            option="--document" if n_documents else "--side",
            suggested="0" if n_documents else "val" if side == "train" else "train",
        )
    return number


def _preview(dataset: Dataset, side: str, number: int | None, n_tokens: int) -> Preview:
    ids = dataset.side(side) if number is None else dataset.document(side, number)
    shown = ids[:n_tokens]
    return Preview(
        side=side,
        document=number,
        n_tokens=len(ids),
        shown_tokens=len(shown),
        ids=shown.tolist(),
        text=printable_bytes(dataset.decode_bytes(shown)),
    )
