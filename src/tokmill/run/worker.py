"""The process that tokenizes: `python -m tokmill.run.worker JOB_FD EVENT_FD`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import TokmillError
from tokmill.core.events import AnyEvent, Finished, Started
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.outcome import already_finished
from tokmill.core.partition import outside_bytes
from tokmill.core.records import STDIN, Cursor, is_packed
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.core.version import __version__
from tokmill.output import Output, RunHistoryRecorder, open_output, output_directory
from tokmill.run.encoding import COMMITTED, EncodingProcess, serve
from tokmill.run.segment_writer import SegmentWriter

if TYPE_CHECKING:
    from tokmill.read import CorpusReader


class Worker(EncodingProcess):
    """Makes one output in this process."""

    RESUMES = True
    _recorder: RunHistoryRecorder | None = None

    def run(self) -> None:
        """Tokenize, publish, and emit Finished. Raises TokmillError."""
        job = self._job
        segment_bytes = job.resources.segment_bytes
        output = open_output(
            output_directory(job),
            job.content,
            __version__,
            fresh=job.fresh,
            replacing=job.replacing,
            segment_bytes=segment_bytes,
            can_append=not job.destination,
        )
        if isinstance(output, Manifest):
            self._emit(already_finished(output))
            return
        try:
            self._run(output)
        except TokmillError as error:
            if not output.segments:
                error.resumes, error.what = False, error.what.replace(COMMITTED, "nothing was committed")
            raise
        finally:
            output.close()

    def _run(self, output: Output) -> None:
        resumed = bool(output.segments)
        recorder = self._recorder = RunHistoryRecorder(output)
        writer = SegmentWriter(self._job, output, self._tell_all, self._position(output.cursor))
        self._tell_all(self._started(output))
        reader = self._reader()
        with self._encoded(reader, output.cursor, lambda: self._tell_of(writer)) as results:
            try:
                for encoded in results:
                    if not writer.wait_for_stage(encoded, lambda: self._tell_of(writer), self._is_ending):
                        raise self._ended(output.directory)
                    writer.add(encoded)
                writer.wait_for_stdin_end()
                if self._is_to_end(writer, reader):
                    raise self._ended(output.directory)
            except BaseException as error:
                if self._stopped:
                    writer.doubt_stdin_end()
                # What was written before the error is kept.
                writer.commit()
                output.settle()
                recorder.save()
                if isinstance(error, MemoryError):
                    raise reader.out_of_memory() from error
                raise
        manifest = self._manifest(output, writer, recorder)
        output.publish(manifest)
        finished = _finished(manifest, writer.elapsed_s, resumed=resumed)
        self._emit(msgspec.structs.replace(finished, notices=reader.notices()))

    def _is_ending(self) -> bool:
        return self._stopped or self._leaving is not None

    def _tell_of(self, writer: SegmentWriter) -> None:
        self._tell(writer.elapsed_s, writer.position_bytes, writer.counts)

    def _is_to_end(self, writer: SegmentWriter, reader: CorpusReader) -> bool:
        """Whether the run ends here: before the corpus does, or by a signal that may have ended standard input, too."""
        inputs, reached = self._job.content.inputs, writer.reached
        is_at_end = reached.input_index >= len(inputs) or reached == reader.end
        return not is_at_end or (self._stopped and any(i.path == STDIN for i in inputs))

    def _position(self, cursor: Cursor) -> int:
        """Bytes of the inputs on disk before the cursor, without those of a compressed input that was begun."""
        inputs = self._job.content.inputs
        before = sum(i.size_bytes or 0 for i in inputs[: cursor.input_index])
        before -= self._outside()[0] if before or cursor.offset else 0
        is_plain = cursor.input_index < len(inputs) and not is_packed(inputs[cursor.input_index])
        return before + (cursor.offset if is_plain else 0)

    def _outside(self) -> tuple[int, int]:
        """Bytes of the inputs before and after the part that the job makes."""
        return outside_bytes(self._job.content.part, self._job.content.inputs)

    def _tell_all(self, event: AnyEvent) -> None:
        super()._tell_all(event)
        if self._recorder is not None:
            self._recorder.on_event(event)

    def _started(self, output: Output) -> Started:
        inputs, resources = self._job.content.inputs, self._job.resources
        sizes = [i.size_bytes for i in inputs]
        return Started(
            total_bytes=sum(s for s in sizes if s is not None) - sum(self._outside()) if None not in sizes else None,
            resumed_bytes=output.counts.bytes_in,
            position_bytes=self._position(output.cursor),
            n_threads=resources.n_threads,
            batch_bytes=resources.batch_bytes,
            budget_bytes=resources.budget_bytes,
            is_packed=any(map(is_packed, inputs)),
        )

    def _manifest(self, output: Output, writer: SegmentWriter, recorder: RunHistoryRecorder) -> Manifest:
        entries = writer.finish()
        self._tell_of(writer)
        return Manifest(
            format_version=FORMAT_VERSION,
            tokmill_version=__version__,
            fingerprint=self._job.content.fingerprint(),
            content=self._job.content,
            files=entries,
            segments=published(output.segments, entries),
            counts=writer.counts,
            elapsed_s=round(output.elapsed_before_s + writer.elapsed_s, 3),
            peak_rss_bytes=peak_rss_bytes(),
            made_from=self._job.made_from or msgspec.UNSET,
            history=recorder.history(),
        )


def _finished(manifest: Manifest, elapsed_s: float, *, resumed: bool) -> Finished:
    return Finished(
        elapsed_s=elapsed_s, counts=manifest.counts, peak_rss_bytes=peak_rss_bytes(), resumed=resumed, files=manifest.files
    )


if __name__ == "__main__":
    serve(Worker, int(sys.argv[1]), int(sys.argv[2]))
