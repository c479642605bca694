"""A prefix of an object store whose output is made in parts: what all must agree in, and which parts are there.

Whoever comes first claims the prefix as a single run would, in the name of the whole, and then puts the plan, `.tokmill/plan`, both
on condition that there is none. Each part is an output of its own, below `.tokmill/parts/NNNNN/`, with a claim and a manifest, made
in a staged directory like any other; nothing is shared but the store.

The hard one is who comes late: a part that was made twice, on two machines, may be completed there when the whole is put together
and its parts are gone. It looks whether the whole is there, behind its own manifest, and takes itself away.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tokmill.core.errors import DamageError, LockedError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME
from tokmill.output.config_diff import changed_parts_error, is_only_more_lenient
from tokmill.output.journal import Header, decode_header, encode_header
from tokmill.output.parts import n_parts
from tokmill.output.prefix import CLAIM_NAME, PLAN_NAME, Claim, Prefix, give_up, is_ours
from tokmill.output.state_dir import PARTS, STATE_NAME
from tokmill.store import WRITING, AlreadyExists, not_written, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.store import ObjectInfo

T = TypeVar("T")

_PARTS_NAME = f"{STATE_NAME}/{PARTS}/"
_CLAIMANT = "the parts of "
_AT_ONCE = 8
"""Objects that are taken away: each waits for an answer."""


def part_name(index: int, name: str) -> str:
    """The object `name` of a part, below the prefix of the whole."""
    return f"{_PARTS_NAME}{index:05}/{name}"


class RemoteParts:
    """The prefix. Whatever it asks of the store, it asks with patience; raises StorageError when that ends."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet. Raises UsageError for a store that cannot take an output."""
        self.prefix = Prefix(url)
        self.url = self.prefix.url

    def plan(self) -> Header | None:
        """What is being made in parts here; None where nothing is. Raises DamageError, UsageError."""
        data = self.prefix.whole(PLAN_NAME)
        return None if data is None else decode_header(data, f"{self.url}/{PLAN_NAME}")

    def complete(self, fingerprint: str) -> Manifest | None:
        """The manifest of the whole, where it is put together. Raises DamageError, UsageError."""
        manifest = self.prefix.manifest()
        return manifest if manifest is not None and manifest.fingerprint == fingerprint else None

    def agree(self, whole: Content, version: str) -> Manifest | None:
        """Take part in making an output; its manifest where it is complete.

        Raises ChangedError where something else is made or stands there, LockedError where a run in one piece is writing or was
        interrupted, UsageError for objects that tokmill did not make.
        """
        fingerprint = whole.fingerprint()
        self.prefix.refuse_inputs(whole.inputs)
        complete = self.prefix.manifest()
        if complete is not None:
            if complete.fingerprint != fingerprint:
                raise changed_parts_error(
                    complete.content, whole, self.url, or_else="remove what is below it first", is_complete=True
                )
            return complete
        is_new = self._is_new(whole, version)
        with contextlib.suppress(AlreadyExists):
            self._ask(lambda: self.prefix.store.put(CLAIM_NAME, _claim(fingerprint), only_new=True))
        self.check_claim(fingerprint)
        if is_new:
            self.prefix.refuse_strangers(fingerprint)
        with contextlib.suppress(AlreadyExists):
            self._put_plan(whole, version, only_new=True)
        self._is_new(whole, version)
        return None

    def check_claim(self, fingerprint: str) -> None:
        """Raises LockedError when the prefix was claimed for something else."""
        found = self.prefix.claimed()
        if found is not None and found.fingerprint != fingerprint:
            plan = self.plan() if found.owner.startswith(_CLAIMANT) else None
            if plan is not None and plan.fingerprint == fingerprint:
                # Of the plan before it became more lenient.
                self._ask(lambda: self.prefix.store.put(CLAIM_NAME, _claim(fingerprint)))
                return
            raise LockedError(
                "another run, of other inputs or settings or in one piece, is writing to this prefix, or was interrupted",
                where=self.url,
                allowed="the parts of one output at a time",
                next_step=f"wait for it to end, or choose another --out; if it will not come back, {give_up(self.url)}",
            )

    def parts(self) -> dict[str, ObjectInfo]:
        """All objects of parts, by name."""
        return {name: stored for name, stored in self.prefix.list().items() if name.startswith(_PARTS_NAME)}

    def remove_parts(self, fingerprint: str | None) -> None:
        """Take away what there is of the parts, what was begun, the claim, and then the plan; can be done again after a crash.

        fingerprint: of the whole, whose claim alone goes; None: whoever's is there.
        """
        self._remove(_PARTS_NAME)
        claim = self.prefix.claimed()
        if claim is not None and fingerprint in (None, claim.fingerprint):
            self._ask(lambda: self.prefix.store.delete([CLAIM_NAME]))
        self._ask(lambda: self.prefix.store.delete([PLAN_NAME]))

    def discard(self) -> None:
        """Begin again: away with parts that are not put together. Raises UsageError for an output that is complete."""
        if self.prefix.head(MANIFEST_NAME) is not None:
            raise self.is_complete_error()
        if self.prefix.head(PLAN_NAME) is not None:
            self._remove_copies()
            self.remove_parts(None)

    def is_complete_error(self) -> UsageError:
        """The error for --fresh where nothing is to be made."""
        return UsageError(
            "the output is complete; parts do not take the place of what stands there",
            where=self.url,
            allowed="--fresh where an output is being made",
            next_step="choose another --out, or remove it first",
        )

    def leave(self, index: int, fingerprint: str) -> Manifest | None:
        """What a part that is complete does last: where the whole is complete, too, it takes itself away. Returns the whole's."""
        complete = self.complete(fingerprint)
        if complete is not None:
            self._remove(part_name(index, ""))
        return complete

    def _is_new(self, whole: Content, version: str) -> bool:
        """Whether nothing is being made in parts here. Raises ChangedError where something else is, unless that is the same and
        lets fewer bad records pass: then this takes the plan's place.
        """
        plan = self.plan()
        if plan is not None and plan.fingerprint != whole.fingerprint() and is_only_more_lenient(plan.content, whole):
            self._remove_copies()
            self._put_plan(whole, version, only_new=False)
            plan = self.plan()
        if plan is not None and plan.fingerprint != whole.fingerprint():
            raise changed_parts_error(plan.content, whole, self.url, or_else=give_up(self.url))
        return plan is None

    def _put_plan(self, whole: Content, version: str, *, only_new: bool) -> None:
        data = encode_header(Header.of(whole, version))
        self._ask(lambda: self.prefix.store.put(PLAN_NAME, data, only_new=only_new))

    def _remove_copies(self) -> None:
        """Take away what an interrupted finalize has copied of the parts of this plan."""
        try:
            plan = self.plan()
        except DamageError:
            # Nothing says which those are; who comes is told of them.
            return
        for name in [name for name in self.prefix.list() if _is_of_whole(name)]:
            found = self.prefix.head(name)
            if found is not None and plan is not None and found.mark.partition(" ")[0] == plan.fingerprint:
                self._delete([name])

    def _remove(self, above: str) -> None:
        """Take away every object below, manifests first, and what was begun, also under names of the whole."""
        for name, upload in self._ask(self.prefix.store.list_multipart):
            if name.startswith(above) or (above == _PARTS_NAME and _is_of_whole(name)):
                self._ask(lambda name=name, upload=upload: self.prefix.store.abort_multipart(name, upload))  # type: ignore[misc]
        names = [name for name in self.prefix.list() if name.startswith(above)]
        manifests = [name for name in names if name.endswith(f"/{MANIFEST_NAME}")]
        self._delete(manifests)
        self._delete(set(names) - set(manifests))

    def _delete(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, "remove") as pool:
            for _ in pool.map(lambda name: self._ask(lambda: self.prefix.store.delete([name])), names):
                pass

    def _ask(self, attempt: Callable[[], T]) -> T:
        return retry(attempt, WRITING, lambda how: not_written(how, self.url))


def _claim(fingerprint: str) -> bytes:
    return msgspec.json.encode(Claim(fingerprint=fingerprint, owner=_CLAIMANT + fingerprint))


def _is_of_whole(name: str) -> bool:
    return is_ours(name) or name == SKIPPED_NAME


def missing_parts(parts: Mapping[str, ObjectInfo], content: Content) -> tuple[list[int], set[int]]:
    """Numbers of the parts that are not complete, and of those that have anything there. content: of the whole."""
    missing = [i for i in range(n_parts(content)) if part_name(i, MANIFEST_NAME) not in parts]
    begun = {name.removeprefix(_PARTS_NAME).partition("/")[0] for name in parts}
    return missing, {i for i in missing if f"{i:05}" in begun}
