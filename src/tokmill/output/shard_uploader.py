"""Sends the complete files of a run that goes on, and takes them away here, so that a disk need not hold all of an output.

The journal says which files are complete and what is in them; it is read as it grows. A file that is sent leaves a mark and is
then taken away, so that a run is resumed exactly: what the journal speaks of is here or marked. The run's own
process does not send: its memory is divided to the last byte, and a store that hangs must not hold it.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import DamageError
from tokmill.core.events import AnyEvent, Committed, Started
from tokmill.core.manifest import read_state
from tokmill.core.spans import Span, iter_spans, with_header
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.output.journal import read_segments
from tokmill.output.state_dir import growing_path, is_sent, sent_mark, state_of
from tokmill.store import FileToSend, ObjectInfo, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from tokmill.core.manifest import Manifest, Segment
    from tokmill.core.records import FileEntry
    from tokmill.store import Uploader


class ShardUploader:
    """The files of one staged output. Implements `protocols.Observer`, but raises what goes wrong with the sending."""

    def __init__(self, directory: Path, sender: Callable[[], Uploader]) -> None:
        """sender: made when it is needed first."""
        self.while_made = False
        """Whether files are sent before all of them are complete."""
        self._directory = directory
        self._make_sender = sender
        self._position = 0
        """In the journal, after the last line that was read."""
        self._spans: dict[str, list[Span]] = {}
        self._pending: dict[str, Future[ObjectInfo]] = {}

    def on_event(self, event: AnyEvent) -> None:
        """Send what is complete; take away what has arrived."""
        if not self.while_made:
            return
        if isinstance(event, (Started, Committed)):
            segments, self._position = read_segments(state_of(self._directory) / "journal", self._position)
            self._take(segments)
        self._settle()

    def finish(self, manifest: Manifest, tick: Callable[[], None], tick_s: float) -> dict[str, ObjectInfo]:
        """Send what is left of a complete output; returns what the store says of all of it. tick: called every `tick_s` seconds."""
        files = outgoing(self._directory, manifest)
        for file in files:
            if not is_sent(self._directory, file.name) and file.name not in self._pending:
                self._pending[file.name] = self._make_sender().send(file)
        # Those that are sent now stay here until the manifest is there: there is room for them.
        left = set(self._pending.values())
        while left:
            done, left = wait(left, timeout=tick_s, return_when=FIRST_EXCEPTION)
            for each in done:
                each.result()
            tick()
        arrived = {name: each.result() for name, each in self._pending.items()}
        return {file.name: arrived.get(file.name) or self._marked(file.name) for file in files}

    def sent(self) -> dict[str, ObjectInfo]:
        """What was sent and taken away, by an earlier attempt too."""
        marks = sent_mark(self._directory, "").parent
        names = [path.name.removesuffix(".json").replace("%", "/") for path in (marks.iterdir() if marks.is_dir() else ())]
        return {name: self._marked(name) for name in names if not name.endswith(".new")}

    def _take(self, segments: Iterable[Segment]) -> None:
        """Begin to send the files that are complete with these segments."""
        for segment in segments:
            iter_spans([segment], self._spans)
            for name, entry in segment.completed.items():
                spans = tuple(with_header(self._spans.pop(name, ()), entry))
                if not is_sent(self._directory, name):
                    self._pending[name] = self._make_sender().send(self._file(name, entry, spans))

    def _file(self, name: str, entry: FileEntry, spans: tuple[Span, ...]) -> FileToSend:
        paths = growing_path(self._directory, name), self._directory / name
        return FileToSend(name=name, paths=paths, entry=entry, spans=spans)

    def _settle(self) -> None:
        """Mark and take away what has arrived. Raises what went wrong."""
        for name, each in list(self._pending.items()):
            if each.done():
                self._mark(each.result())
                del self._pending[name]

    def _mark(self, stored: ObjectInfo) -> None:
        mark = sent_mark(self._directory, stored.name)
        with storage_errors(mark):
            durable.replace_file(mark, msgspec.json.encode(stored))
            for path in (growing_path(self._directory, stored.name), self._directory / stored.name):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def _marked(self, name: str) -> ObjectInfo:
        mark = sent_mark(self._directory, name)
        try:
            with storage_errors(mark):
                return msgspec.json.decode(read_state(mark), type=ObjectInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise DamageError(
                "what was noted of a file that was sent is not readable",
                where=str(mark),
                allowed="JSON as tokmill writes it",
                next_step="run the same command with --fresh to make it again",
            ) from None
