"""Which place an output has, and whether it is complete there, asked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError, TokmillError
from tokmill.core.manifest import load_manifest
from tokmill.core.records import is_url, text_to_path
from tokmill.output.place import Place

if TYPE_CHECKING:
    from tokmill.core.config import Content, Job


def is_complete(job: Job) -> bool:
    """Return whether the output of a job is complete, so that nothing will be written."""
    return is_made(Path(text_to_path(job.out)), job.content, fresh=job.fresh)


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
