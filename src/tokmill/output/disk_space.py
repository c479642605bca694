"""Whether an output will fit on its disk: what it needs, what is free, asked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.arrangement import RECORD_BYTES
from tokmill.core.errors import DiskFullError, UsageError
from tokmill.core.output_spec import Shards
from tokmill.core.records import ITEM_BYTES, is_packed, text_to_path
from tokmill.core.skipping import MOST_LISTED_BYTES
from tokmill.core.system.durable import file_system_of
from tokmill.core.text import counted, printable_line
from tokmill.formats import FORMATS
from tokmill.output.state_dir import growing_files

if TYPE_CHECKING:
    from tokmill.core.config import Content, Job
    from tokmill.core.records import Counts

_RESERVE_BYTES = 16 << 20
"""Left free for others, at most; less on a small disk (a hundredth of it) and for a small output (a quarter of it)."""
_SEGMENT_BYTES = 32 << 20
"""Input of a segment, about: 64 MiB, or what is done in a second."""
_SEGMENT_COST = 1600
"""Bytes that a segment takes in journal (600) and manifest (1,000)."""
_HISTORY_COST = 24 << 10
"""Bytes that the history of a run takes, beside the journal and in the manifest: 200 samples."""
_FILES = 8
"""Inodes: two growing files, journal, history, lock, manifest, list of skipped records, and their directory."""
_COMPRESSION = 30
"""Text does not compress better than this."""
_MOST_SMALL_FILES = 10_000
_SMALL_BYTES = 1 << 20
_REPLACED = 3
"""U+FFFD for a byte that is not UTF-8 is three bytes long."""


class DiskNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs of a file system, and what is there."""

    path: str
    """Directory of the file system that was asked: the output, or what exists of its path."""
    output_bytes: int
    """The files of ids."""
    bookkeeping_bytes: int
    """Journal and manifest, which exist at the same time, and with --on-error skip the longest list of skipped records."""
    reserve_bytes: int
    """Left free for others."""
    written_bytes: int
    """Written there by an earlier run already, and used or discarded by this one."""
    free_bytes: int | None
    """For this user; None where the file system does not say."""
    needed_files: int
    free_files: int | None
    """Inodes; None where the file system has no limit."""

    needed_bytes: int
    """To be free before the run."""
    fits: bool
    """Whether the run will not fill the disk."""

    def check(self, *, is_staged: bool = False, is_least: bool = False) -> None:
        """Raise DiskFullError when it will not fit.

        is_staged: it is made there for a store. is_least: it may well need more.
        """
        if self.fits:
            return
        elsewhere = "--stage on another disk, --shard-tokens with a smaller --stage-size" if is_staged else "choose another --out"
        if self.free_bytes == 0:
            what = f"there is no room at all: the disk is full, or this is no disk (as /proc); {_mb(self.needed_bytes)} are needed"
        elif self.free_bytes is not None and self.needed_bytes > self.free_bytes:
            what = (
                f"the output will not fit on the disk: {'at least' if is_least else 'about'} {_mb(self.needed_bytes)} are needed, "
                f"{_mb(self.free_bytes)} are free"
            )
        else:
            needed = counted(self.needed_files, "new file or directory", "new files and directories")
            what = f"the output needs {needed}; the disk takes {self.free_files} more"
        raise DiskFullError(
            what,
            where=printable_line(self.path),
            allowed=f"ids {_mb(self.output_bytes)}, journal and manifest {_mb(self.bookkeeping_bytes)}, "
            f"{_mb(self.reserve_bytes)} left free, {_mb(self.written_bytes)} of it written already",
            next_step=f"free disk space, {elsewhere}, or pass --force to try all the same",
        )


def disk_need(job: Job, n_tokens: int, bytes_in: int, carried_bytes: int = 0, *, n_shuffled: int | None = None) -> DiskNeed:
    """Return what a run of so many tokens, from so many decompressed bytes, needs on the disk of its output.

    carried_bytes: of an old output that is copied into the new one first. n_shuffled: documents that are put into another order;
    None: they stay in theirs.
    """
    out = Path(text_to_path(job.out))
    output = _held_bytes(job.content, job.resources.stage_bytes, n_tokens * ITEM_BYTES[job.content.dtype] + carried_bytes)
    output += 0 if n_shuffled is None else arranging_bytes(job.content, n_tokens, n_shuffled)
    return _need(out, job.content, n_tokens, output, bytes_in, fresh=job.fresh)


def arranging_bytes(content: Content, n_tokens: int, n_documents: int) -> int:
    """Return the bytes that documents take on the disk on their way into another order."""
    return n_tokens * ITEM_BYTES[content.dtype] + n_documents * RECORD_BYTES


def check_n_files(content: Content, n_tokens: int, n_documents: int, out: str) -> None:
    """Raise UsageError for an output of very many small files, which nobody means.

    Args:
        content: Of the output.
        n_tokens: Of the output, at least.
        n_documents: Of the output, at least.
        out: The output, for the message.
    """
    n_files = n_shards(content, n_tokens, n_documents)
    shard_tokens = content.shards.tokens if isinstance(content.shards, Shards) else 0
    if n_files <= _MOST_SMALL_FILES or shard_tokens * ITEM_BYTES[content.dtype] >= _SMALL_BYTES:
        return
    raise UsageError(
        f"shards of {counted(shard_tokens, 'token')} would make about {n_files:,} files",
        where=out,
        option="--shard-tokens",
        allowed=f"at most {_MOST_SMALL_FILES:,} files of less than 1 MiB; any number with --force",
        suggested=str(_SMALL_BYTES),
    )


def n_shards(content: Content, n_tokens: int, n_documents: int) -> int:
    """Return about how many files of ids an output of shards has; 0 for one without."""
    if not isinstance(content.shards, Shards):
        return 0
    n = n_tokens // content.shards.tokens
    return min(n, n_documents) if content.shards.whole_documents else n


def rewriting_need(
    out: Path, content: Content, counts: Counts, *, fresh: bool, scratch_bytes: int = 0, stage_bytes: int = 0
) -> DiskNeed:
    """Return what an output that is made of other outputs needs on its disk.

    Args:
        out: Where it is made.
        content: Of the new output.
        counts: Of the new output.
        fresh: What is begun there is discarded.
        scratch_bytes: Needed while it is made, beside it.
        stage_bytes: Most bytes of complete files that wait there for a store; 0: all are there at once.
    """
    n_tokens, n_documents = counts.tokens_train + counts.tokens_val, counts.documents_train + counts.documents_val
    output = n_tokens * ITEM_BYTES[content.dtype] + n_documents * (FORMATS[content.format].index_bytes + 8 * bool(content.offsets))
    held = _held_bytes(content, stage_bytes, output) + scratch_bytes
    return _need(out, content, n_tokens, held, counts.bytes_in, fresh=fresh)


def written_bytes(out: Path) -> int:
    """Return what growing files in an output take on its disk: an earlier run left them, and the next uses or discards them."""
    return sum(path.lstat().st_blocks * 512 for path in growing_files(out))


def _need(out: Path, content: Content, n_tokens: int, output: int, bytes_in: int, *, fresh: bool) -> DiskNeed:
    existing = next(p for p in (out, *out.parents) if p.is_dir())
    status = file_system_of(existing)
    growing, written = growing_files(out), written_bytes(out)
    n_content = len(msgspec.json.encode(content))
    bookkeeping = 3 * n_content + (bytes_in // _SEGMENT_BYTES + 2) * _SEGMENT_COST + _HISTORY_COST
    bookkeeping += MOST_LISTED_BYTES if content.on_error == "skip" else 0
    reserve = min(_RESERVE_BYTES, status.f_blocks * status.f_frsize // 100 if status else _RESERVE_BYTES, output // 4)
    free = status.f_bavail * status.f_frsize if status else None
    if fresh:
        # They are removed before anything is written.
        free, written = free + written if free is not None else None, 0
    needed = max(0, output + bookkeeping - written) + reserve
    shards = n_shards(content, n_tokens, n_tokens)
    needed_files = 0 if growing else _FILES + shards + len(out.parents) - len(existing.parents)
    free_files = status.f_favail if status and status.f_files else None
    return DiskNeed(
        path=str(existing),
        output_bytes=output,
        bookkeeping_bytes=bookkeeping,
        reserve_bytes=reserve,
        written_bytes=written,
        free_bytes=free,
        needed_files=needed_files,
        free_files=free_files,
        needed_bytes=needed,
        fits=(free is None or needed <= free) and (free_files is None or needed_files <= free_files),
    )


def _held_bytes(content: Content, stage_bytes: int, output_bytes: int) -> int:
    """Return how much of an output is here at once: all of it, or what waits to be sent and the open shards."""
    shards = content.shards
    if not stage_bytes or not isinstance(shards, Shards):
        return output_bytes
    # A side's shard may grow past its limit while a commit is under way.
    return min(output_bytes, stage_bytes + 4 * shards.tokens * ITEM_BYTES[content.dtype])


def most_tokens(content: Content) -> tuple[int, int] | None:
    """Return a bound on the tokens (each stands for at least a byte) and the bytes they come from; None if an input has no size."""
    if any(source.size_bytes is None for source in content.inputs):
        return None
    n_bytes = sum((source.size_bytes or 0) * (_COMPRESSION if is_packed(source) else 1) for source in content.inputs)
    # A document's end-of-text id has its separator or its line's brackets, but for the last of a file.
    n_files = len(content.inputs) + bool(content.val_tail)
    return n_bytes * (_REPLACED if content.encoding_errors == "replace" else 1) + n_files, n_bytes


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.2f} MB"
