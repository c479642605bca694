"""The format of llm.c and modded-nanogpt: shards of ids after a header of 256 int32.

Header: 20240520, 1, number of tokens, then zeros, and uint16 ids; for vocabularies that need them 20240801, 7 and uint32 ids
(llm.c's Llama 3). Readers check that the file has 1,024 bytes and the ids. The number is filled in when the shard is complete. A
side without a token has no file: an empty shard ends a training.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec
    from tokmill.core.protocols import OutputFiles
    from tokmill.core.records import IdType

HEADER_BYTES = 1024
MAGIC: dict[IdType, tuple[int, int]] = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
"""Magic and version."""
_MOST_BYTES = (1 << 31) - 1
"""llm.c holds positions in a file as int."""


class LlmcShard(IdFile):
    """`train_000000.bin`, `val_000000.bin`."""

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, number: int) -> None:
        super().__init__(files, spec, side, f"{spec.prefix}{side}_{number:06}.bin", HEADER_BYTES)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the base's
        """Fill in the header."""
        self.complete(tokens, documents, struct.pack("<3i", *MAGIC[self.spec.dtype], tokens).ljust(HEADER_BYTES, b"\0"))


def parse_header(header: bytes) -> tuple[IdType, int] | None:
    """Return type and number of the ids that a header announces; None when it is not llm.c's."""
    if len(header) < HEADER_BYTES:
        return None
    magic, version, n_tokens = struct.unpack_from("<3i", header)
    return next(((dtype, n_tokens) for dtype, words in MAGIC.items() if words == (magic, version)), None)


LLMC = FormatSpec(
    shard=LlmcShard,
    suffix=".bin",
    takes_name=True,
    header_bytes=HEADER_BYTES,
    parse_header=parse_header,
    eot="before",
    other_eot="llm.c and modded-nanogpt expect the end-of-text id before each document",
    expects_dtype=True,
    shard_tokens=100_000_000,
    most_tokens=lambda item_bytes: (_MOST_BYTES - HEADER_BYTES) // item_bytes,
    least_tokens=(1 << 19) + 1,
    is_least_of_shard=True,
    too_short="llm.c stops with an error if a shard has less than a batch of all processes",
    val_tokens=10_485_760,
    few_for_val="modded-nanogpt reads 10,485,760 by default (val_tokens in its script)",
)
"""least_tokens: more than GPT-2's usual batch over all processes."""
