"""The trainers' formats, one file each; a table chooses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tokmill.core.output_spec import OutputSpec, Shards
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


def make_writer(files: OutputFiles, state: Mapping[str, int], spec: OutputSpec) -> Writer:
    """A writer of `spec.format`, a key of `WRITERS`. state: `Writer.state` at the last commit, empty at the beginning."""
    # Here, so that planning loads no numpy.
    from tokmill.formats.shards import ShardedWriter

    if spec.part is not None:
        from tokmill.formats.numbered import NumberedFiles

        files = NumberedFiles(files, spec.part)
    return ShardedWriter(_make_format(files, spec), state, spec)


def most_tokens(spec: OutputSpec) -> int:
    """The largest shard that the format can hold."""
    return _make_format(None, spec).most_tokens


def _make_format(files: OutputFiles | None, spec: OutputSpec) -> Format:
    module, _, cls = WRITERS[spec.format].partition(":")
    made: Format = getattr(import_module(module), cls)(files, spec)
    return made


def spec_of(content: Content) -> OutputSpec:
    """What the settings of a run say to a writer."""
    return OutputSpec(
        format=content.format,
        dtype=content.dtype,
        eot=content.eot,
        eot_id=content.tokenizer.eot_id,
        tokenizer=content.tokenizer.name,
        shards=content.shards if isinstance(content.shards, Shards) else None,
        part=content.part.index if isinstance(content.part, Part) else None,
    )
