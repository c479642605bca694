"""What an output was made from without tokenizing it again: noted in its manifest."""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["merge", "convert", "reshard", "append"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an output was made from without tokenizing it again: another complete output, or a bare file of ids."""

    how: How
    path: str
    """Of the directory or file, absolute, in the form of `path_to_text`."""
    format: str
    fingerprint: str = ""
    """Of its content; empty for a bare file."""
    tokmill_version: str = ""
    n_inputs: int
    """So many of `content.inputs`, in their order, are its own."""
    tokens_train: int = 0
    tokens_val: int = 0
    documents_train: int = 0
    documents_val: int = 0
    made_from: tuple[Provenance, ...] = ()
    """What it was made from itself."""
