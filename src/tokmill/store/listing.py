"""The objects that a URL stands for: one object, everything below a prefix, or what matches a pattern, in a fixed order.

As for local files: an object of exactly that name comes first, then a pattern, then a prefix; hidden names and unknown suffixes
below a prefix are skipped and counted; the order is that of the bytes of the names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import DamagedInputError, UsageError
from tokmill.core.text import counted
from tokmill.store.base import store_for
from tokmill.store.download import PLANNING, retry, unreadable
from tokmill.store.urls import path_of, redacted, scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.store.base import ObjectInfo, Store

T = TypeVar("T")

_MAGIC = re.compile(r"[*?[]")


def find_remote(url: str, wanted: Callable[[str, str], bool], *, has_glob: bool) -> tuple[list[ObjectInfo], int]:
    """Return the objects that a URL stands for, sorted, and how many below prefixes were skipped.

    wanted: by name and path below the prefix. Raises UsageError, DamagedInputError.
    """
    store, name = store_for(url), redacted(url)

    if not path_of(url).endswith("/"):
        found = _ask(lambda: store.head(url), name)
        if found is not None:
            return [found], 0
    if scheme_of(url) in {"http", "https"}:
        raise _nothing(
            name,
            "there is no object here (HTTP 404)",
            "check the spelling; a web server has no directories and patterns: name each object",
        )
    if _MAGIC.search(url):
        return _matching(store, url, wanted)
    chosen, n_passed = _below(store, url, wanted)
    if not chosen and n_passed:
        next_step = "check --glob" if has_glob else "pass --glob PATTERN to choose objects of other names"
        raise _nothing(name, f"no input lies below this prefix (passed over: {counted(n_passed, 'object')})", next_step)
    if not chosen:
        raise _nothing(name, "there is no such object or prefix", "check the spelling of bucket (or repository) and path")
    return chosen, n_passed


def _matching(store: Store, pattern: str, wanted: Callable[[str, str], bool]) -> tuple[list[ObjectInfo], int]:
    name, n_passed = redacted(pattern), 0
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise _nothing(name, "** stands with something else between two slashes", "write **/*.txt instead of **.txt")
    objects, directories = _ask(lambda: store.glob(pattern), name)
    # As in a shell, hidden names match when the pattern spells their dot.
    has_dot = "/." in pattern
    chosen = [found for found in objects if has_dot or "/." not in found.name]
    # `**` has listed what lies below already; another pattern means a directory as the shell would, and all below it.
    is_listed = "**" in pattern and not pattern.endswith("/")
    searched: tuple[str, ...] = ()
    for directory in () if is_listed else sorted(directories):
        if directory.startswith(searched) or ("/." in directory and not has_dot):
            continue
        searched = (directory,)
        below, n = _below(store, directory, wanted)
        chosen += below
        n_passed += n
    if not chosen:
        raise _nothing(name, "no object matches the pattern", "check the pattern; ** matches prefixes of any depth")
    return _sorted(chosen), n_passed


def _below(store: Store, url: str, wanted: Callable[[str, str], bool]) -> tuple[list[ObjectInfo], int]:
    """Return what is wanted below a prefix, and how much is not."""
    objects = _ask(lambda: store.list(url), redacted(url))
    top = url.partition("://")[2].rstrip("/") + "/"
    chosen, n_passed = [], 0
    for found in objects:
        relative = found.name.partition("://")[2].removeprefix(top)
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        if wanted(relative.rpartition("/")[2], relative):
            chosen.append(found)
        else:
            n_passed += 1
    return _sorted(chosen), n_passed


def _ask(attempt: Callable[[], T], name: str) -> T:
    try:
        return retry(attempt, PLANNING, unreadable(lambda: name, PLANNING))
    except DamagedInputError as error:
        error.resumes = False  # no run has begun
        raise


def _sorted(objects: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    return sorted(objects, key=lambda found: found.name.encode())


def _nothing(name: str, what: str, next_step: str) -> UsageError:
    return UsageError(what, where=name, allowed="URLs of objects, prefixes, patterns", next_step=next_step)
