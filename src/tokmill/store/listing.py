"""The objects that a URL stands for: one object, everything below a prefix, or what matches a pattern, in a fixed order.

As for local files: an object of exactly that name comes first, then a pattern, then a prefix; hidden names and unknown suffixes
below a prefix are skipped and counted; the order is that of the bytes of the names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import DamagedInputError, UsageError
from tokmill.core.patterns import ALLOWED_IN_PATTERN, alternatives, has_braces
from tokmill.core.text import counted
from tokmill.store.base import store_for
from tokmill.store.download import PLANNING, retry, unreadable
from tokmill.store.urls import path_of, redacted, scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.store.base import ObjectInfo, Store

T = TypeVar("T")

_MAGIC = re.compile(r"[*?[]")


def find_remote(url: str, wanted: Callable[[str, str], bool], passed: Callable[[str], None], *, has_glob: bool) -> list[ObjectInfo]:
    """Return the objects that a URL stands for, sorted.

    wanted: by name and path below the prefix. passed: is called with the path of what is skipped below a prefix.

    Raises UsageError, DamagedInputError.
    """
    store, name = store_for(url), redacted(url)

    if not path_of(url).endswith("/"):
        found = _ask(lambda: store.head(url), name)
        if found is not None:
            return [found]
    if scheme_of(url) in {"http", "https"}:
        raise _nothing(
            name,
            "there is no object here (HTTP 404)",
            "check the spelling; a web server has no directories and patterns: name each object",
        )
    if _MAGIC.search(url) or has_braces(url):
        return _matching(store, url, wanted, passed)
    chosen, n_passed = _below(store, url, wanted, passed)
    if not chosen and n_passed:
        next_step = f"check --glob: {ALLOWED_IN_PATTERN}" if has_glob else "pass --glob PATTERN to choose objects of other names"
        raise _nothing(name, f"no input lies below this prefix (passed over: {counted(n_passed, 'object')})", next_step)
    if not chosen:
        raise _nothing(name, "there is no such object or prefix", "check the spelling of bucket (or repository) and path")
    return chosen


def _matching(store: Store, pattern: str, wanted: Callable[[str, str], bool], passed: Callable[[str], None]) -> list[ObjectInfo]:
    name = redacted(pattern)
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise _nothing(name, "** stands with something else between two slashes", "write **/*.txt instead of **.txt")
    objects: list[ObjectInfo] = []
    directories: set[str] = set()
    for each in alternatives(pattern):
        found_objects, found_directories = _ask(lambda each=each: store.glob(each), name)  # type: ignore[misc]
        objects += found_objects
        directories.update(found_directories)
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
        chosen += _below(store, directory, wanted, passed)[0]
    if not chosen:
        raise _nothing(name, "no object matches the pattern", "check the pattern; ** matches prefixes of any depth")
    return _sorted(list({found.name: found for found in chosen}.values()))


def _below(
    store: Store, url: str, wanted: Callable[[str, str], bool], passed: Callable[[str], None]
) -> tuple[list[ObjectInfo], int]:
    """Return what is wanted below a prefix, and how much is not."""
    objects = _ask(lambda: store.list(url), redacted(url))
    top = url.partition("://")[2].rstrip("/") + "/"
    chosen, n_passed = [], 0
    for found in objects:
        relative = found.name.partition("://")[2].removeprefix(top)
        is_hidden = any(part.startswith(".") for part in relative.split("/"))
        if not is_hidden and wanted(relative.rpartition("/")[2], relative):
            chosen.append(found)
        else:
            passed(relative)
            n_passed += not is_hidden
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
