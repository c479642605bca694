"""A tokenizer of a Hugging Face repository: its files in the shared cache, pinned to one commit.

A branch moves, so the commit it meant when the run was planned is stored. huggingface_hub downloads, honours HF_ENDPOINT, HF_HOME
and HF_HUB_OFFLINE, and uses its cache where there is no network.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError
from tokmill.core.extras import install_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 5.0
"""For the first answer of a hub that can be reached."""
_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def is_repo(name: str) -> bool:
    """Return whether a name has the form of a repository: `owner/name` or `owner/name@revision`."""
    match = _REPO.fullmatch(name)
    return bool(match) and not name.startswith((".", "/")) and ".." not in name


def fetch(name: str, file_name: str, also: str) -> tuple[str, str]:
    """Download `file_name` of a repository, and `also` if the repository has it.

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
        with _quiet():
            path = _download(huggingface_hub, match["repo"], match["revision"] or "main", file_name)
        commit = Path(path).parts[-2]
        try:
            with _quiet():
                _download(huggingface_hub, match["repo"], commit, also)
        except errors.LocalEntryNotFoundError:
            if not _is_known_to_be_absent(path, also):
                raise
        except errors.EntryNotFoundError:
            pass
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"{file_name} of the repository cannot be downloaded: {' '.join(str(error).split())}",
            where=name,
            allowed="owner/name or owner/name@revision, online or in the cache of huggingface_hub",
            next_step="check name, revision and network (HF_TOKEN for a private one), or give the path of its tokenizer.json",
        ) from error
    return path, f"{match['repo']}@{commit}"


def find(name: str, file_name: str) -> tuple[str, str]:
    """Return what `fetch` does, from the cache alone: nothing is asked of the network. Raises UsageError."""
    match = _REPO.fullmatch(name)
    assert match is not None
    path: object = None
    with contextlib.suppress(ImportError):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(match["repo"], file_name, revision=match["revision"] or "main")
    if not isinstance(path, str):
        raise UsageError(
            "the tokenizer is not on this machine; only a manifest names it, so the network is not asked for it",
            where=name,
            allowed="a tokenizer in the cache of huggingface_hub, or one that you name yourself",
            option="--tokenizer",
            suggested=name,
            next_step=f"if you trust that name: --tokenizer {name}, or --tokenizer FILE",
        )
    return path, f"{match['repo']}@{Path(path).parts[-2]}"


def _download(module: Any, repo: str, revision: str, file_name: str) -> str:
    """Return the path of a file in the cache. Raises what the module does: LocalEntryNotFoundError without file and hub."""
    with contextlib.suppress(module.errors.LocalEntryNotFoundError):
        # A commit never changes, so what is in the cache is right.
        if re.fullmatch("[0-9a-f]{40}", revision):
            return str(module.hf_hub_download(repo, file_name, revision=revision, local_files_only=True))
    fault = _unreachable(module, repo, revision, file_name)
    try:
        return str(module.hf_hub_download(repo, file_name, revision=revision, local_files_only=fault is not None))
    except module.errors.LocalEntryNotFoundError as error:
        if fault is None:
            raise
        raise module.errors.LocalEntryNotFoundError(f"it is not in the cache, and the hub cannot be reached: {fault}") from error


def _unreachable(module: Any, repo: str, revision: str, file_name: str) -> str | None:
    """Return why the hub cannot be asked, tried once, because huggingface_hub would try for half a minute; None if it answers."""
    try:
        module.get_hf_file_metadata(module.hf_hub_url(repo, file_name, revision=revision), timeout=_TIMEOUT_S)
    except (module.errors.HfHubHTTPError, module.errors.OfflineModeIsEnabled):
        # It answered, or is not to be asked: either way no time is lost.
        return None
    except Exception as error:  # noqa: BLE001  of an HTTP library that is another from version to version
        return str(error) or type(error).__name__
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what huggingface_hub logs of its attempts: the error says it."""
    import logging

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_known_to_be_absent(path: str, file_name: str) -> bool:
    """Return whether the cache notes that this commit has no such file."""
    snapshot = Path(path).parent
    return (snapshot.parent.parent / ".no_exist" / snapshot.name / file_name).is_file()
