"""Divides a complete output directory into several files of any format whose ids lie one behind the other; with numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from support.helpers import rewrite_manifest

from tokmill.core.manifest import load_manifest
from tokmill.core.records import FileEntry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def divide(directory: Path, lengths: Sequence[int], suffix: str = ".bin", format: str = "raw", head: bool = False) -> None:  # noqa: A002
    """Divide the train side of a complete directory into files of so many ids, the last with the rest, in another format."""
    manifest = load_manifest(directory)
    ids = np.fromfile(directory / "train.bin", manifest.content.dtype)
    val = np.fromfile(directory / "val.bin", manifest.content.dtype)
    entries = {}
    parts = [*np.split(ids, np.cumsum(lengths)), val]
    # The number counts down: the order is the manifest's, not that of the names.
    for number, part in enumerate(parts):
        name, side = f"part_{99 - number}{suffix}", "train" if number < len(parts) - 1 else "val"
        header = np.zeros(256, "<i4")
        header[:3] = [20240520, 1, len(part)] if part.itemsize == 2 else [20240801, 7, len(part)]
        data = (header.tobytes() if head else b"") + part.tobytes()
        (directory / name).write_bytes(data)
        entries[name] = FileEntry(size_bytes=len(data), side=side, tokens=len(part), documents=0)
    (directory / "train.bin").unlink()
    (directory / "val.bin").unlink()
    rewrite_manifest(directory, manifest, files=entries, content=msgspec.structs.replace(manifest.content, format=format))
