"""What a writer is told: the format and the shards to make, and the tokens that go into one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokmill.core.bounded import Positive
from tokmill.core.local_struct import LocalStruct
from tokmill.core.records import ITEM_BYTES, EotPlacement, IdType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDES = ("train", "val")


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What `--name` may be, as a pattern."""
NAMED = rf"{NAME}_(?:train|val)(?:_\d+)*\.bin"
"""Files whose names begin with one, as a pattern."""


class Shards(msgspec.Struct, frozen=True, kw_only=True):
    """How a side is divided into files."""

    tokens: Positive
    """Tokens of every shard but the last; with `whole_documents`, at least so many."""
    whole_documents: bool = False
    """A shard ends only where a document ends: at the first end after `tokens` tokens."""
    drop_tail: bool = False
    """The last shard is left out when it has too few tokens."""

    def __str__(self) -> str:
        whole = ", whole documents" if self.whole_documents else ""
        return f"{self.tokens}{whole}{', the tail dropped' if self.drop_tail else ''}"


class OutputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The files that a writer is to make."""

    format: str
    dtype: IdType
    eot: EotPlacement
    eot_id: int
    tokenizer: str
    """Its name, for formats that note it."""
    shards: Shards | None = None
    """None: a side is one file."""
    name: str = ""
    """Before the names of the files of raw and llmc."""
    sequence: int | None = None
    """Of packed documents: every file is whole sequences of so many ids, and beside it lie the starts of documents."""
    offsets: bool = False
    """Whether a side has a list of where its documents begin."""
    part: int | None = None
    """The part to write, of an output in parts; its number is in the names of its files, and a part without tokens has no file."""

    @property
    def prefix(self) -> str:
        """What the names of files begin with."""
        return f"{self.name}_" if self.name else ""

    @property
    def item_bytes(self) -> int:
        """Bytes of one id."""
        return ITEM_BYTES[self.dtype]


class TokenSlice(LocalStruct, frozen=True):
    """Tokens of a run that go to one shard.

    ids, ends: as in `Tokens`. n_before: tokens of the shard before them; n_open: of these, those after the last end of a document.
    """

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    ends: NDArray[np.int64]
    n_before: int
    n_open: int
