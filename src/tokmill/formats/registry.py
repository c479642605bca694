"""The formats by the names that `--format` takes. A new one is a file here, its line below, and its check in `header_checks.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
