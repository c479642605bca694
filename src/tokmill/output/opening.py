"""Which place an output has, and whether it is complete there, asked before anything is written."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.arrangement import Arrangement
from tokmill.core.config import Origin
from tokmill.core.deduplication import Deduplication
from tokmill.core.errors import ChangedError, DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, STATE_NAME, load_manifest
from tokmill.core.outcome import already_finished
from tokmill.core.records import is_url, text_to_path
from tokmill.core.system.durable import storage_errors
from tokmill.output.config_diff import change_of, changed_error
from tokmill.output.journal import read_header
from tokmill.output.place import Place
from tokmill.output.state_dir import acquire_lock, is_begun, refuse_strangers, release_lock, remove_empty, state_of

if TYPE_CHECKING:
    from tokmill.core.config import Content, Job
    from tokmill.core.events import Finished
    from tokmill.core.system.tree import Directory


def is_complete(job: Job, seed: int | None = None, *, is_deduplicated: bool = False) -> bool:
    """Return whether the output of a job is complete, so that nothing will be written. seed, is_deduplicated: as of `is_made`."""
    return is_made(Path(text_to_path(job.out)), job.content, fresh=job.fresh, seed=seed, is_deduplicated=is_deduplicated)


def tokenized_of(out: Path) -> Path:
    """Return where an output is tokenized first whose documents are to be put into an order, or of which some will go."""
    return out / STATE_NAME / "tokenized"


def refuse_tokenized(out: Path, *, fresh: bool) -> None:
    """Raise ChangedError where an output was begun that is made of a tokenized one; remove that if `fresh`.

    Raises LockedError while a run works on either, StorageError.
    """
    step = state_of(out) / "tokenized"
    if not step.exists():
        return
    if not fresh:
        raise ChangedError(
            "the run in this directory was begun with --shuffle or --dedup: what it tokenized first is there",
            where=str(step),
            allowed="the command that it was begun with",
            next_step="run that command again, choose another --out, or start over with --fresh, which removes it",
        )
    with ExitStack() as stack:
        for directory in (out, tokenized_of(out)):
            stack.callback(release_lock, directory, acquire_lock(directory))
        with storage_errors(step):
            step.remove_tree()


def drop_tokenized(out: Path) -> None:
    """Remove the training side of what was tokenized: its documents are on their way into the order. Raises StorageError."""
    path = state_of(out) / "tokenized" / "train.bin"
    with storage_errors(path):
        path.unlink(missing_ok=True)


def tokenized_before(out: Path, content: Content) -> Finished | None:
    """Return how the run ended of which only the order is left, its training side dropped already; None: that side is there.

    content: of the tokenized output.
    """
    step = state_of(out) / "tokenized"
    if (step / "train.bin").exists() or not (step / MANIFEST_NAME).exists():
        return None
    manifest = load_manifest(step)
    return already_finished(manifest) if manifest.fingerprint == content.fingerprint() else None


def finish_derived(out: Path, content: Content, seed: int | None, *, is_deduplicated: bool) -> Finished | None:
    """Return how the run ended of which this output is left, and remove what it was made of.

    content: of the output, without origin. seed: of the order of its documents; None: that of the inputs. is_deduplicated: without
    copies. None: it is not complete. Raises ChangedError for one that was made differently.
    """
    if not (out / MANIFEST_NAME).exists() or is_begun(out):
        if out.is_dir() and not is_begun(out):
            refuse_strangers(out, content.format)
        return None
    manifest = load_manifest(out)
    content = _derived(content, manifest.content, seed, is_deduplicated=is_deduplicated)
    if content.fingerprint() != manifest.fingerprint:
        raise changed_error(manifest.content, content, out)
    state = state_of(out)
    if (state / "tokenized").exists():
        (state / "tokenized").remove_tree()
    remove_empty([state])
    return already_finished(manifest)


def _derived(content: Content, found: Content, seed: int | None, *, is_deduplicated: bool = False) -> Content:
    """Return settings with an order and without copies, so that what differs from those found is that, the seed, or a setting."""
    arranged, deduplicated = (found.origin.arranged, found.origin.deduplicated) if found.origin else (None, None)
    if seed is not None:
        wanted = msgspec.structs.replace(arranged, seed=seed) if arranged else Arrangement(seed=seed, sources=())
        return msgspec.structs.replace(content, origin=Origin(arranged=wanted))
    if is_deduplicated:
        return msgspec.structs.replace(content, origin=Origin(deduplicated=deduplicated or Deduplication(sources=())))
    return content


def earlier_arrangement(out: Directory, content: Content) -> Arrangement | None:
    """Return the arrangement of what is complete or begun in a directory, if it is of the same wishes; None: it is not known.

    content: of the output, of whose arrangement the wishes are known alone. Raises ChangedError for a complete output that was made
    differently, UsageError for files that tokmill did not make.
    """
    wanted = content.origin.arranged if content.origin else None
    is_whole = (out / MANIFEST_NAME).exists() and not is_begun(out)
    if out.is_dir() and not is_whole and not is_begun(out):
        refuse_strangers(out, content.format)
    try:
        header = None if is_whole else read_header(state_of(out) / "journal")
        found = load_manifest(out).content if is_whole else header.content if header else None
    except (TokmillError, OSError):
        # Whatever is wrong there, the run itself says it better.
        return None
    arranged = found.origin.arranged if found and found.origin else None
    if arranged and wanted and arranged.is_same_wish(wanted):
        content = msgspec.structs.replace(content, origin=Origin(arranged=arranged))
    if found and is_whole and found.fingerprint() != content.fingerprint():
        raise changed_error(found, content, Path(str(out)))
    return arranged if found and found.fingerprint() == content.fingerprint() else None


def change_at(job: Job, seed: int | None = None, *, is_deduplicated: bool = False) -> str:
    """Return why a run would not go on with what is in its directory; empty if it would, or nothing is known of it.

    seed, is_deduplicated: as of `is_made`.
    """
    out = Path(text_to_path(job.out))
    try:
        if not job.fresh and (out / MANIFEST_NAME).exists() and not is_begun(out):
            found = load_manifest(out).content
            return change_of(found, _derived(job.content, found, seed, is_deduplicated=is_deduplicated), out)
        begun = None if job.fresh else read_header(state_of(out) / "journal")
        if begun is None:
            return ""
        return change_of(begun.content, _derived(job.content, begun.content, seed, is_deduplicated=is_deduplicated), out)
    except UsageError as error:
        # Another version of tokmill wrote it.
        return error.what
    except (TokmillError, OSError):
        return ""


def is_made(out: Path, content: Content, *, fresh: bool, seed: int | None = None, is_deduplicated: bool = False) -> bool:
    """Return whether an output with these settings is complete in a directory.

    seed: of the order of its documents; None: that of the inputs. is_deduplicated: without copies.
    """
    try:
        manifest = None if fresh else load_manifest(out)
        if manifest is None:
            return False
        wanted = _derived(content, manifest.content, seed, is_deduplicated=is_deduplicated)
        return manifest.fingerprint == wanted.fingerprint()
    except (TokmillError, OSError):
        # Whatever is wrong there, the run itself says it better.
        return False


def is_complete_at(job: Job, url: str) -> bool:
    """Return whether the output of a job is complete at a prefix. Raises UsageError, StorageError."""
    from tokmill.output.prefix import Prefix

    try:
        manifest = Prefix(url).manifest()
    except DamageError:
        # The run itself says it better.
        return False
    return manifest is not None and manifest.fingerprint == job.content.fingerprint()


def destination(out: str, stage: str | None) -> Place:
    """Return the place of an output: a directory, or a URL. stage: for a URL; it may come from the environment of every run.

    Raises UsageError, LockedError, StorageError.
    """
    if not is_url(out):
        return Place(out)
    # Here, so that a directory needs no client of a store.
    from tokmill.output.staged import Staged

    return Staged(out, stage)
