"""The trainers' formats, one file each; a table chooses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tokmill.sharding import Layout, Shards
from tokmill.splits import Split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.config import Content
    from tokmill.protocols import Format, OutputFiles, Writer

WRITERS = {
    "raw": "tokmill.write.raw:RawFormat",
    "llmc": "tokmill.write.llmc:LlmcFormat",
    "megatron": "tokmill.write.megatron:MegatronFormat",
    "datatrove": "tokmill.write.datatrove:DatatroveFormat",
    "olmo": "tokmill.write.olmo:OlmoFormat",
    "litdata": "tokmill.write.litdata:LitdataFormat",
    "mds": "tokmill.write.mds:MdsFormat",
}


def make_writer(files: OutputFiles, state: Mapping[str, int], layout: Layout) -> Writer:
    """A writer of `layout.format`, a key of `WRITERS`. state: `Writer.state` at the last commit, empty at the beginning."""
    # Here, so that planning loads no numpy.
    from tokmill.write.shards import ShardedWriter

    if layout.part is not None:
        from tokmill.write.numbered import NumberedFiles

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
        part=content.split.index if isinstance(content.split, Split) else None,
    )
