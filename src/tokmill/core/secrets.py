"""What of a URL may be shown, and the one redaction through which everything goes that is printed, raised or logged.

User and password stand before an `@`, signatures and tokens in the query. Both are hidden wherever the URL stands, also one with a
slash too few, without a scheme, or with a slash inside the password. Of the texts that enter (words of the command line, variables,
settings, arguments in Python), those that are URLs are learned. `shown` then hides them in every text that they became part of, and
on its own what is surely secret: passwords, and values of a query whose name says so. Other words stay as they are.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHANGING = re.compile(
    r"(?i)x-(amz|goog|oss|cos|ms)-.*|.*(signature|token|secret|passw|pwd|auth|credential|session|policy|expires|apikey|accesskey).*"
    r"|(.*[_-])?key|key-pair-id|pw|pass|user|sig|jwt|googleaccessid|s[vrtepi]|sip|spr|srt|ss|sk[a-z]+"
)
"""Parameters of signed URLs (S3, Google, Azure, CloudFront and others), tokens and passwords: they change while the object stays
the same, so they are no part of its name. All others tell objects apart, so the name has at least their digest."""
_SECRET = re.compile(
    r"(?i)x-(amz|goog|oss|cos|ms)-(?!algorithm|date|expires|signedheaders).*|(.*[_-])?(key|sig|auth|jwt|pass|pw)"
    r"|.*(signature|token|secret|passw(or)?d|pwd|credentials?|authorization|apikey|accesskey(id)?)|key-pair-id|googleaccessid"
)
"""Those of them that are secret on their own, too."""
_PLAIN = re.compile(
    r"(?i)(id|file|page|part|n|i|index|offset|limit|format|alt|download|dl|raw|rev|revision|ref|version|split|config)="
    r"(?-i:[a-z]{1,6}|v?[0-9]{1,6}(\.[0-9]{1,3}){0,2})"
)
"""Parameters that are shown as they are."""
_DIGEST = re.compile(r"~[0-9a-f]{16}")
_URL = re.compile(
    r"\s{0,9}(-[\w-]*=|-o(?=\w)|--)?"
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):(//+)"
    r"|((?i:https?|htt?ps?|s3[an]?|gs|gcs|hf))(?::/?|[^\w\s/]?//+)"
    r"|([A-Za-z][A-Za-z0-9+.-]+:/)"
    r"|(?=(?:(?i:https?)/|(?:[A-Za-z][^\s/@]*)?//+)?[^/@:]*:(?s:.*)@|\*\*\*@)"
    r"|(?=([^?/.:@][^?:@]*\?(?:[^#]*&)?(?i:x-(?:amz|goog|oss|cos|ms)-[\w-]+|sig|signature|\w*token)=)))"
)
"""How a word begins that is a URL, after the option it was typed with: a scheme; a known scheme with a slash too few, or without
its colon; any with one slash; user, password and host without a scheme, `user:password@host:/file`, or what was shown of them;
host, path and signature.

What exists under the very name of one of those without `://` is no URL. `12:30@gpu1` may be one, so a path of that name begins
with `./`."""
_IN_TEXT = re.compile(r"""(?:[A-Za-z][A-Za-z0-9+.-]*://|(?<![\w/+.-])[A-Za-z][A-Za-z0-9+.-]+:/)[^\s"'<>`]+""")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]+)(:[0-9]{1,5})?|arn(:[\w.-]*){4,}")
_ESCAPED = re.compile(r"(?i)[a-z][a-z0-9+.-]*%3a(%2f|/){2}")
"""How a URL begins that was escaped as a whole, as a browser or a list of links may hand it out."""
_SHORTEST = 6
"""A shorter secret is hidden only with what stands beside it in its URL: it may be an ordinary word."""
_LONG = 8
"""One as long as this is hidden inside a word too."""
_BEFORE, _AFTER = r"(?:(?<!\w)|(?!\w)|(?<=%[0-9A-Fa-f]{2})|(?<=\\[a-z]))", r"(?:(?!\w)|(?<!\w))"
"""Where a word may begin, also behind an escaped character, and end."""
_HIDDEN = "***"

_END = 3
_learned: dict[str, dict[str, str]] = {}
"""By what must not be shown, in every spelling in which it may occur: what is shown instead; grouped by its last characters, since
thousands of URLs may be signed."""


def redacted(url: str) -> str:
    """Return a URL without user, password, signature and fragment: the name of an input. Other texts are returned as they are."""
    found = _URL.match(url)
    if found is None:
        return url
    before, rest = url[: found.end()], url[found.end() :]
    if not found[2] and os.path.lexists(url):
        return url
    is_web = (found[2] or found[4] or "").lower() in {"http", "https"}
    if found[3] == "//":
        before = before.lower() if not found[1] else before[: found.end(1)] + before[found.end(1) :].lower()
    if found[2] or found[4]:
        rest = _without_user(rest, "[^?#]*" if is_web else ".*")
    elif "@" in rest and not found[6]:
        # Not cut off: what is shown would be another path.
        user, _, host = rest.rpartition("@")
        # After a question mark, it may be a signature that goes on.
        rest = _HIDDEN if "?" in user else f"{_HIDDEN}@{host}"
    path, mark, query = re.match(r"([^?]*)(\??)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if is_web:
        path, _, query = path.partition("#")[0], "", query if "#" not in path else ""
    # In the key of an object, the question mark is an ordinary character, unless it begins what looks like a query.
    elif "=" not in query and not _is_digest(query):
        return f"{before}{rest}"
    kept = _query(query)
    return f"{before}{path}" + (f"?{kept}" if kept or (mark and not is_web) else "")


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

    return f"~{xxhash.xxh3_64_hexdigest(text.encode('utf-8', 'surrogatepass'))}"


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def has_credentials(url: str) -> bool:
    """Return whether a user or a password stands before the host."""
    found = _URL.match(url)
    if found is None or found[6]:
        return False
    rest = url[found.end() :]
    return _without_user(rest) != rest if found[2] or found[4] else "@" in rest


def mistaken_url(text: str) -> str | None:
    """Return what was meant by a path that looks like a URL that is escaped, has a slash too few or no scheme; else None.

    Empty where what was meant would be shown with a password. A path that exists is one, and so is what lies in a directory of
    such a name.
    """
    if _ESCAPED.match(text) and not os.path.lexists(text):
        url = unquote(text)
        learn([url])
        # What else was escaped stays so where a URL needs it.
        return quote(url, safe="/:?#[]@!$&'()*+,;=%~") if redacted(url) == url else ""
    found = _URL.match(text)
    if found is None or found[1] or found[2] or os.path.lexists(text):
        return None
    name = redacted(text)
    if os.path.lexists(text.partition("/")[0]) and name == text:
        return None
    if found[4]:
        return f"{found[4]}://{name[found.end() :]}"
    return f"./{text}" if name == text and _HIDDEN not in text else ""


def learn(texts: Iterable[object]) -> None:
    """Remember what must not be shown of texts that enter the program and are URLs, so that `shown` finds it in others."""
    for text in texts:
        if isinstance(text, str) and (name := redacted(text)) != text:
            _keep(text, name)
            if text.startswith("-"):
                # The parser cuts a word that it takes for an option.
                _keep(text.partition("=")[0], name.partition("=")[0])
            for around, secret in _secrets(text):
                _keep(secret, _HIDDEN, *("", "") if len(secret) >= _SHORTEST else around)


def _keep(text: str, instead: str, before: str = "", after: str = "") -> None:
    whole, hidden = f"{before}{text}{after}", f"{before}{instead}{after}"
    # As it stands inside another URL, and on its own.
    for each in (quote(whole, safe="", errors="surrogatepass"), *(f"{before}{spelling}{after}" for spelling in _spellings(text))):
        _learned.setdefault(each[-_END:], {}).setdefault(each, hidden)


def _secrets(url: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield what stands before and after it, and what is secret on its own: password, or user without one; values of a query."""
    rest = url[found.end() :] if (found := _URL.match(url)) else url
    user = rest[: rest.rfind("@")] if has_credentials(url) else ""
    name, colon, password = user.partition(":")
    if secret := password if colon else name:
        yield (colon or "/", "@"), secret
    for parameter in re.split("[?#&]", rest)[1:]:
        name, equals, value = parameter.partition("=")
        if value and _SECRET.fullmatch(unquote(name)):
            yield (f"{name}{equals}", ""), value


def _spellings(text: str) -> set[str]:
    """Return the text as it stands in a path, in quotes of Python and of a shell, and on a terminal."""
    from tokmill.core.text import printable_line

    decoded = unquote(text)
    return {text, decoded, repr(text)[1:-1], text.replace("%", "%25"), printable_line(text), text.replace("'", "'\"'\"'")}


def shown(text: str, *, is_ours: bool = True) -> str:
    """Return a text with nothing in it that must not be shown.

    is_ours: False for text that may hold a document, in which URLs that nobody gave to tokmill stay as they are.
    """
    ends = {text[i : i + _END] for i in range(len(text) - _END + 1)} & _learned.keys() if _learned else ()
    # The longest first: one may be part of another. A short one is not found inside a word.
    for each in sorted((each for end in ends for each in _learned[end] if each in text), key=len, reverse=True):
        hidden = _learned[each[-_END:]][each]
        if len(each) >= _LONG:
            text = text.replace(each, hidden)
        else:
            text = re.sub(f"{_BEFORE}{re.escape(each)}{_AFTER}", hidden.replace("\\", r"\\"), text)
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
