"""Complete outputs as sources, wherever they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.derive.source import Source

if TYPE_CHECKING:
    from pathlib import Path


def load_source(place: Path | str) -> Source:
    """Return the complete output in a directory or at a URL.

    Raises UsageError if there is none, DamageError for a manifest that cannot be trusted, StorageError.
    """
    if not isinstance(place, str):
        return Source.load(place)
    # Here, so that a directory needs no client of a store.
    from tokmill.derive.remote_source import RemoteSource

    return RemoteSource(place)
