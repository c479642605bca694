"""What a reader sees while an append is published: the old output, until the new manifest has its name.

The files get their names one by one. Each begins with the old one's bytes, so whoever holds the old manifest reads the beginnings.
The manifest to come lies in the state directory from before the first name is given until it is the manifest, so its presence tells
a longer file that belongs to an append, running or killed, from one that is damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.commit import is_beginning, pending_manifest
from tokmill.layout import TokenFile
from tokmill.manifest import Manifest, load_manifest

if TYPE_CHECKING:
    from pathlib import Path


def appended_sizes(directory: Path, manifest: Manifest) -> dict[str, int]:
    """The sizes that files may have already, in bytes, by name; empty when nothing is being appended. Raises StorageError."""
    pending = pending_manifest(directory)
    if pending is None or not is_beginning(manifest, pending):
        return {}
    return {name: entry.size_bytes for name, entry in pending.files.items()}


def being_appended(directory: Path, manifest: Manifest) -> Manifest | dict[str, tuple[TokenFile, ...]] | None:
    """What explains files that are not as `manifest` says: a newer manifest, or an append whose files begin with these.

    None: nothing does, they are damaged. Raises UsageError, DamageError, StorageError.
    """
    # In this order: where no append is seen, either there was none or its manifest is there now.
    sizes = appended_sizes(directory, manifest)
    now = load_manifest(directory)
    if now.checksum != manifest.checksum:
        return now
    if not sizes:
        return None
    files: dict[str, tuple[TokenFile, ...]] = {}
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size not in (entry.size_bytes, sizes.get(name)):
            return None
        if entry.side is not None:
            file = TokenFile(path=path, header_bytes=0, n_tokens=entry.tokens)
            files[entry.side] = (*files.get(entry.side, ()), file)
    return files
