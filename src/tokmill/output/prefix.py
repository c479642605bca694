"""A prefix of an object store that holds an output, or will: what is there, whose it is, and the moment at which it is complete.

The output is complete when `manifest.json` is there, which is put last and only where there is none. Before anything is sent, a run
leaves its claim, `.tokmill/claim.json`: another one, of other inputs or settings, is refused before it has tokenized for hours. Two
runs of the same inputs and settings make the same bytes and may share a claim; the first manifest stands.

The hard one is that a store has no lock that dies with its holder. A claim stays when its run does not come back, until somebody
says --fresh. So the claim is a courtesy, and what is safe does not rest on it: every object is made on condition that there is
none, and before the manifest is put, every object must still be the one that was sent.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tokmill.core.errors import ChangedError, DamagedInputError, DamageError, LockedError, StorageError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, PARTS_NAME, Manifest, decode_manifest, encode_manifest, unfinished_parts
from tokmill.core.output_spec import SIDES
from tokmill.core.records import Input
from tokmill.output.journal import decode_header
from tokmill.output.state_dir import STATE_NAME
from tokmill.store import WRITING, AlreadyExists, RemoteStream, objects_at, register_url, retry, stranger

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from tokmill.store import ObjectInfo, ObjectStore, UploadState

T = TypeVar("T")

CLAIM_NAME = f"{STATE_NAME}/claim.json"
PLAN_NAME = f"{STATE_NAME}/plan"
"""Of an output that is made in parts; see `output/remote_parts.py`."""
_MOST_MANIFEST_BYTES = 1 << 30
_LOOKS = 8
"""At a small object that was another one whenever it was read."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who is about to write."""

    fingerprint: str
    """Of what is made."""
    owner: str
    """See `ledger.Notes`."""


class Prefix:
    """One prefix. Whatever it asks of the store, it asks with patience; raises StorageError when that ends."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet. Raises UsageError for a store that cannot take an output."""
        self.store: ObjectStore = objects_at(url)
        self.url = self.store.url
        self._typed = url.rstrip("/")

    def head(self, name: str) -> ObjectInfo | None:
        """One object; None if there is none."""
        return self._ask(lambda: self.store.head(name))

    def list(self) -> dict[str, ObjectInfo]:
        """All objects, by name."""
        return {stored.name: stored for stored in self._ask(self.store.list)}

    def manifest(self) -> Manifest | None:
        """That of the complete output here; None if there is none. Raises DamageError, UsageError (a newer tokmill's)."""
        data = self.whole(MANIFEST_NAME)
        return None if data is None else decode_manifest(data, f"{self.url}/{MANIFEST_NAME}")

    def complete_manifest(self) -> Manifest:
        """As `manifest`. Raises UsageError where there is none."""
        manifest = self.manifest()
        if manifest is None:
            # Of one object, a store does not say whether it has the bucket.
            there = self.list()
            self._refuse_unfinished_parts(there)
            is_begun = CLAIM_NAME in there
            raise UsageError(
                "no complete tokmill output here" + (", but a run that is under way or was interrupted" if is_begun else ""),
                where=self.url,
                allowed=f"a prefix with {MANIFEST_NAME}",
                next_step="give the URL that was --out, or run the tokmill tokenize command again: an interrupted run resumes",
            )
        return manifest

    def _refuse_unfinished_parts(self, there: Container[str]) -> None:
        """Raises UsageError for an output whose parts were not put together."""
        data = self.whole(PLAN_NAME) if PLAN_NAME in there else None
        plan = decode_header(data, f"{self.url}/{PLAN_NAME}") if data is not None else None
        if plan is not None and isinstance(plan.content.n_parts, int):
            n_parts = plan.content.n_parts
            complete = {i for i in range(n_parts) if f"{PARTS_NAME}/{i:05}/{MANIFEST_NAME}" in there}
            raise unfinished_parts(self.url, n_parts, complete)

    def stream(self, stored: ObjectInfo) -> RemoteStream:
        """An object from front to back, pinned to the version that was seen. The caller closes it and reads in `reading_errors`."""
        return RemoteStream(self.source(stored))

    def source(self, stored: ObjectInfo) -> Input:
        """An object as something to read."""
        name = register_url(f"{self._typed}/{stored.name}")
        return Input(path=name, format="ids", compression="none", size_bytes=stored.size_bytes, version=stored.version)

    def claim(self, claim: Claim, *, take: bool) -> None:
        """Leave a claim; take: whoever's is there. Raises LockedError for one of another run."""
        data = msgspec.json.encode(claim)
        if not take:
            # A store that knows no conditions and does not say so would replace it.
            self.check_claim(claim)
        try:
            self._ask(lambda: self.store.put(CLAIM_NAME, data, only_new=not take))
        except AlreadyExists:
            found = self.claimed()
            if found is not None and found.owner == claim.owner:
                self._ask(lambda: self.store.put(CLAIM_NAME, data))
                return
        self.check_claim(claim)

    def check_claim(self, claim: Claim) -> None:
        """Raises LockedError when a run of other inputs or settings has claimed the prefix."""
        self._refuse(self.claimed(), claim)

    def check_held(self, claim: Claim) -> None:
        """As `check_claim`, also when such a run has completed its output meanwhile."""
        found = self.claimed()
        self._refuse(found, claim)
        complete = self.manifest() if found is None else None
        if complete is not None and complete.fingerprint != claim.fingerprint:
            raise self._came_between(MANIFEST_NAME)

    def _refuse(self, found: Claim | None, claim: Claim) -> None:
        if found is not None and found.fingerprint != claim.fingerprint:
            raise LockedError(
                "another run, of other inputs or settings, is writing to this prefix, or was interrupted",
                where=self.url,
                allowed="one run at a time",
                next_step="wait for it to end, or choose another --out; if it will not come back, --fresh takes its place",
            )

    def release(self, claim: Claim, *, is_complete: bool = True) -> None:
        """Take the claim away, if it is this one's; of a run that came to nothing, others may share it."""
        found = self.claimed()
        if found is not None and found.fingerprint == claim.fingerprint and (is_complete or found.owner == claim.owner):
            self._ask(lambda: self.store.delete([CLAIM_NAME]))

    def refuse_parts(self) -> None:
        """Raises UsageError where an output is being made in parts."""
        if self.head(PLAN_NAME) is not None:
            raise UsageError(
                "an output is being made in parts at this prefix",
                where=f"{self.url}/{PLAN_NAME}",
                allowed="the commands that make its parts, and tokmill finalize when all are there",
                next_step=f"go on with those, choose another --out, or {give_up(self.url)}",
            )

    def refuse_inputs(self, inputs: Iterable[Input]) -> None:
        """Raises UsageError for an input that lies below the prefix."""
        for source in inputs:
            if source.path.startswith(f"{self.url}/"):
                raise UsageError(
                    "an input lies below the prefix of the output",
                    where=source.path,
                    allowed="an output apart from its inputs",
                    next_step="choose another --out, or name the inputs with a pattern",
                )

    def refuse_strangers(self, run: str) -> None:
        """Raises UsageError for an object that is named as those of an output and that no run with this fingerprint has made."""
        for name in self.list():
            if is_ours(name):
                found = self.head(name)
                if found is not None and found.mark.partition(" ")[0] != run:
                    raise stranger(f"{self.url}/{name}")
                # All of them would be asked for one by one; each is looked at again before it is replaced.
                return

    def retire(self, ledger: UploadState) -> None:
        """Take away the complete output that is to be replaced: its manifest first. Can be done again after a crash."""
        notes = ledger.notes
        older = self.head(MANIFEST_NAME) if notes.is_fresh else None
        if older is not None and older.version == notes.replaces:
            ledger.change(retired=tuple(self._listed_files()))
            self._ask(lambda: self.store.delete([MANIFEST_NAME]))
        elif older is not None:
            self._retire_overtaken(ledger)
        if ledger.notes.retired:
            self._ask(lambda: self.store.delete(ledger.notes.retired))
        if notes.replaces:
            ledger.change(replaces="", retired=())

    def clear(self, names: Container[str], ledger: UploadState) -> None:
        """Take away what other runs left that are named as files of ids, so that nobody reads them as files of this output.

        names: of its files. Raises UsageError for an object that nobody said may be replaced.
        """
        there = self.list()
        for name in there:
            if name in names or not is_ours(name) or _is_of_another_prefix(name, there):
                continue
            found = self.head(name)
            content = ledger.notes.content
            is_this_run = found is not None and content is not None and found.mark.partition(" ")[0] == content.fingerprint()
            if found is not None and (is_this_run or (found.mark and ledger.notes.is_fresh)):
                self._ask(lambda name=name: self.store.delete([name]))  # type: ignore[misc]
            elif found is not None and not ledger.notes.is_fresh:
                raise stranger(f"{self.url}/{name}")

    def commit(self, manifest: Manifest, sent: Mapping[str, ObjectInfo], claim: Claim) -> Manifest:
        """Put the manifest; returns it, or the one that another run of the same fingerprint put before.

        sent: what was sent, by name. Raises LockedError when another run came between.
        """
        there = self.list()
        for name, stored in sent.items():
            if name not in there or (there[name].size_bytes, there[name].version) != (stored.size_bytes, stored.version):
                raise self._came_between(name)
        self.check_claim(claim)
        data = encode_manifest(manifest)
        with contextlib.suppress(AlreadyExists):
            self._ask(lambda: self.store.put(MANIFEST_NAME, data, only_new=True))
        # Put by an attempt of our own that seemed to fail, perhaps.
        found = self.manifest()
        if found is None or found.fingerprint != manifest.fingerprint:
            raise self._came_between(MANIFEST_NAME)
        try:
            self.check_claim(claim)
        except LockedError:
            # Its claim came between the look for one and the manifest; it may not have seen the manifest, and replaces the files.
            self._ask(lambda: self.store.delete([MANIFEST_NAME]))
            raise
        return found

    def tidy(self, names: Iterable[str], claim: Claim) -> None:
        """Let go of what is left of runs that wrote these names: objects that were begun, the claim. Raises StorageError."""
        found = self.claimed()
        if found is not None and found.fingerprint != claim.fingerprint:
            # Another run, which is about to replace this output, may have begun them.
            return
        wanted = set(names)
        try:
            for name, upload in self._ask(self.store.list_multipart):
                if name in wanted or (is_ours(name) and "/" not in name):
                    self._ask(lambda name=name, upload=upload: self.store.abort_multipart(name, upload))  # type: ignore[misc]
        finally:
            self.release(claim)

    def _retire_overtaken(self, ledger: UploadState) -> None:
        """Take away a manifest that a run put which this one's claim was to end, but not one of the same inputs and settings."""
        try:
            found = self.manifest()
        except (DamageError, UsageError):
            return
        content = ledger.notes.content
        if found is not None and content is not None and found.fingerprint != content.fingerprint():
            self._ask(lambda: self.store.delete([MANIFEST_NAME]))

    def _listed_files(self) -> Sequence[str]:
        """What a manifest lists that is to go; nothing where it is damaged, or a newer tokmill's."""
        try:
            manifest = self.manifest()
        except (DamageError, UsageError):
            return []
        return list(manifest.files) if manifest else []

    def claimed(self) -> Claim | None:
        """Who has claimed the prefix; None: nobody. Raises StorageError."""
        data = self.whole(CLAIM_NAME)
        try:
            return None if data is None else msgspec.json.decode(data, type=Claim)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Claim(fingerprint="", owner="")

    def whole(self, name: str) -> bytes | None:
        """A small object. One that is replaced or taken away while it is read is looked at again: claims come and go."""
        for is_last in (*[False] * _LOOKS, True):
            stored = self.head(name)
            if stored is None:
                return None
            try:
                return self._bytes(stored)
            except ChangedError:
                if is_last:
                    with reading_errors():
                        raise
        raise AssertionError

    def _bytes(self, stored: ObjectInfo) -> bytes:
        """Raises ChangedError when it is no longer that object."""
        if stored.size_bytes > _MOST_MANIFEST_BYTES:
            raise DamageError(
                f"an object of {stored.size_bytes:,} bytes; tokmill writes no such {stored.name}",
                where=f"{self.url}/{stored.name}",
                allowed=f"at most {_MOST_MANIFEST_BYTES:,} bytes",
                next_step="tokenize again with --fresh",
            )
        stream = self.stream(stored)
        parts: list[bytes] = []
        try:
            while part := stream.read(1 << 20):
                parts.append(part)
        except DamagedInputError:
            with reading_errors():
                raise
        finally:
            stream.close()
        return b"".join(parts)

    def _came_between(self, name: str) -> LockedError:
        return LockedError(
            "another run wrote to this prefix at the same time; its output stands, or none",
            where=f"{self.url}/{name}",
            allowed="one run at a time",
            next_step=f"tokmill verify {self.url} says which; then choose another --out, or pass --fresh",
        )

    def _ask(self, attempt: Callable[[], T]) -> T:
        return retry(attempt, WRITING, self._not_asked)

    def _not_asked(self, how: str) -> StorageError:
        return StorageError(
            f"the store cannot be asked: {how}",
            where=self.url,
            allowed="a store that answers",
            next_step="check the URL, the connection and the store, and run the same command again",
        )


def give_up(url: str) -> str:
    """How a person gives up what is being made in parts at a prefix."""
    return f"give it up: aws s3 rm --recursive {url}/{STATE_NAME}/"


def is_ours(name: str) -> bool:
    """Whether an object is named as tokmill names files of ids."""
    return name.startswith(tuple(f"{side}{mark}" for side in SIDES for mark in "._/"))


def _is_of_another_prefix(name: str, there: Container[str]) -> bool:
    """Whether an object lies in a prefix of its own, with an output complete or begun: `train/` of a format may be none."""
    top, slash, rest = name.partition("/")
    return bool(slash) and ("/" in rest or f"{top}/{MANIFEST_NAME}" in there or f"{top}/{CLAIM_NAME}" in there)


@contextlib.contextmanager
def reading_errors() -> Iterator[None]:
    """Raise what is said of inputs, for objects of an output."""
    try:
        yield
    except ChangedError as error:
        raise StorageError(
            "an object was replaced or taken away while it was read",
            where=error.where,
            allowed="an output that stays as it is",
            next_step="run the command again when nobody writes there",
        ) from None
    except DamagedInputError as error:
        raise StorageError(
            error.what, where=error.where, allowed=error.allowed, next_step="check the connection and the store, then run it again"
        ) from None
