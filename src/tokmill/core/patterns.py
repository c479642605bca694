"""Patterns that choose files: `*`, `?`, `[abc]`, `{a,b}` for alternatives. Of several any counts, and one after `!` takes away."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING

from tokmill.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ALLOWED_IN_PATTERN = "*, ?, [abc] and {a,b} in a pattern, several --glob, and '!PATTERN' for what to leave out"
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST_ALTERNATIVES = 1000


def patterns_of(glob: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the patterns of `--glob`, of which Python takes one or several."""
    return (glob,) if isinstance(glob, str) else tuple(glob or ())


def has_braces(pattern: str) -> bool:
    """Return whether a pattern has alternatives."""
    return _BRACES.search(pattern) is not None


def alternatives(pattern: str) -> list[str]:
    """Return the patterns without braces that one with them stands for. Raise UsageError for very many."""
    found = [pattern]
    while any(map(has_braces, found)):
        found = list(dict.fromkeys(each for one in found for each in _divided(one)))
        if len(found) > _MOST_ALTERNATIVES:
            raise UsageError(
                "the pattern has too many alternatives",
                where=pattern,
                allowed=f"at most {_MOST_ALTERNATIVES:,}",
                next_step="use * for some of them",
            )
    return found


def _divided(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if not braces:
        return [pattern]
    return [f"{pattern[: braces.start()]}{each}{pattern[braces.end() :]}" for each in braces[1].split(",")]


def matcher(patterns: Iterable[str], usual: Callable[[str], bool]) -> Callable[[str, str], bool]:
    """Return what says whether a file is wanted, by its name and its path relative to the directory that was named.

    A pattern with a slash is for the path, one without for the name; behind `!`, for the name of any directory above too.

    usual: chooses by name where no pattern does.
    """
    given = list(patterns)
    wanted, unwanted = _Any(each for each in given if each[:1] != "!"), _Any(each[1:] for each in given if each[:1] == "!")
    is_usual = all(each[:1] == "!" for each in given)

    def is_wanted(name: str, relative: str) -> bool:
        if not (usual(name) if is_usual else wanted.of_name(name) or wanted.of_path(relative)):
            return False
        return not (unwanted.of_path(relative) or any(map(unwanted.of_name, relative.split("/"))))

    return is_wanted


class _Any:
    """Whether any of some patterns matches."""

    def __init__(self, patterns: Iterable[str]) -> None:
        # `**/` is no directory, too.
        found = [each.removeprefix("./").replace("**/", "{,*/}") for each in patterns]
        plain = [each for one in found for each in alternatives(one + "*" if one.endswith("/") else one)]
        self.of_name = _compiled([each for each in plain if "/" not in each])
        self.of_path = _compiled([each for each in plain if "/" in each])


def _compiled(patterns: list[str]) -> Callable[[str], object]:
    return re.compile("|".join(map(translate, patterns))).match if patterns else lambda _: None
