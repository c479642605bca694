"""Which place an output has, and whether it is complete there, asked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.arrangement import Arrangement
from tokmill.core.config import Origin
from tokmill.core.errors import DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, STATE_NAME, load_manifest
from tokmill.core.outcome import already_finished
from tokmill.core.records import is_url, text_to_path
from tokmill.output.config_diff import change_of, changed_error
from tokmill.output.journal import read_header
from tokmill.output.place import Place
from tokmill.output.state_dir import is_begun, refuse_strangers, remove_empty, state_of

if TYPE_CHECKING:
    from tokmill.core.config import Content, Job
    from tokmill.core.events import Finished


def is_complete(job: Job) -> bool:
    """Return whether the output of a job is complete, so that nothing will be written."""
    return is_made(Path(text_to_path(job.out)), job.content, fresh=job.fresh)


def tokenized_of(out: Path) -> Path:
    """Return where an output whose documents are to be put into an order is tokenized first."""
    return out / STATE_NAME / "tokenized"


def finish_arranged(out: Path, content: Content, seed: int) -> Finished | None:
    """Return how the run ended of which these documents in the order of a seed are left, and remove what it was made of.

    content: of the output, without origin. None: it is not complete. Raises ChangedError for one that was made differently.
    """
    if not (out / MANIFEST_NAME).exists() or is_begun(out):
        if out.is_dir() and not is_begun(out):
            refuse_strangers(out, content.format)
        return None
    manifest = load_manifest(out)
    arranged = manifest.content.origin.arranged if manifest.content.origin else None
    plain = msgspec.structs.replace(manifest.content, origin=msgspec.UNSET)
    if arranged is None or arranged.seed != seed or plain.fingerprint() != content.fingerprint():
        # So that what differs is the order, the seed, or a setting.
        wanted = msgspec.structs.replace(arranged, seed=seed) if arranged else Arrangement(seed=seed, sources=())
        content = msgspec.structs.replace(content, origin=Origin(arranged=wanted))
        raise changed_error(manifest.content, content, out)
    state = state_of(out)
    if (state / "tokenized").exists():
        (state / "tokenized").remove_tree()
    remove_empty([state])
    return already_finished(manifest)


def change_at(job: Job) -> str:
    """Return why a run would not go on with what is in its directory; empty if it would, or nothing is known of it."""
    out = Path(text_to_path(job.out))
    try:
        if not job.fresh and (out / MANIFEST_NAME).exists() and not is_begun(out):
            return change_of(load_manifest(out).content, job.content, out)
        begun = None if job.fresh else read_header(state_of(out) / "journal")
        return change_of(begun.content, job.content, out) if begun else ""
    except UsageError as error:
        # Another version of tokmill wrote it.
        return error.what
    except (TokmillError, OSError):
        return ""


def is_made(out: Path, content: Content, *, fresh: bool) -> bool:
    """Return whether an output with these settings is complete in a directory."""
    try:
        return not fresh and load_manifest(out).fingerprint == content.fingerprint()
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
