"""The records that travel between the parts of tokmill: what was found, where we are, what was made, what happened.

Everything here is frozen. Records that are stored or cross a process boundary are `msgspec.Struct`s (JSON); records that hold
text or token arrays stay in the processes of one run (`LocalStruct`). Of tokmill this module imports `documents`, `bounded` and
`local_struct` alone.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tokmill.core.bounded import Natural, Whole
from tokmill.core.documents import text_bytes
from tokmill.core.local_struct import LocalStruct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

IdType = Literal["uint16", "uint32"]
ITEM_BYTES: dict[IdType, int] = {"uint16": 2, "uint32": 4}
EotPlacement = Literal["before", "after", "none"]
Utf8Policy = Literal["strict", "replace", "ignore"]
OnError = Literal["stop", "skip"]
InputFormat = Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow", "tar"]
SourceFormat = InputFormat | Literal["ids"]
Compression = Literal["none", "gzip", "zstd", "xz", "bzip2", "lz4"]

WITH_FOOTER: frozenset[InputFormat] = frozenset(("parquet", "arrow"))
"""Formats whose files are read from places that their end names: not from a pipe, and not compressed from outside."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

STDIN = "-"
"""The path of standard input."""

DIVIDE_ABOVE_BYTES = 64 << 20
"""A document of more bytes than this is divided into blocks, each on its own side of the validation split."""

NOT_SAMPLED = "not_sampled"
"""The reason for which documents are left out that `--sample` did not choose."""

UNCUT_ABOVE_BYTES = 4 << 20
"""A batch of more text than this is a piece in which no safe cut was found."""

UNCUT_COST = 25
"""Bytes of memory that the engine takes for each byte of such a piece (21 to 25 measured: 50 MB of one letter, digit or space)."""

BLOCK_BYTES = 1 << 20
"""A block of a divided document ends at the first safe cut at or after this many bytes."""


def path_to_text(path: str) -> str:
    """Return the text form of a path that JSON can hold: bytes that are not UTF-8 (and a literal `%`) become `%XX`."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else "%25" if c == "%" else c for c in path)


def text_to_path(text: str) -> str:
    """Return the inverse of `path_to_text`: a path for `open`, with bytes that are not UTF-8 as surrogates."""
    head, *rest = text.split("%")
    return os.fsdecode(os.fsencode(head) + b"".join(bytes([int(r[:2], 16)]) + os.fsencode(r[2:]) for r in rest))


def is_url(path: str) -> bool:
    """Return whether a name is a URL: `s3://bucket/key`."""
    return _URL.match(path) is not None


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the corpus, as found when the run was planned."""

    path: str
    """Absolute path in the form of `path_to_text`, a URL without what is secret in it (`store/urls.py`), or `-`."""
    format: SourceFormat
    """`ids`: a bare file that was converted, not tokenized."""
    compression: Compression
    size_bytes: Natural | None = None
    """Size on disk, compressed; None for standard input."""
    mtime_ns: Whole | None = None
    version: str | msgspec.UnsetType | None = msgspec.UNSET
    """For a remote object: what the store says tells its content from another (`etag "..."`); None: it says nothing.
    Unset, and then not encoded, for what is not remote."""
    encoding: str | msgspec.UnsetType = msgspec.UNSET
    """The encoding of its text (`--encoding`), as Python names it; unset, and left out of the manifest, for UTF-8."""
    side: Literal["val"] | msgspec.UnsetType = msgspec.UNSET
    """`val`: its documents, and no others, are for validation (`--val-input`). Unset, and then not encoded, for any other."""

    @property
    def is_remote(self) -> bool:
        """Whether it is named by a URL."""
        return is_url(self.path)


def is_packed(source: Input) -> bool:
    """Return whether the input is compressed, or encoded otherwise, so that its bytes on disk are not those of its text."""
    return source.compression != "none" or source.format in WITH_FOOTER or bool(source.encoding)


class Tokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """Which tokenizer, exactly: enough to load it in another process and to tell it from every other."""

    name: str
    """As asked for, for messages: `gpt2`, the path of a file; of a repository, `owner/name@commit`."""
    kind: Literal["tiktoken", "huggingface"]
    """The reference that its ids are compared with."""
    encoding: str
    """Name of the published encoding (`r50k_base`, `cl100k_base`, ...), or family of the tokenizer.json (`llama3`, `qwen2+nfc`,
    `other`): decides engine and safe cuts."""
    path: str
    """File with the ranks, or tokenizer.json, in the form of `path_to_text`."""
    sha256: str
    """SHA-256 of that file, hex."""
    n_ids: Natural
    """Largest id, plus one, added tokens included; of a published encoding, whose other special ids are left out, EOT at most."""
    eot_id: Whole

    @property
    def is_known(self) -> bool:
        """False where nobody said it (of bare files): then only the end-of-text id is known, and how large ids are."""
        return bool(self.sha256)


class Cursor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place in the corpus where reading continues. `Cursor()` is its start."""

    input_index: Natural = 0
    offset: Natural = 0
    """Bytes of this input, decompressed, that lie before; of Parquet and Arrow, 0: there the record says where."""
    record: Natural = 0
    """Documents (text), lines (JSON lines), rows (tables) or members (tar) of this input that lie before; the first is 0."""
    document_offset: Natural | None = None
    """Inside a divided document: where the document begins. None between documents."""
    begins: bool = True
    """Inside a divided document: whether the next block begins a new document of its side."""
    digest: str | None = None
    """Standard input only: xxh3_128 (hex) of the `offset` bytes that lie before."""


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the corpus, for messages and records of skipped documents."""

    path: str
    """In the form of `path_to_text`."""
    record: int | None = None
    """Number of the document (text), line (JSON lines), row (tables) or member (tar), from 1."""
    offset: int | None = None
    """Byte of the decompressed input, from 0; None in Parquet and Arrow."""
    unit: Literal["document", "line", "row", "member"] = "document"

    def at(self, offset: int | None) -> Location:
        """Return the place at another byte of the same record."""
        return msgspec.structs.replace(self, offset=offset)

    def __str__(self) -> str:
        parts = [self.path if self.path != STDIN else "standard input"]
        if self.record is not None:
            parts.append(f"{self.unit} {self.record:,}")
        if self.offset is not None:
            parts.append(f"byte {self.offset:,}")
        return ", ".join(parts)


class Skip(msgspec.Struct, frozen=True, kw_only=True):
    """One record that was passed over, or several that follow each other, and why."""

    path: str
    record: Natural | None
    offset: Natural | None
    reason: str
    """A stable word: `empty`, `not_sampled`, `invalid_json`, `missing_text`, `null_text`, `not_a_string`, `lone_surrogate`,
    `invalid_utf8`, `invalid_csv`, `too_long`, `other_file`, `hard_link`, `symbolic_link`."""
    text_key: str | msgspec.UnsetType = msgspec.UNSET
    """Under which there was no text, or none that is one; left out where the reason is another."""
    records: Natural | msgspec.UnsetType = msgspec.UNSET
    """So many records, from `record` on; left out of one."""

    @property
    def n_records(self) -> int:
        """How many records it is."""
        return self.records if isinstance(self.records, int) else 1

    def continues(self, before: Skip) -> bool:
        """Whether these records follow those of `before`, with the same fault."""
        is_next = before.record is not None and self.record == before.record + before.n_records
        return is_next and (self.path, self.reason, self.text_key) == (before.path, before.reason, before.text_key)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a part of the corpus; `documents == documents_train + documents_val + sum(skipped) - parts_added`."""

    documents: Natural = 0
    """Documents met, skipped ones included."""
    documents_train: Natural = 0
    documents_val: Natural = 0
    parts_added: Natural = 0
    """Documents written beyond the first for documents that were divided between train and validation."""
    tokens_train: Natural = 0
    tokens_val: Natural = 0
    bytes_in: Natural = 0
    """Decompressed bytes of the inputs, separators and JSON syntax included; of Parquet and Arrow, of the texts alone."""
    bytes_text: Natural = 0
    """Bytes of the documents that were encoded."""
    skipped: dict[str, Natural] = {}
    """Documents by reason."""
    invalid_utf8_documents: Natural = 0
    """Documents changed by `--encoding-errors replace` or `ignore`."""
    invalid_utf8_bytes: Natural = 0
    """Their bytes that were not UTF-8."""
    audited_documents: Natural = 0
    audited_bytes: Natural = 0
    unknown_ids: Natural = 0
    """Ids of the unknown token, which stands for text that the vocabulary lacks."""
    documents_without_ids: Natural = 0
    """Documents with text, of which the tokenizer made no id."""

    def __add__(self, other: Counts) -> Counts:
        skipped = dict(self.skipped)
        for reason, n in other.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + n
        sums = {f: getattr(self, f) + getattr(other, f) for f in Counts.__struct_fields__ if f != "skipped"}
        return Counts(skipped=skipped, **sums)


class FileHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a file that was filled in when the rest was complete; no segment speaks of it."""

    size_bytes: Natural
    digest: str
    """xxh3_128, hex."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A complete file of the output."""

    size_bytes: Natural
    side: str | None = None
    """`train`, `val`, or None for a file that holds no tokens."""
    tokens: Natural = 0
    documents: Natural = 0
    """Whose end-of-text id is in the file, or with `--eot none` their end."""
    header: FileHeader | msgspec.UnsetType = msgspec.UNSET
    """Unset: the file has none."""

    @property
    def header_bytes(self) -> int:
        """Where the ids, or whatever the file holds, begin."""
        return self.header.size_bytes if isinstance(self.header, FileHeader) else 0


class Batch(LocalStruct, frozen=True, kw_only=True):
    """Documents that are encoded together, in the order of the corpus. Whole documents, except that the first may go on from
    the batch before (`head_open`) and the last may go on in the next (`tail_open`).
    """

    index: int = 0
    """0, 1, 2, ... in the order of the corpus; set by its reader."""
    is_of_val: bool = False
    """Whether its input is one for validation; then neither `is_val` nor a hash decides."""
    documents: Sequence[bytes]
    raw: memoryview | None = None
    """The documents with what stood between them, to check UTF-8 in one go; None: they are valid UTF-8 already, policy applied."""
    is_val: bool | None = None
    """The side of a document that was cut (the batch holds one piece of it), by its hash; None: each document's hash decides."""
    head_open: bool = False
    tail_open: bool = False
    after: Cursor | None
    """Where reading continues after this batch; None: inside a document, where nothing can be committed."""
    locate: Callable[[int], Location]
    """Location of the document with that index in `documents`."""
    counts: Counts
    """What the reader counted: `bytes_in`, `documents` that end here or are skipped, its own skips, `parts_added`."""
    skips: Sequence[Skip] = ()
    position_bytes: int
    """Bytes on disk (compressed) read from all inputs so far: the measure of progress."""

    @property
    def cost_bytes(self) -> int:
        """Memory held until written, about: text, list of documents, uint32 ids at one per byte of text, narrowed ids."""
        n_text = max(text_bytes(self.documents), len(self.raw) if self.raw is not None else 0)
        return (8 if n_text <= UNCUT_ABOVE_BYTES else UNCUT_COST) * n_text + 128 * len(self.documents)


class Tokens(LocalStruct, frozen=True):
    """A run of tokens for one side.

    ids: uint16 or uint32, shape (n_tokens,), C-contiguous, EOT ids included, not changed after being handed on.
    ends: int64, shape (n_documents_that_end_here,): for each, the index in `ids` just past its last token (its EOT included).
    Of packed ids, a sequence counts as a document for `ends`, and `starts` has where whole documents, parts of cut ones and padding
    begin: int64, shape (n,).
    """

    is_val: bool
    ids: NDArray[np.uint16] | NDArray[np.uint32]
    ends: NDArray[np.int64]
    starts: NDArray[np.int64] | None = None


class Sample(LocalStruct, frozen=True):
    """Text that was encoded, and its ids: what the reference needs to compare, in whatever process it is."""

    text: bytes
    ids: NDArray[np.unsignedinteger[Any]]
    """From the first of the text on; more than those of the text, unless it is the end of its document."""
    n_before: int
    """Ids of the document before them."""
    begin: int
    """Where the text begins in its document."""
    is_end: bool
    location: Location


class EncodedBatch(LocalStruct, frozen=True, kw_only=True):
    """What became of one batch."""

    runs: list[Tokens]
    counts: Counts
    """The reader's counts plus documents, tokens, skips and audit of the encoder."""
    skips: Sequence[Skip]
    after: Cursor | None
    position_bytes: int
    samples: Sequence[Sample] = ()
    """For the audit, which comes before they are written."""
