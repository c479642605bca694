"""What of a URL may be shown, and the one redaction through which everything goes that is printed, raised or logged.

User and password stand before an `@`, signatures and tokens in the query. Both are hidden by rule, not by a list of names, whatever
else is wrong with the URL: a slash too few, no scheme, a slash inside the password. A text is `learned` where it enters (words of
the command line, variables, settings, arguments in Python); `shown` then hides it in every text that it became part of.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHANGING = re.compile(
    r"(?i)x-(amz|goog|oss|cos|ms)-.*|.*(signature|token|secret|passw|pwd|auth|credential|session|policy|expires|apikey|accesskey).*"
    r"|(.*[_-])?key|key-pair-id|pw|pass|user|sig|jwt|googleaccessid|s[vrtepi]|sip|spr|srt|ss|sk[a-z]+"
)
"""Parameters of signed URLs (S3, Google, Azure, CloudFront and others), tokens and passwords: they change while the object stays
the same, so they are no part of its name. All others tell objects apart, so the name has at least their digest."""
_PLAIN = re.compile(
    r"(?i)(id|file|page|part|n|i|index|offset|limit|format|alt|download|dl|raw|rev|revision|ref|version|split|config)="
    r"(?-i:[a-z]{1,6}|v?[0-9]{1,6}(\.[0-9]{1,3}){0,2})"
)
"""Parameters that are shown as they are."""
_DIGEST = re.compile(r"~[0-9a-f]{16}")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)")
_IN_TEXT = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*:/+[^\s"'<>`]+""")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]+)(:[0-9]{0,5})?")
_USER_FIRST = re.compile(r"(?://+)?[^\s/@]+:[^@]*@")
"""User and password in a word without a scheme: `user:password@host:/file`."""
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_SHORTEST = 6
"""A shorter secret is hidden only as part of its URL: it may be an ordinary word."""
_HIDDEN = "***"

_learned: dict[str, str] = {}
"""By what must not be shown, in every spelling in which it may occur: what is shown instead."""


def redacted(url: str) -> str:
    """Return a URL without user, password, signature and fragment: the name of an input. Other texts are returned as they are."""
    found = _url_in(url)
    if found is None:
        user = _USER_FIRST.match(url)
        return url[url.rfind("@") + 1 :] if user and not os.path.lexists(url) else url
    before, slashes, rest = url[: found.start()], found[2], url[found.end() :]
    scheme = found[1].lower() if slashes == "//" else found[1]
    is_web = scheme in {"http", "https"}
    rest = _without_user(rest, "[^?#]*" if is_web else ".*")
    path, mark, query = re.match(r"([^?]*)(\??)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if is_web:
        path, _, query = path.partition("#")[0], "", query if "#" not in path else ""
    # In the key of an object, the question mark is an ordinary character, unless it begins what looks like a query.
    elif "=" not in query and not _is_digest(query):
        return f"{before}{scheme}:{slashes}{rest}"
    kept = _query(query)
    return f"{before}{scheme}:{slashes}{path}" + (f"?{kept}" if kept or (mark and not is_web) else "")


def _url_in(text: str) -> re.Match[str] | None:
    """Return where a URL begins in a word; a path may follow a host and a colon too: `user:password@host:/file`."""
    found = _URL.search(text)
    return found if found and "@" not in text[: found.start()] else None


def _without_user(rest: str, path: str = ".*") -> str:
    """Return what follows `://` without user and password, which may hold what ends a host elsewhere. path: pattern of one."""
    authority = re.match(r"[^/?#]*", rest)[0]  # type: ignore[index]
    user, at, host = authority.rpartition("@")
    if not _HOST.fullmatch(host):
        # No host has such a port: the password goes on after the slash.
        return rest[rest.rfind("@") + 1 :]
    after = rest[len(user + at) :]
    hidden, more, _ = re.match(path, after, re.DOTALL)[0].rpartition("@")  # type: ignore[index]
    if ":" in user and more:
        # Either the password or the path has an `@` and a slash.
        return f"{_digest(hidden)}/{after[len(hidden) + 1 :]}"
    return after


def _query(query: str) -> str:
    """Return what is shown of a query: parameters that are plain, and a digest of the others that do not change."""
    if _is_digest(query.rpartition("&")[2]):
        return query
    parameters = query.partition("#")[0].split("&")
    lasting = [each for each in parameters if each and not _CHANGING.fullmatch(unquote(each.partition("=")[0]))]
    plain = [each for each in lasting if _PLAIN.fullmatch(each)]
    others = [each for each in lasting if each not in plain]
    return "&".join([*plain, *([_digest("&".join(others))] if others else [])])


def _digest(text: str) -> str:
    import xxhash

    return f"~{xxhash.xxh3_64_hexdigest(text.encode('utf-8', 'surrogateescape'))}"


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def has_credentials(url: str) -> bool:
    """Return whether a user or a password stands before the host."""
    rest = url.partition("://")[2]
    return _without_user(rest) != rest


def mistaken_url(text: str) -> str | None:
    """Return what was meant by a path that looks like a URL with a slash too few, or without its scheme; None if it does not.

    A path that exists is one, and so is what lies in a directory of such a name.
    """
    if os.path.lexists(text) or (os.path.lexists(text.partition("/")[0]) and redacted(text) == text):
        return None
    if _ONE_SLASH.match(text):
        return redacted(text.replace(":/", "://", 1))
    return f"https://{redacted(text).replace(':/', '/', 1)}" if _USER_FIRST.match(text) and not _url_in(text) else None


def learn(texts: Iterable[object]) -> None:
    """Remember what must not be shown of texts that enter the program, so that `shown` finds it in others."""
    for text in texts:
        if not isinstance(text, str) or (":" not in text and "?" not in text):
            continue
        name = redacted(text)
        if name != text:
            _learned.update(dict.fromkeys(_spellings(text), name))
            for part in _hidden_parts(text):
                for spelling in _spellings(part):
                    _learned.setdefault(spelling, _HIDDEN)


def _hidden_parts(text: str) -> Iterator[str]:
    """Yield user, password and values of a query that are long enough to be known again."""
    rest = text[found.end() :] if (found := _url_in(text)) else text
    query = rest.partition("?")[2] if found else ""
    user = rest[: rest.rfind("@")] if "@" in rest and (not found or has_credentials(f"x://{rest}")) else ""
    password = user.partition(":")[2]
    fragment = rest.partition("#")[2] if found and found[1].lower() in {"http", "https"} else ""
    values = [each.partition("=")[2] or each for each in query.split("&") if not _PLAIN.fullmatch(each)]
    yield from (part for part in (user, password, fragment, *values) if len(part) >= _SHORTEST)


def _spellings(text: str) -> set[str]:
    """Return the text as it stands in a path, in quotes of Python and of a shell, and on a terminal."""
    from tokmill.core.text import printable_line

    decoded = unquote(text)
    return {text, decoded, repr(text)[1:-1], text.replace("%", "%25"), printable_line(text), text.replace("'", "'\"'\"'")}


def shown(text: str, *, is_ours: bool = True) -> str:
    """Return a text with nothing in it that must not be shown.

    is_ours: False for text that may hold a document, in which URLs that nobody gave to tokmill stay as they are.
    """
    if _learned and any(each in text for each in _learned):
        # The longest first: one may be part of another.
        for each in sorted(_learned, key=len, reverse=True):
            text = text.replace(each, _learned[each])
    return _IN_TEXT.sub(_shown_url, text) if is_ours and ":/" in text else text


def _shown_url(match: re.Match[str]) -> str:
    url = match[0].rstrip(".,:;)]}")
    return redacted(url) + match[0][len(url) :]


def shown_in(value: Any, *, is_ours: bool = True) -> Any:
    """Return plain data of dicts, lists and texts with every text as `shown`."""
    if isinstance(value, str):
        return shown(value, is_ours=is_ours)
    if isinstance(value, dict):
        return {shown_in(key, is_ours=is_ours): shown_in(each, is_ours=is_ours) for key, each in value.items()}
    return [shown_in(each, is_ours=is_ours) for each in value] if isinstance(value, list | tuple) else value
