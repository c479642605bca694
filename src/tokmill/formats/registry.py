"""The formats by the names that `--format` takes. A new one is a file here, its line below, and its check in `header_checks.py`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokmill.core.deduplication import REMOVED_NAME
from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.output_spec import NAMED, SIDES
from tokmill.formats.datatrove import DATATROVE
from tokmill.formats.litdata import LITDATA
from tokmill.formats.llmc import LLMC
from tokmill.formats.mds import MDS
from tokmill.formats.megatron import MEGATRON
from tokmill.formats.olmo import OLMO
from tokmill.formats.raw import RAW

if TYPE_CHECKING:
    from tokmill.formats.base import FormatSpec

FORMATS: dict[str, FormatSpec] = {
    "raw": RAW,
    "llmc": LLMC,
    "megatron": MEGATRON,
    "datatrove": DATATROVE,
    "olmo": OLMO,
    "litdata": LITDATA,
    "mds": MDS,
}

_SUFFIXES = tuple({suffix for spec in FORMATS.values() for suffix in (spec.suffix, *spec.index_suffixes)} | {".idx"})
_BESIDE = (*_SUFFIXES, ".starts.npy")
_OF_A_SIDE = re.compile(r"(train|val)[._].*")

_WRITTEN = re.compile(
    rf"{re.escape(SKIPPED_NAME)}|{re.escape(REMOVED_NAME)}|{NAMED}|({'|'.join(SIDES)})"
    rf"((_\d+)*({'|'.join(map(re.escape, _BESIDE))})|_document_offsets\.npy|/index\.json"
    rf"|/(\d+_)?(\d+|chunk-0-\d+|part-0-\d+|shard\.\d+)({'|'.join(map(re.escape, _BESIDE))}))"
)


def is_written(name: str) -> bool:
    """Return whether a file is named, below the output, as tokmill names those of some format."""
    return _WRITTEN.fullmatch(name) is not None


def is_read_by_trainer(format_name: str, name: str) -> bool:
    """Return whether the trainer of a format may take a file for one of an output's, by its name below the output.

    Also if it is named as other formats name their files of a side.
    """
    spec, (directory, _, base) = FORMATS[format_name], name.rpartition("/")
    if directory and directory not in SIDES:
        return False
    is_of_format = base.endswith((spec.suffix, *spec.index_suffixes, *([".idx"] if spec.index_magic else [])))
    return is_of_format or (_OF_A_SIDE.fullmatch(base) is not None and base.endswith(_SUFFIXES))
