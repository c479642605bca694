"""Local paths: a URL where only a local path will do is an error, not a directory of that name."""

from __future__ import annotations

import os

from tokmill.core.errors import UsageError
from tokmill.core.records import is_url


def path_text(given: object, option: str) -> str:
    """Return a path or URL as text. Raises UsageError for what is neither. option: for which it was given."""
    if not isinstance(given, (str, os.PathLike)):
        raise UsageError(f"{given!r} is not a path", where=option, allowed="a str or a path object", next_step="give a path")
    return str(given)


def local_path(given: str | os.PathLike[str]) -> str:
    """Return the path, absolute. Raises UsageError for a URL, and for what is no path."""
    path = path_text(given, "path")
    if is_url(path):
        # Only the scheme: what comes before the first slash may be a password.
        scheme = path.partition("://")[0].lower()
        raise UsageError(
            "this command works on local directories, not URLs",
            where=f"{scheme}://",
            allowed="a path; URLs are for the inputs and --out of tokenize, for finalize, verify and inspect",
            next_step="copy it first, all of it: aws s3 sync s3://bucket/prefix DIR; then tokmill verify DIR"
            if scheme == "s3"
            else "copy it to a directory first",
        )
    return os.path.abspath(path)
