"""What came of a command, as records: made from the manifest of the output in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokmill.core.deduplication import Removal
from tokmill.core.errors import InputError
from tokmill.core.events import Finished
from tokmill.core.packing import PackedSide
from tokmill.core.records import FileEntry, text_to_path
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokmill.core.manifest import Manifest


class SourceShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one source became in a mixture."""

    path: str
    """Directory of the output, absolute."""
    name: str = ""
    """What a recipe calls it."""
    wished_share: float
    """Share of the training side's tokens that its weight asked for."""
    reached_share: float
    tokens: int
    documents: int
    epochs: float
    """Tokens by those that the source has: how often a document was taken, on average."""
    least_times: int
    """How often each document was taken, at least."""
    most_times: int
    """At most: the same, or one more."""
    val_begin: int
    """Where its documents begin on the validation side, in tokens."""
    val_end: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge, a conversion or a reshard did; the object that `--json` prints."""

    out: str
    """Output directory, absolute."""
    format: str
    dtype: str
    tokenizer: str
    sources: list[str]
    """What it was made from, absolute, in order."""
    documents_train: int
    documents_val: int
    tokens_train: int
    tokens_val: int
    bytes_out: int
    """Size of all files of the output."""
    elapsed_s: float
    """Duration of this call."""
    bytes_per_s: float
    """Output that this call wrote, by its time."""
    peak_rss_bytes: int
    resumed: bool
    already_complete: bool
    files: dict[str, FileEntry]
    notices: list[str]
    mixture: list[SourceShare] = []
    """The sources of a mixture, in order; empty where it is none."""
    sequence: int | None = None
    """Tokens of each sequence of a packed output."""
    packed: dict[str, PackedSide] = {}
    """What became of each side of a packed output."""
    removal: Removal | None = None
    """Of an output without copies: what was removed."""
    dry_run: bool = False
    """Whether no output was made."""


NOTHING = "no token was written: "
"""How the notice of an output without a token begins."""


def share_text(share: SourceShare) -> str:
    """Return what a source became, in words."""
    times = f"each document {share.least_times} or {share.most_times} times ({share.epochs:.2f} epochs)"
    if share.most_times == share.least_times:
        times = f"each document {counted(share.least_times, 'time')}"
    return f"{share.reached_share:.2%} of {share.wished_share:.2%} wished, {share.tokens:,} tokens, {times}"


def emptiness(files: Mapping[str, FileEntry], out: str, notices: Sequence[str], *, tokens_before: int = 0) -> InputError | None:
    """Return the error for an output without a token, or an append that added none: nobody wants that, and a script must stop.

    Args:
        files: Of the output.
        out: Its directory or URL.
        notices: What was said of it; one of them may be the reason.
        tokens_before: Tokens of the output that was appended to.
    """
    if sum(entry.tokens for entry in files.values()) > tokens_before:
        return None
    why = next((each for each in notices if each.startswith(NOTHING)), f"{NOTHING}what it was made from holds no token")
    next_step = "check the inputs and how they are read, then run with --fresh"
    if tokens_before:
        next_step = (
            "check the new inputs and how they are read; append others, or make the output of all again in another directory"
        )
        why = "nothing was added: the new inputs hold no text, or every record of them was skipped"
    return InputError(why, where=out, allowed="an output with a token", next_step=next_step)


def outcome_of(
    manifest: Manifest,
    out: str,
    sources: Sequence[str],
    elapsed_s: float,
    *,
    resumed: bool = False,
    already_complete: bool = False,
    written_bytes: int = 0,
    notices: Sequence[str] = (),
) -> Outcome:
    """Return what a command did that made the output of this manifest, or found it complete. written_bytes: by this call."""
    content, counts = manifest.content, manifest.counts
    return Outcome(
        out=out,
        format=content.format,
        dtype=content.dtype,
        tokenizer=content.tokenizer.name,
        sources=list(sources),
        documents_train=counts.documents_train,
        documents_val=counts.documents_val,
        tokens_train=counts.tokens_train,
        tokens_val=counts.tokens_val,
        bytes_out=sum(entry.size_bytes for entry in manifest.files.values()),
        elapsed_s=round(elapsed_s, 3),
        bytes_per_s=round(written_bytes / elapsed_s, 1),
        peak_rss_bytes=peak_rss_bytes(),
        resumed=resumed,
        already_complete=already_complete,
        files=dict(manifest.files),
        notices=list(notices),
        mixture=mixture_of(manifest),
        sequence=content.packing.sequence if content.packing else None,
        packed=manifest.packed or {},
        removal=manifest.removal or None,
    )


def mixture_of(manifest: Manifest) -> list[SourceShare]:
    """Return what each source of a mixture became; nothing of another output."""
    arranged = manifest.content.origin.arranged if manifest.content.origin else None
    made_from = manifest.made_from or ()
    if arranged is None or any(each.how != "mix" for each in made_from) or len(made_from) != len(arranged.sources):
        return []
    wished, taken = (
        max(1, sum(getattr(source, field) for source in arranged.sources)) for field in ("wished_tokens", "taken_tokens")
    )
    found, val_begin = [], 0
    for source, origin in zip(arranged.sources, made_from, strict=True):
        found.append(
            SourceShare(
                path=text_to_path(origin.path),
                name=origin.name,
                wished_share=source.wished_tokens / wished,
                reached_share=source.taken_tokens / taken,
                tokens=source.taken_tokens,
                documents=source.taken_documents,
                epochs=source.taken_tokens / source.tokens if source.tokens else 0.0,
                least_times=source.taken_documents // max(1, source.documents),
                most_times=-(-source.taken_documents // max(1, source.documents)),
                val_begin=val_begin,
                val_end=val_begin + origin.tokens_val,
            )
        )
        val_begin += origin.tokens_val
    return found


class SourceRange(msgspec.Struct, frozen=True, kw_only=True):
    """Where the documents of one source lie on a side."""

    path: str
    """Directory of the output, absolute, or its URL."""
    name: str = ""
    """What a recipe calls it."""
    begin: int
    """In tokens."""
    end: int


def val_ranges(manifest: Manifest) -> list[SourceRange]:
    """Return where the documents of each source lie on the validation side; nothing where they are not source by source."""
    made_from = manifest.made_from or ()
    while len(made_from) == 1 and made_from[0].how in ("convert", "reshard", "merge") and made_from[0].made_from:
        made_from = made_from[0].made_from
    n_tokens = sum(each.tokens_val for each in made_from)
    if any(each.how not in ("merge", "shuffle", "mix") for each in made_from) or n_tokens != manifest.counts.tokens_val:
        return []
    found, begin = [], 0
    for each in made_from:
        found.append(SourceRange(path=text_to_path(each.path), name=each.name, begin=begin, end=begin + each.tokens_val))
        begin += each.tokens_val
    return found


def already_finished(manifest: Manifest) -> Finished:
    """Return the event of a run that finds the output of this manifest complete."""
    return Finished(
        elapsed_s=manifest.elapsed_s,
        counts=manifest.counts,
        peak_rss_bytes=manifest.peak_rss_bytes,
        resumed=False,
        already_complete=True,
        files=manifest.files,
    )
