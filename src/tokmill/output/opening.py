"""Which place an output has, and whether it is complete there, asked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, load_manifest
from tokmill.core.records import is_url, text_to_path
from tokmill.output.config_diff import change_of
from tokmill.output.journal import read_header
from tokmill.output.place import Place
from tokmill.output.state_dir import is_begun, state_of

if TYPE_CHECKING:
    from tokmill.core.config import Content, Job


def is_complete(job: Job) -> bool:
    """Return whether the output of a job is complete, so that nothing will be written."""
    return is_made(Path(text_to_path(job.out)), job.content, fresh=job.fresh)


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
