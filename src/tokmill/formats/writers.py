"""The trainers' formats, one file each; a table chooses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tokmill.core.output_spec import Layout, Shards
from tokmill.core.partition import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.core.config import Content
    from tokmill.core.protocols import Format, OutputFiles, Writer

WRITERS = {
    "raw": "tokmill.formats.raw:RawFormat",
    "llmc": "tokmill.formats.llmc:LlmcFormat",
    "megatron": "tokmill.formats.megatron:MegatronFormat",
    "datatrove": "tokmill.formats.datatrove:DatatroveFormat",
    "olmo": "tokmill.formats.olmo:OlmoFormat",
    "litdata": "tokmill.formats.litdata:LitdataFormat",
    "mds": "tokmill.formats.mds:MdsFormat",
}


def make_writer(files: OutputFiles, state: Mapping[str, int], layout: Layout) -> Writer:
    """A writer of `layout.format`, a key of `WRITERS`. state: `Writer.state` at the last commit, empty at the beginning."""
    # Here, so that planning loads no numpy.
    from tokmill.formats.shards import ShardedWriter

    if layout.part is not None:
        from tokmill.formats.numbered import NumberedFiles

        files = NumberedFiles(files, layout.part)
    return ShardedWriter(_make_format(files, layout), state, layout)


def most_tokens(layout: Layout) -> int:
    """The largest shard that the format can hold."""
    return _make_format(None, layout).most_tokens


def _make_format(files: OutputFiles | None, layout: Layout) -> Format:
    module, _, cls = WRITERS[layout.format].partition(":")
    made: Format = getattr(import_module(module), cls)(files, layout)
    return made


def layout_of(content: Content) -> Layout:
    """What the settings of a run say to a writer."""
    return Layout(
        format=content.format,
        dtype=content.dtype,
        eot=content.eot,
        eot_id=content.tokenizer.eot_id,
        tokenizer=content.tokenizer.name,
        shards=content.shards if isinstance(content.shards, Shards) else None,
        part=content.part.index if isinstance(content.part, Part) else None,
    )
