"""The token files of a complete output, or one bare file of ids, as read-only memory maps: what training code opens.

Several files of a side are one array. A map costs no memory and is shared by all processes that read it.

Documents have no index on disk: they lie between end-of-text ids. They are found by scanning blocks of bounded size, and one
number a block is kept, so that the second access to a document reads one block.
"""

from __future__ import annotations

import codecs
import os
import shlex
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast, get_args

import numpy as np
import xxhash

from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.outcome import val_ranges
from tokmill.core.output_spec import SIDES
from tokmill.core.records import EotPlacement, IdType, Tokenizer, text_to_path
from tokmill.core.system.refusals import explaining
from tokmill.core.text import counted
from tokmill.dataset.batches import Batches
from tokmill.dataset.document_ends import kept_ends
from tokmill.dataset.packed_batches import PackedBatches
from tokmill.dataset.sharded_array import Ids, TokenArray, map_files, windows
from tokmill.dataset.starts import Starts
from tokmill.dataset.token_files import (
    TokenFile,
    bare_file,
    check_size,
    files_again,
    files_of,
    local_file,
    read_header,
    read_npy_header,
    refuse_index,
    refuse_options,
)
from tokmill.encode import load_decoder, resolve_tokenizer, resolve_with
from tokmill.output import read_consistent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.outcome import SourceRange
    from tokmill.core.packing import Packing
    from tokmill.core.protocols import Encoder
    from tokmill.dataset.window_order import OrderName

BLOCK_TOKENS = 1 << 20
"""Ids that are scanned at a time."""

SAMPLES = 64
SAMPLE_TOKENS = 2048
"""A fingerprint reads 64 evenly spaced samples, first and last ids included: 64 pages of a disk, whatever the size of the data."""


class Dataset:
    """The tokens of both sides, and their documents. Made by `tokmill.open`; a context manager.

    `train` and `val` are uint16 or uint32, shape (n_tokens,), read-only; arrays cut from them are views of the file, not copies. If
    a side is several files, a slice that crosses from one into the next is a copy of its ids.
    """

    knows_starts = True
    """Whether the lists beside packed ids can be read."""

    def __init__(
        self,
        files: dict[str, tuple[TokenFile, ...]],
        dtype: IdType,
        *,
        eot_id: int | None,
        eot: EotPlacement,
        tokenizer: Tokenizer | None,
        manifest: Manifest | None,
        directory: Path | None = None,
    ) -> None:
        """directory: of the manifest."""
        self.manifest = manifest
        """None for a bare file."""
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.eot_id = eot_id
        self.eot: EotPlacement = eot
        self.tokenizer = tokenizer
        self._files = files
        self._directory = directory
        self._sides = self._map_sides()
        self._fingerprints: dict[str, str] = {}
        self._documents_before: dict[str, list[int]] = {side: [0] for side in SIDES}
        self._encoder: Encoder | None = None
        self._starts: dict[str, Starts] = {}
        self._ends: dict[str, NDArray[np.int64]] = {}

    @property
    def packing(self) -> Packing | None:
        """How documents lie in sequences; None: the output is not packed."""
        return self.manifest.content.packing if self.manifest else None

    @property
    def train(self) -> TokenArray:
        """All ids of the training side: uint16 or uint32, shape (n_tokens,), read-only."""
        return self.side("train")

    @property
    def val(self) -> TokenArray:
        """All ids of the validation side: uint16 or uint32, shape (n_tokens,), read-only; a bare file has none."""
        return self.side("val")

    def side(self, side: str) -> TokenArray:
        """Return all ids of a side: uint16 or uint32, shape (n_tokens,), read-only.

        Args:
            side: `train` or `val`.

        Raises:
            UsageError: there is no such side, or the data set is closed.
        """
        if side not in SIDES:
            raise UsageError(
                f"there is no side {side!r}", where=self._first_files(), allowed="train or val", next_step='use side="train"'
            )
        if side not in self._sides:
            raise UsageError(
                "the dataset is closed",
                where=self._first_files(),
                allowed="reading before close(), or inside the with block",
                next_step="open it again: tokmill.open(path)",
            )
        return self._sides[side]

    def n_documents(self, side: str) -> int:
        """Return the number of documents of a side, from the manifest or by one scan of a bare file.

        Of a packed output, the parts of a document that is cut count each.

        Raises UsageError if documents cannot be told apart.
        """
        ids = self.side(side)
        if self.manifest is not None and self.manifest.packed:
            return self.manifest.packed[side].pieces
        if self.manifest is not None:
            return sum(entry.documents for entry in self.manifest.files.values() if entry.side == side)
        self._check_marks()
        block, beyond = self._seek(side, len(ids))
        n_marks = self._documents_before[side][block] + len(self._marks(ids, block)[:beyond])
        is_cut = self.eot == "after" and len(ids) and ids[-1] != self.eot_id
        return n_marks + int(is_cut)

    def documents(self, side: str, start: int = 0) -> Iterator[Ids]:
        """Iterate over the documents of a side, without their end-of-text ids; of a packed output, parts of cut ones too.

        Args:
            side: `train` or `val`.
            start: Number of the first document, from 0.

        Returns:
            Iterator over arrays, uint16 or uint32, shape (n_tokens,): views of the file.

        Raises:
            UsageError: documents cannot be told apart, or `start` is negative.
        """
        self.side(side)
        self._check_marks()
        given: object = start
        if not isinstance(given, Integral) or start < 0:
            raise UsageError(
                "a document's number is no whole number from 0 on",
                where=f"document {start!r}",
                allowed="0 or more",
                next_step="count documents from 0",
            )
        return self._iterate_packed(side, start, self.packing) if self.packing else self._iterate(side, start)

    def document(self, side: str, index: int) -> Ids:
        """Return document number `index` (from 0) of a side: a view of the file, as of `documents`.

        Raises UsageError if there are fewer, or documents cannot be told apart.
        """
        found = next(self.documents(side, index), None)
        if found is None:
            raise UsageError(
                f"there is no document {index:,}",
                where=f"side {side}",
                allowed=f"0 to {self.n_documents(side) - 1:,}" if self.n_documents(side) else "none: this side has no documents",
                next_step="ask for one of those, or for the other side",
            )
        return found

    def batches(
        self,
        side: str = "train",
        *,
        batch: int,
        block: int,
        order: OrderName = "shuffled",
        epochs: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Batches:
        """Return batches for training.

        Args:
            side: `train` or `val`.
            batch: Windows of a batch, on each rank.
            block: Ids of x in a window; y is moved on by one id.
            order: `shuffled`, every window of `block` ids once an epoch (the last ids, fewer than `block`, in none), each epoch in
                another order; `documents`, whole documents in another order each epoch, one after the other, cut into windows;
                `sequential`, the windows as they lie; `random`, any start, as nanoGPT draws them.
            epochs: How many; None: endless, every batch full, also across the end of an epoch.
            seed: Of the order, 0 <= seed < 2**64.
            rank: Number of this process, from 0, among those that divide the windows between them.
            world_size: Number of those processes.

        Returns:
            An iterator over pairs (x, y), int64, shape (batch, block), which can be saved and restored.

        Raises:
            UsageError: an argument is out of range, the side is shorter than block + 1 ids, or documents cannot be told apart.
        """
        return Batches(
            self, side, batch=batch, block=block, order=order, epochs=epochs, seed=seed, rank=rank, world_size=world_size
        )

    def packed(
        self,
        side: str = "train",
        *,
        batch: int,
        order: OrderName = "shuffled",
        epochs: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> PackedBatches:
        """Return batches of the sequences of a packed output, with what keeps attention inside documents.

        Args:
            side: `train` or `val`.
            batch: Sequences of a batch, on each rank.
            order: `shuffled`, every sequence once an epoch, each epoch in another order; `sequential`, as they lie.
            epochs: How many; None: endless, every batch full, also across the end of an epoch.
            seed: Of the order, 0 <= seed < 2**64.
            rank: Number of this process, from 0, among those that divide the sequences between them.
            world_size: Number of those processes.

        Returns:
            An iterator over records of `input_ids`, `labels` (shifted), `position_ids`, `cu_seqlens` and `loss_mask`, which can be
            saved and restored.

        Raises:
            UsageError: the output is not packed, or an argument is out of range.
        """
        options = {"batch": batch, "order": order, "epochs": epochs, "seed": seed, "rank": rank, "world_size": world_size}
        return PackedBatches(self, side, **options)

    def val_sources(self) -> list[SourceRange]:
        """Return where the documents of each source lie on the validation side, in order, so that each has a loss of its own.

        Records with `path`, the output that was merged, shuffled or mixed, and `begin` and `end`: its ids are
        `data.val[each.begin : each.end]`. Nothing for an output of one run, a packed one, or a bare file.
        """
        return val_ranges(self.manifest) if self.manifest is not None else []

    def document_ends(self, side: str) -> NDArray[np.int64]:
        """Return where each document of a side ends, its end-of-text id included: int64, shape (n_documents,), read-only, a map.

        The list is made in one pass over the ids when it is first asked for, and kept: 8 bytes a document in
        `~/.cache/tokmill/documents`, or where nothing can be kept in a temporary file.

        Raises:
            UsageError: documents cannot be told apart, or the output is packed.
        """
        ids = self.side(side)
        if self.packing is not None:
            raise UsageError(
                "documents of a packed output are not taken one by one",
                where=self._first_files(),
                allowed="the order of its sequences",
                next_step='order="shuffled", or the output that was packed',
            )
        self._check_marks()
        if side not in self._ends:
            self._ends[side] = kept_ends(f"{self._identity()}-{side}", len(ids), lambda: self._find_ends(ids))
        return self._ends[side]

    def _find_ends(self, ids: TokenArray) -> Iterator[NDArray[np.int64]]:
        """Yield the ends of documents, block by block; what is before the first mark or after the last is a document, too."""
        is_after = self.eot == "after"
        last = 0
        for block in range(-(-len(ids) // BLOCK_TOKENS)):
            ends = self._marks(ids, block) + int(is_after)
            ends = ends[ends > 0]
            last = int(ends[-1]) if len(ends) else last
            yield ends
        if last < len(ids):
            yield np.array([len(ids)], np.int64)

    def _identity(self) -> str:
        """Return what tells these files from all others that were ever here."""
        if self.manifest is not None:
            return self.manifest.checksum
        files = [(os.path.realpath(file.path), file.path.stat()) for files in self._files.values() for file in files]
        said = [f"{path}\0{found.st_size}\0{found.st_mtime_ns}" for path, found in files]
        return xxhash.xxh3_128_hexdigest(
            "\0".join([*said, str(self.eot_id), self.eot, self.dtype.str]).encode("utf-8", "surrogateescape")
        )

    def fingerprint(self, side: str) -> str:
        """Return what tells the ids of a side from others: xxh3_128, hex, of their number and 64 evenly spaced samples.

        It is the same in every format, dtype and division into files. A change that keeps the number and misses every sample goes
        unseen; tokmill verify finds it.
        """
        ids = self.side(side)
        if side not in self._fingerprints:
            n_ids = min(SAMPLE_TOKENS, len(ids))
            sampled = windows(ids, np.linspace(0, len(ids) - n_ids, SAMPLES).astype(np.int64), n_ids)
            self._fingerprints[side] = xxhash.xxh3_128_hexdigest(f"{len(ids)} ".encode() + sampled.astype("<u4").tobytes())
        return self._fingerprints[side]

    def decode_bytes(self, ids: Ids | Sequence[int]) -> bytes:
        """Return the text of ids, end-of-text ids left out, as it was in the corpus.

        Raises:
            EngineError: an id is unknown.
            UsageError: the tokenizer is not known.
        """
        try:
            array = np.asarray(ids, dtype=np.uint32)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                "these are no ids",
                where=repr(ids)[:80],
                allowed="whole numbers from 0 on",
                next_step="give an array or a list of ids",
            ) from None
        if self.eot_id is not None:
            array = array[array != self.eot_id]
        return self._load_encoder().decode(np.ascontiguousarray(array))

    def decode(self, ids: Ids | Sequence[int]) -> str:
        """Return what `decode_bytes` does as text; a character that was cut at either end becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def close(self) -> None:
        """Release the files; they are unmapped when the last array cut from them is gone."""
        self._sides = {}
        self._starts = {}
        self._ends = {}
        self._encoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        # A map would be pickled as a copy of the whole file: workers of a data loader map it again instead.
        return self.__dict__ | {"_sides": None, "_starts": {}, "_ends": {}, "_encoder": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._directory is None:
            self._sides = self._map_sides()
        else:
            with explaining(str(self._directory)):
                read_consistent(self._directory, self._map_again)

    def __repr__(self) -> str:
        sides = ", ".join(f"{side}: {counted(len(ids), 'token')}" for side, ids in self._sides.items())
        return f"<tokmill.Dataset {sides or 'closed'}, {self.dtype.name}>"

    def _map_again(self, now: Manifest) -> None:
        """Map the same ids, also if something was appended since. Raises ChangedError if they are no longer there."""
        if self._directory is not None and self.manifest is not None:
            self._files = files_again(self._directory, self.manifest, self._files, now)
        self._sides = self._map_sides()

    def _map_sides(self) -> dict[str, TokenArray]:
        return {side: map_files(self._files.get(side, ()), self.dtype) for side in SIDES}

    def _first_files(self) -> str:
        return ", ".join(str(file.path) for files in self._files.values() for file in files[:1])

    def _check_marks(self) -> None:
        if self.eot != "none" and self.eot_id is not None:
            return
        is_bare = self.eot != "none"
        raise UsageError(
            "documents cannot be told apart: where one ends is not "
            + ("known" if is_bare else "marked in an output that was written with --eot none"),
            where=self._first_files(),
            allowed="files with an end-of-text id at each document, and the id",
            next_step="give it: --eot-id 50256 (GPT-2's), in Python eot_id=50256"
            if is_bare
            else "see the beginning without --document, in Python .train and .val; or tokenize again with --eot after",
        )

    def _load_encoder(self) -> Encoder:
        if self.tokenizer is None:
            raise UsageError(
                "which tokenizer made these ids is not known",
                where=self._first_files(),
                allowed="an output of tokmill tokenize, or the tokenizer by name",
                next_step='--tokenizer gpt2, in Python tokmill.open(path, tokenizer="gpt2"); for good: tokmill convert ... '
                "--tokenizer gpt2",
            )
        if self._encoder is None:
            self._encoder = load_decoder(find_tokenizer(self.tokenizer))
        return self._encoder

    def _marks(self, ids: TokenArray, block: int) -> NDArray[np.intp]:
        """Return where end-of-text ids are in block number `block`: int64, shape (n,), counted from the start of the side."""
        begin = block * BLOCK_TOKENS
        return np.flatnonzero(ids[begin : begin + BLOCK_TOKENS] == self.eot_id) + begin

    def _seek(self, side: str, mark: int) -> tuple[int, int]:
        """Return the block in which end-of-text id number `mark` lies, and its number in there; as far as the last block."""
        ids, before = self._sides[side], self._documents_before[side]
        n_blocks = -(-len(ids) // BLOCK_TOKENS)
        while before[-1] <= mark and len(before) <= n_blocks:
            before.append(before[-1] + len(self._marks(ids, len(before) - 1)))
        block = max(int(np.searchsorted(before, mark, side="right")) - 1, 0)
        return block, mark - before[block]

    def _marks_from(self, side: str, first: int) -> Iterator[int]:
        """Yield where the end-of-text ids of a side are, from number `first` (from 0) on."""
        ids = self._sides[side]
        block, n_skip = self._seek(side, first)
        for number in range(block, -(-len(ids) // BLOCK_TOKENS)):
            yield from self._marks(ids, number)[n_skip:].tolist()
            n_skip = 0

    def starts(self, side: str) -> Starts:
        """Return where documents begin in a side of a packed output. Raises UsageError for another, DamageError."""
        self.side(side)
        if side not in self._starts:
            if self.manifest is None or self.packing is None:
                raise UsageError(
                    "this output is not packed",
                    where=self._first_files(),
                    allowed="an output of tokmill pack",
                    next_step="tokmill pack DIR --sequence N --seed S --out packed; batches() gives windows",
                )
            self._starts[side] = Starts([file for file in self._files.get(side, ()) if file.n_tokens], self.manifest)
        return self._starts[side]

    def _iterate_packed(self, side: str, start: int, packing: Packing) -> Iterator[Ids]:
        ids, n_skip = self._sides[side], start
        for stretches in self.starts(side).stretches():
            kept = stretches[ids[stretches[:, 0]] != packing.pad_id]
            for begin, end in kept[n_skip:].tolist():
                document = ids[begin:end]
                if len(document) and document[-1] == self.eot_id and self.eot == "after":
                    document = document[:-1]
                elif len(document) and document[0] == self.eot_id and self.eot == "before":
                    document = document[1:]
                yield document
            n_skip = max(0, n_skip - len(kept))

    def _iterate(self, side: str, start: int) -> Iterator[Ids]:
        ids = self._sides[side]
        is_after = self.eot == "after"
        marks = self._marks_from(side, max(start - is_after, 0))
        begin = 0 if is_after and start == 0 else next(marks, len(ids)) + 1
        for mark in marks:
            yield ids[begin:mark]
            begin = mark + 1
        # A last document without its end-of-text id, as in a bare file that was cut; with `before`, the usual case.
        if begin < len(ids) or (not is_after and begin == len(ids)):
            yield ids[begin:]


def open_dataset(
    path: str | Path, *, dtype: IdType | None = None, eot_id: int | None = None, tokenizer: str | None = None
) -> Dataset:
    """Open a complete output directory, or a bare file of ids (nanoGPT's `train.bin`), which becomes the train side.

    In a bare file, the headers of llm.c and of numpy.save are recognized.

    Args:
        path: The directory or the file.
        dtype: Of a bare file; None: as its header or the manifest beside it says.
        eot_id: Of a bare file; None: that of the tokenizer, or as the manifest beside it says.
        tokenizer: Name of the tokenizer of a bare file, of an output that was converted from such without naming it, or of one
            whose own tokenizer is elsewhere now.

    Returns:
        The open data set.

    Raises:
        UsageError: the directory is incomplete, or the dtype is missing.
        DamageError: a file has the wrong length or header.
        StorageError: the system refuses to open, read or map a file.
    """
    path = local_file(path)
    with explaining(str(path)):
        if path.is_dir():
            refuse_options(path, dtype, eot_id)
            return read_consistent(path, lambda manifest: _open_directory(path, manifest, tokenizer))
        return _open_bare(path, dtype, eot_id, tokenizer)


def find_tokenizer(tokenizer: Tokenizer, name: str | None = None) -> Tokenizer:
    """Return the tokenizer of a manifest, which may have been written on another machine: its file there, or the same one here.

    name: Where the user says that it is. Without it the network is not asked: anybody may have written the manifest.

    Raises UsageError if it is not here, ChangedError if the one that has its name here has another content.
    """
    if name is None and Path(text_to_path(tokenizer.path)).is_file():
        return tokenizer
    wanted, found = name or tokenizer.name, "no such end-of-text token"
    try:
        here = resolve_tokenizer(wanted, str(tokenizer.eot_id), may_ask=name is not None)
    except UsageError as error:
        if error.option != "--eot-token":
            raise
    else:
        if here.sha256 == tokenizer.sha256:
            return here
        wanted, found = text_to_path(here.path), here.sha256
    raise ChangedError(
        f"the tokenizer {name or tokenizer.name!r} here is not the one that made the ids",
        where=wanted,
        allowed=f"a file with SHA-256 {tokenizer.sha256}; it has {found}",
        next_step=f"put the original file at {text_to_path(tokenizer.path)}, or say where it is with --tokenizer",
    )


def _open_directory(directory: Path, manifest: Manifest, tokenizer_name: str | None = None) -> Dataset:
    files, content = files_of(directory, manifest), manifest.content
    eot_id, tokenizer = content.tokenizer.eot_id, _stated(content.tokenizer, tokenizer_name, directory)
    return Dataset(
        files, content.dtype, eot_id=eot_id, eot=content.eot, tokenizer=tokenizer, manifest=manifest, directory=directory
    )


def _stated(recorded: Tokenizer, name: str | None, where: Path) -> Tokenizer | None:
    """Return the tokenizer of a manifest, or the one named now. Raises UsageError for one too small, ChangedError for another."""
    if recorded.is_known:
        return recorded if name is None else find_tokenizer(recorded, name)
    if name is None:
        return None
    named = resolve_with(name, recorded.eot_id)
    if named.n_ids < recorded.n_ids:
        raise UsageError(
            f"ids go up to {recorded.n_ids - 1:,}, those of {named.name} only up to {named.n_ids - 1:,}",
            where=str(where),
            allowed="the tokenizer that made them",
            next_step="give another --tokenizer, or leave it out",
        )
    return named


def _is_text(path: Path) -> bool:
    """Return whether a file begins as a text does, and ids do not: no zero byte, and UTF-8."""
    with path.open("rb") as file:
        begin = file.read(4096)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        return False
    return bool(text) and "\0" not in text


def _open_bare(path: Path, dtype: IdType | None, eot_id: int | None, tokenizer_name: str | None) -> Dataset:
    check_size(path, None)
    content = None
    if (path.parent / MANIFEST_NAME).is_file():
        manifest = load_manifest(path.parent)
        content = manifest.content if path.name in manifest.files else None
    recorded = content.tokenizer if content else None
    tokenizer = resolve_with(tokenizer_name, eot_id) if tokenizer_name else recorded if recorded and recorded.is_known else None
    refuse_index(path)
    header, npy = read_header(path), None if content else read_npy_header(path)
    said = {"uint16": "uint16", "uint32": "uint32", "int32": "uint32"}.get(npy.dtype) if npy else header[1] if header else None
    dtype = dtype or (content.dtype if content else cast("IdType | None", said))
    if dtype is None or dtype not in get_args(IdType):
        if dtype is None and _is_text(path):
            raise UsageError(
                "this is a text, not a file of ids",
                where=str(path),
                allowed="an output of tokmill, or a bare file of ids",
                next_step=shlex.join(["tokmill", "tokenize", str(path), "--out", "data"]),
            )
        raise UsageError(
            "a bare file does not say how wide its ids are" if dtype is None else f"{dtype!r} is no type of ids",
            where=str(path),
            allowed="uint16 (GPT-2) or uint32",
            option="--dtype",
            suggested="uint16",
        )
    described = tokenizer or recorded
    if eot_id is None and described is not None:
        eot_id = described.eot_id
    dataset = Dataset({"train": (bare_file(path, dtype),)}, dtype, eot_id=eot_id, eot="after", tokenizer=tokenizer, manifest=None)
    dataset.eot = content.eot if content else _guess_eot(dataset.train, eot_id)
    return dataset


def _guess_eot(ids: TokenArray, eot_id: int | None) -> EotPlacement:
    """Return where a bare file has its end-of-text ids: `before` if it begins with one and does not end with one."""
    return "before" if len(ids) and ids[0] == eot_id and ids[-1] != eot_id else "after"
