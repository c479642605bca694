"""What a trainer's format declares, and what the writers of all formats share.

Nothing here or at the top of a format's file imports numpy: planning and `--help` read these records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.local_struct import LocalStruct

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles
    from tokmill.core.records import EotPlacement, IdType

UINT16_IDS = 1 << 16


class FormatSpec(LocalStruct, frozen=True, kw_only=True):
    """All that tokmill knows of one trainer's format. Ids are little-endian; int32 is read as uint32, for no id is negative."""

    shard: Callable[[OutputFiles, OutputSpec, str, int], IdFile]
    """Opens shard number n (from 0) of a side, new or to be gone on with."""
    finish: Callable[[OutputFiles, OutputSpec, str, int], None] | None = None
    """Writes what describes all n shards of a complete side together."""
    suffix: str
    """Suffix of the files that hold ids."""
    takes_name: bool = False
    """Whether its trainer finds files by a pattern, so that their names may begin with one that a person chose."""
    header_bytes: int = 0
    """Before the first id; with `lists_files`, the manifest says it for each file."""
    parse_header: Callable[[bytes], tuple[IdType, int] | None] | None = None
    """Returns type and number of the ids that the first `header_bytes` of a file announce; None: it is not such a header."""
    index_suffixes: tuple[str, ...] = ()
    """Suffixes of the index files, where the suffix alone tells them apart."""
    index_magic: bytes = b""
    """What an index file begins with, where its first bytes tell it apart."""
    index_bytes: int = 0
    """Bytes that one document takes in the index, uncompressed."""
    lists_files: bool = False
    """A side has one index of all its files: no parts made apart, and no file that can be read without the index."""

    eot: EotPlacement = "after"
    """Where the trainer expects the end-of-text id: the default."""
    is_eot_needed: bool = False
    """The trainer cannot read another placement."""
    other_eot: str = ""
    """Notice: what the trainer does with another placement."""
    uint16_ids: int = UINT16_IDS
    """Largest number of ids in a vocabulary for which the trainer expects uint16."""
    most_ids: int = 1 << 32
    """Largest number of ids in a vocabulary that the format can hold."""
    expects_dtype: bool = False
    """The trainer chooses the dtype by the vocabulary, so another is worth a notice."""
    shard_tokens: int | None = None
    """Tokens of a shard by default; None: a side is one file."""
    most_tokens: Callable[[int], int]
    """Returns the most tokens of a shard, by bytes of an id: what offsets of the format and of its readers can hold."""
    keeps_whole: bool = False
    """Shards list documents, so a document is never cut."""
    not_packed: str = ""
    """Why no packed output has this format."""
    unit_tokens: int = 1
    """A shard is a multiple of this; above 1, documents are always cut and the last shard is filled up."""
    least_tokens: int = 0
    """Fewest tokens of the validation side that the trainer takes at its usual settings; with `is_least_of_shard`, of any shard."""
    is_least_of_shard: bool = False
    too_short: str = ""
    """Notice: what the trainer does with fewer."""
    val_tokens: int = 0
    """Tokens of the validation side that a trainer takes by default, if that is more than `least_tokens`; fewer are a setting."""
    few_for_val: str = ""
    """Notice: which trainer that is, and the setting."""

    @property
    def wanted_for_val(self) -> int:
        """Tokens of the validation side at which there is nothing to say."""
        return max(self.least_tokens, self.val_tokens)


class IdFile:
    """A shard: one file of ids, after a header if it has one, and in subclasses an index beside it.

    It keeps no state of its own: what it needs comes with the tokens, or is in its files.
    """

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, name: str, header_bytes: int = 0) -> None:
        self.files = files
        self.spec = spec
        self.side = side
        self.name = name
        self.file = files.file(name, header_bytes)

    def append(self, tokens: TokenSlice) -> None:
        """Append tokens."""
        self.file.append(tokens.ids.data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  for subclasses
        """Complete the files. tokens, documents: sums of the shard; n_open: tokens after the last end of a document."""
        self.complete(tokens, documents)

    def complete(self, tokens: int, documents: int, header: bytes = b"") -> None:
        """Complete the file of ids, with its header."""
        self.files.complete(self.name, side=self.side, tokens=tokens, documents=documents, header=header)
