"""One pass over one file of the output: digests of its segments, range of its ids, and where documents end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.output_spec import Shards
from tokmill.core.records import FileHeader
from tokmill.core.spans import SpanChecker, add_up, spans_of
from tokmill.core.text import counted
from tokmill.formats import header_problem, n_padding_ids

if TYPE_CHECKING:
    from tokmill.check.findings import Findings
    from tokmill.core.manifest import Manifest
    from tokmill.dataset import Ids


class Outline:
    """What the manifest says of all files, looked up once: there may be thousands."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.spans = spans_of(manifest)
        shards = manifest.content.shards
        is_cut = isinstance(shards, Shards) and shards.drop_tail and not shards.whole_documents
        sides = {side: [name for name, entry in manifest.files.items() if entry.side == side] for side in ("train", "val", None)}
        self.first = {names[0] for names in sides.values() if names}
        """Files that begin where a document does, because their side does."""
        self.last = {names[-1] for names in sides.values() if names and not is_cut}
        """Files that end where a document does."""


class Scan:
    """One pass over one file, block by block."""

    def __init__(self, name: str, outline: Outline, findings: Findings) -> None:
        manifest, entry = outline.manifest, outline.manifest.files[name]
        self._content = content = manifest.content
        self._is_first, self._is_last = name in outline.first, name in outline.last
        self._name = name
        self._entry = entry
        self._findings = findings
        self._dtype = np.dtype(content.dtype).newbyteorder("<")
        self._n_ids = content.tokenizer.n_ids
        self._eot_id = content.tokenizer.eot_id
        self._eot = content.eot
        self._spans = outline.spans[name]
        self._checker = SpanChecker(self._spans)
        self._n_eot = 0
        self._n_wrong_ids = 0
        self._first_wrong: tuple[int, int] | None = None
        self._first_id = self._last_id = -1

    def update_header(self, header: bytes) -> None:
        """Check the whole header; called before the rest."""
        filled = self._entry.header
        if self._entry.side is None and not isinstance(filled, FileHeader):
            return
        if header and self._checker.update(header):
            self._findings.add(self._name, "the header is not the one written", 0, len(header))
            return
        wrong = header_problem(header, self._name, self._entry, self._content)
        if wrong:
            self._findings.add(self._name, wrong, 0, len(header))

    def update(self, block: memoryview) -> None:
        """Take the next bytes of the file; all blocks but the last hold whole ids."""
        position = self._checker.position
        for span in self._checker.update(block):
            what = f"the bytes of segment {span.segment + 1:,} are not those written"
            self._findings.add(self._name, what, span.begin, span.end)
        if self._entry.side is not None:
            whole = len(block) - len(block) % self._dtype.itemsize
            if whole:
                self._update_ids(np.frombuffer(block[:whole], self._dtype), position)

    def finish(self) -> None:
        """Check the sums; all bytes of the file have been taken."""
        add = self._findings.add
        entry, item_bytes = self._entry, self._dtype.itemsize
        if not add_up(self._spans, entry.size_bytes):
            add(self._name, "the segments do not add up to the file")
        if entry.side is None:
            return
        filling = n_padding_ids(self._content, entry.tokens)
        if entry.header_bytes + (entry.tokens + filling) * item_bytes != entry.size_bytes:
            add(
                self._name,
                f"{counted(entry.tokens, 'token')} of {item_bytes} bytes in a file of {counted(entry.size_bytes, 'byte')}",
            )
        if self._first_wrong is not None:
            place, value = self._first_wrong
            end = place + item_bytes
            add(
                self._name,
                f"id {value:,} is not below {self._n_ids:,} ({counted(self._n_wrong_ids, 'such id')} in the file)",
                place,
                end,
            )
        if self._eot == "none":
            return
        if self._n_eot != entry.documents + filling:
            add(self._name, f"{counted(self._n_eot - filling, 'end-of-text id')}, but {counted(entry.documents, 'document')}")
        edge = self._last_id if self._eot == "after" else self._first_id
        if entry.tokens and edge != self._eot_id and (self._is_last if self._eot == "after" else self._is_first):
            which = "last" if self._eot == "after" else "first"
            add(self._name, f"the {which} id is {edge:,}, not the end-of-text id {self._eot_id:,}")

    def _update_ids(self, ids: Ids, position: int) -> None:
        """ids: uint16 or uint32, shape (n_ids,); position: offset of the first in the file."""
        if position == self._entry.header_bytes:
            self._first_id = int(ids[0])
        self._last_id = int(ids[-1])
        if self._eot != "none":
            self._n_eot += int(np.count_nonzero(ids == self._eot_id))
        if int(ids.max()) < self._n_ids:
            return
        wrong = np.flatnonzero(ids >= self._n_ids)
        self._n_wrong_ids += len(wrong)
        if self._first_wrong is None:
            self._first_wrong = (position + int(wrong[0]) * self._dtype.itemsize, int(ids[wrong[0]]))
