"""From the names of inputs to batches of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.read.corpus import READERS, CorpusReader, load_readers
    from tokmill.read.encodings import encoded
    from tokmill.read.formats.parquet import StoredGroup, stored_groups
    from tokmill.read.inputs import find_inputs, input_format_of, source_options
    from tokmill.read.json_record import NotARecordError, RecordParser
    from tokmill.read.notes import InputNotes
    from tokmill.read.seekable import open_seekable
    from tokmill.read.sniff import check_files, keys_of
    from tokmill.read.stream import open_stream
    from tokmill.read.tail import find_tail
    from tokmill.read.utf8 import ENCODING_ADVICE, clean, damage_hint, first_invalid

__getattr__, __all__ = lazy_names(__name__)
