"""The trainers' formats, one file each; a table chooses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.protocols import OutputFiles, Writer

WRITERS = {"raw": "tokmill.write.raw:RawWriter"}


def make_writer(name: str, files: OutputFiles, state: Mapping[str, int], item_bytes: int) -> Writer:
    """The writer of a format. name: a key of `WRITERS`; state: `Writer.state` at the last commit; item_bytes: 2 or 4."""
    module, _, cls = WRITERS[name].partition(":")
    writer: Writer = getattr(import_module(module), cls)(files, state, item_bytes)
    return writer
