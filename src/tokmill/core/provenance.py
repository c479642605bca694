"""What an output was made from, if not by tokenizing alone: records of its manifest."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokmill.core.records import EotPlacement, IdType

How = Literal["merge", "convert", "reshard", "append"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another complete output, or bare files of ids, from which an output was made without tokenizing again."""

    how: How
    path: str
    """Absolute path of the directory or file, in the form of `path_to_text`."""
    format: str
    fingerprint: str = ""
    """Fingerprint of its content; empty for bare files."""
    tokmill_version: str = ""
    n_inputs: int
    """So many of `content.inputs`, in their order, are its own."""
    tokens_train: int = 0
    tokens_val: int = 0
    documents_train: int = 0
    documents_val: int = 0
    made_from: tuple[Provenance, ...] = ()
    """What it was made from itself."""


class BareFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was stated of files of ids that no manifest describes."""

    format: str
    dtype: IdType
    eot: EotPlacement
    eot_id: int
    n_val: int
    """So many of the inputs, the last ones, are the validation side."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What settings and inputs do not say of an output that no run of tokenize could make."""

    merged: tuple[str, ...] = ()
    """Fingerprints of the merged outputs, whose settings differ or which have an origin themselves."""
    bare_files: BareFiles | None = None
