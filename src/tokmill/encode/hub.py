"""A tokenizer of a Hugging Face repository: its files in the cache that all programs share, pinned to one commit.

A branch moves, so what is stored is the commit that it meant when the run was planned. huggingface_hub fetches, honours
HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, and serves from its cache where there is no network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokmill.errors import UsageError
from tokmill.extras import install_hint

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def is_repo(name: str) -> bool:
    """Whether a name has the form of a repository's: `owner/name` or `owner/name@revision`."""
    match = _REPO.fullmatch(name)
    return bool(match) and not name.startswith((".", "/")) and ".." not in name


def fetch(name: str, file_name: str, also: str) -> tuple[str, str]:
    """Have `file_name` of a repository here, and `also` beside it if the repository has that.

    Returns the path of the file, and the name with the commit: `owner/name@<40 hex digits>`. Raises UsageError.
    """
    match = _REPO.fullmatch(name)
    assert match is not None
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UsageError(
            "a tokenizer of a Hugging Face repository needs huggingface_hub, which is not installed",
            where=name,
            allowed="an installation with the extra hf",
            next_step=f"{install_hint('hf')}, or give the path of its tokenizer.json",
        ) from None
    try:
        path = _download(huggingface_hub, match["repo"], match["revision"] or "main", file_name)
        commit = Path(path).parts[-2]
        try:
            _download(huggingface_hub, match["repo"], commit, also)
        except errors.LocalEntryNotFoundError:
            if not _is_known_to_be_absent(path, also):
                raise
        except errors.EntryNotFoundError:
            pass
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"{file_name} of the repository cannot be had: {' '.join(str(error).split())}",
            where=name,
            allowed="owner/name or owner/name@revision, within reach or in the cache of huggingface_hub",
            next_step="check name, revision and network (HF_TOKEN for a private one), or give the path of its tokenizer.json",
        ) from error
    return path, f"{match['repo']}@{commit}"


def _download(module: Any, repo: str, revision: str, file_name: str) -> str:
    path: str = module.hf_hub_download(repo, file_name, revision=revision)
    return path


def _is_known_to_be_absent(path: str, file_name: str) -> bool:
    """Whether the cache notes that this commit has no such file."""
    snapshot = Path(path).parent
    return (snapshot.parent.parent / ".no_exist" / snapshot.name / file_name).is_file()
