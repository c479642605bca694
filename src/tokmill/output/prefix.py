"""A prefix of an object store that holds an output, or will: what is there, and the moment at which it is complete.

The output is complete when `manifest.json` is there, which is put last and only where there is none. A store has no lock that dies
with its holder, so none is tried; three conditions keep runs apart. Every object is made on condition that there is none. Before
and after the manifest is put, every object must still be the one that was sent. A run that has sent a file looks whether another
run's manifest is there, and then takes the file away. Of two runs that differ, the second is refused at the latest when it sends a
file of a name that the first has sent; two runs of the same inputs and settings make the same bytes, and the first manifest stands.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.bounded import MOST_BYTES
from tokmill.core.errors import ChangedError, DamagedInputError, DamageError, LockedError, StorageError, UsageError
from tokmill.core.manifest import (
    MANIFEST_NAME,
    PARTS_NAME,
    PLAN_NAME,
    STATE_NAME,
    Manifest,
    decode_manifest,
    encode_manifest,
    unfinished_parts,
)
from tokmill.core.output_spec import NAMED, SIDES
from tokmill.core.records import Input
from tokmill.output.journal import decode_header
from tokmill.output.state_dir import parts_error
from tokmill.store import WRITING, AlreadyExists, RemoteStream, foreign_object, objects_at, register_url, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping

    from tokmill.store import ObjectInfo, S3Objects, UploadState

T = TypeVar("T")

_OF_A_SIDE = tuple(f"{side}{mark}" for side in SIDES for mark in "._/")
_NAMED = re.compile(NAMED)
_READS = 8
"""Of a small object that is replaced whenever it is read."""


class Prefix:
    """One prefix. Every request is retried; raises StorageError when the retries end."""

    def __init__(self, url: str) -> None:
        """Ask nothing yet. Raises UsageError for a store that cannot take an output."""
        self.store: S3Objects = objects_at(url)
        self.url = self.store.url
        self._full_url = url.rstrip("/")

    def head(self, name: str) -> ObjectInfo | None:
        """Return one object; None if there is none."""
        return self.ask(lambda: self.store.head(name))

    def list(self) -> dict[str, ObjectInfo]:
        """Return all objects, by name."""
        return {info.name: info for info in self.ask(self.store.list)}

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in this order."""
        self.ask(lambda: self.store.delete(names))

    def manifest(self) -> Manifest | None:
        """Return the manifest of the complete output here; None if there is none. Raises DamageError, UsageError."""
        data = self.whole(MANIFEST_NAME)
        return None if data is None else decode_manifest(data, f"{self.url}/{MANIFEST_NAME}")

    def complete_manifest(self) -> Manifest:
        """Return the manifest. Raises UsageError where there is none."""
        manifest = self.manifest()
        if manifest is None:
            # Of one object, a store does not say whether it has the bucket.
            there = self.list()
            self._refuse_unfinished_parts(there)
            is_begun = any(map(is_ours, there))
            raise UsageError(
                "no complete tokmill output here" + (", but a run that is under way or was interrupted" if is_begun else ""),
                where=self.url,
                allowed=f"a prefix with {MANIFEST_NAME}",
                next_step="give the URL that was --out, or run the tokmill tokenize command again: an interrupted run resumes",
            )
        return manifest

    def _refuse_unfinished_parts(self, there: Container[str]) -> None:
        """Raise UsageError for an output whose parts were not joined."""
        data = self.whole(PLAN_NAME) if PLAN_NAME in there else None
        plan = decode_header(data, f"{self.url}/{PLAN_NAME}", give_up(self.url)) if data is not None else None
        if plan is not None and isinstance(plan.content.n_parts, int):
            n_parts = plan.content.n_parts
            complete = {i for i in range(n_parts) if f"{PARTS_NAME}/{i:05}/{MANIFEST_NAME}" in there}
            raise unfinished_parts(self.url, n_parts, complete)

    def stream(self, info: ObjectInfo) -> RemoteStream:
        """Return an object as a stream, pinned to the version seen. The caller closes it and reads in `reading_errors`."""
        return RemoteStream(self.source(info))

    def source(self, info: ObjectInfo) -> Input:
        """Return an object as something to read."""
        name = register_url(f"{self._full_url}/{info.name}")
        return Input(path=name, format="ids", compression="none", size_bytes=info.size_bytes, version=info.version)

    def whole(self, name: str) -> bytes | None:
        """Return a small object; None if there is none. One that is replaced or deleted while it is read is read again."""
        for _ in range(_READS):
            with contextlib.suppress(ChangedError):
                info = self.head(name)
                return None if info is None else self._bytes(info)
        with reading_errors():
            info = self.head(name)
            return None if info is None else self._bytes(info)

    def _bytes(self, info: ObjectInfo) -> bytes:
        """Return the bytes of an object. Raises ChangedError when it is another by now."""
        if info.size_bytes > MOST_BYTES:
            raise DamageError(
                f"an object of {info.size_bytes:,} bytes; tokmill writes no such {info.name}",
                where=f"{self.url}/{info.name}",
                allowed=f"at most {MOST_BYTES:,} bytes",
                next_step="tokenize again with --fresh",
            )
        with contextlib.closing(self.stream(info)) as stream:
            try:
                return b"".join(iter(lambda: stream.read(1 << 20), b""))
            except DamagedInputError:
                with reading_errors():
                    raise

    def refuse_parts(self) -> None:
        """Raise UsageError where an output is being made in parts."""
        if self.head(PLAN_NAME) is not None:
            raise parts_error("at this prefix", f"{self.url}/{PLAN_NAME}", give_up(self.url))

    def refuse_inputs(self, inputs: Iterable[Input]) -> None:
        """Raise UsageError for an input that lies below the prefix."""
        for source in inputs:
            if source.path.startswith(f"{self.url}/"):
                raise UsageError(
                    "an input lies below the prefix of the output",
                    where=source.path,
                    allowed="an output apart from its inputs",
                    next_step="choose another --out, or name the inputs with a pattern",
                )

    def refuse_foreign(self, run: str) -> None:
        """Raise for an object that is named as those of an output and was not made by a run with this fingerprint.

        Raises:
            UsageError: tokmill did not make it.
            LockedError: another run made it.
        """
        # The first is enough: each is looked at again before it is replaced.
        found = next(self._heads(self.list()), None)
        if found is not None and found.mark.partition(" ")[0] != run:
            raise foreign_object(f"{self.url}/{found.name}", found)

    def _heads(self, there: Collection[str], but: Container[str] = ()) -> Iterator[ObjectInfo]:
        """Yield the objects that are named as those of an output, each asked for when it is reached.

        there: all names, those of outputs in prefixes below included. but: names to leave out.
        """
        for name in there:
            if name not in but and is_ours(name) and not _is_of_another_prefix(name, there):
                found = self.head(name)
                if found is not None:
                    yield found

    def check_overtaken(self, run: str) -> None:
        """Raise LockedError when another run, not one with this fingerprint, has completed its output here."""
        complete = self.manifest()
        if complete is not None and complete.fingerprint != run:
            raise self._came_between(MANIFEST_NAME)

    def retire(self, state: UploadState) -> None:
        """Delete the complete output that is to be replaced, its manifest first. Can be done again after a crash."""
        older = self.head(MANIFEST_NAME) if state.notes.is_fresh else None
        if older is not None and older.version == state.notes.replaces:
            listed = self._readable_manifest()
            state.change(retired=tuple(listed.files) if listed else ())
            self.delete([MANIFEST_NAME])
        elif older is not None:
            # Another run put it since --fresh was said. One of the same inputs and settings stays.
            found, content = self._readable_manifest(), state.notes.content
            if found is not None and content is not None and found.fingerprint != content.fingerprint():
                self.delete([MANIFEST_NAME])
        if state.notes.retired:
            self.delete(state.notes.retired)
        if state.notes.replaces:
            state.change(replaces="", retired=())

    def clear(self, names: Container[str], state: UploadState) -> None:
        """Delete what other runs left under names of token files, so that nobody reads it as part of this output.

        names: of this output's files. Raises as `refuse_foreign` for an object that nobody allowed to replace.
        """
        content = state.notes.content
        run = content.fingerprint() if content is not None else ""
        for found in self._heads(self.list(), names):
            if found.mark and (state.notes.is_fresh or found.mark.partition(" ")[0] == run):
                self.delete([found.name])
            elif not state.notes.is_fresh:
                raise foreign_object(f"{self.url}/{found.name}", found)

    def commit(self, manifest: Manifest, sent: Mapping[str, ObjectInfo]) -> Manifest:
        """Put the manifest; return it, or the one that another run of the same fingerprint put before.

        sent: what was sent, by name. Raises LockedError when another run came between.
        """
        self._check_sent(sent)
        data = encode_manifest(manifest, self.url)
        # Put by an attempt of our own that seemed to fail, perhaps.
        with contextlib.suppress(AlreadyExists):
            self.ask(lambda: self.store.put(MANIFEST_NAME, data, only_new=True))
        found = self.manifest()
        if found is None or found.fingerprint != manifest.fingerprint:
            raise self._came_between(MANIFEST_NAME)
        try:
            self._check_sent(sent, manifest.fingerprint)
        except LockedError:
            # Told --fresh, the other run looked for a manifest before this one was there. One that it has put since stays.
            now = self._readable_manifest()
            if now is not None and encode_manifest(now) == data:
                self.delete([MANIFEST_NAME])
            raise
        return found

    def _check_sent(self, sent: Mapping[str, ObjectInfo], run: str = "") -> None:
        """Raise LockedError when an object is not the one that was sent.

        run: with a fingerprint, also delete what other runs of tokmill sent meanwhile: they find the manifest from now on.
        """
        there = self.list()
        for name, info in sent.items():
            if name not in there or (there[name].size_bytes, there[name].version) != (info.size_bytes, info.version):
                raise self._came_between(name)
        for found in self._heads(there, sent) if run else ():
            if found.mark:
                self.delete([found.name])

    def tidy(self, names: Iterable[str]) -> None:
        """Abort uploads that runs that wrote these names left. Raises StorageError."""
        wanted = set(names)
        for name, upload in self.ask(self.store.list_multipart):
            if name in wanted or (is_ours(name) and "/" not in name):
                self.ask(lambda name=name, upload=upload: self.store.abort_multipart(name, upload))  # type: ignore[misc]

    def _readable_manifest(self) -> Manifest | None:
        """Return the manifest; None where there is none, or one that is damaged or another version's."""
        try:
            return self.manifest()
        except (DamageError, UsageError):
            return None

    def _came_between(self, name: str) -> LockedError:
        return LockedError(
            "another run wrote to this prefix at the same time; its output stands, or none",
            where=f"{self.url}/{name}",
            allowed="one run at a time",
            next_step=f"tokmill verify {shlex.quote(self.url)} says which; then choose another --out, or pass --fresh",
        )

    def ask(self, attempt: Callable[[], T]) -> T:
        """Return what a request brings, after retries. Raises StorageError when these end."""
        return retry(attempt, WRITING, self._not_asked)

    def _not_asked(self, how: str) -> StorageError:
        return StorageError(
            f"the store cannot be asked: {how}",
            where=self.url,
            allowed="a store that answers",
            next_step="check the URL, the connection and the store, and run the same command again",
        )


def give_up(url: str) -> str:
    """Return how a person gives up an output that is being made in parts at a prefix."""
    return f"give it up: aws s3 rm --recursive {url}/{STATE_NAME}/"


def is_ours(name: str) -> bool:
    """Return whether an object is named as tokmill names files of ids."""
    return name.startswith(_OF_A_SIDE) or _NAMED.fullmatch(name) is not None


def _is_of_another_prefix(name: str, there: Container[str]) -> bool:
    """Return whether an object lies in a prefix of its own, with an output: `train/` of a format may be none."""
    top, slash, rest = name.partition("/")
    return bool(slash) and ("/" in rest or is_ours(rest) or f"{top}/{MANIFEST_NAME}" in there)


@contextlib.contextmanager
def reading_errors() -> Iterator[None]:
    """Raise errors about inputs as errors about objects of an output."""
    try:
        yield
    except ChangedError as error:
        raise StorageError(
            "an object was replaced or deleted while it was read",
            where=error.where,
            allowed="an output that stays as it is",
            next_step="run the command again when nobody writes there",
        ) from None
    except DamagedInputError as error:
        raise StorageError(
            error.what, where=error.where, allowed=error.allowed, next_step="check the connection and the store, then run it again"
        ) from None
