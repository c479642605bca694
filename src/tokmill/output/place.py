"""Where an output is made: in the named directory, or, for an object store, in a directory of our own from which it is sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

import xxhash

from tokmill.core.config import cache_directory
from tokmill.core.records import text_to_path
from tokmill.core.system.tree import TreePath
from tokmill.store import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Content, Job
    from tokmill.core.events import Finished
    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Observer
    from tokmill.core.system.tree import Directory

_SHOWN = 60
"""Characters of a URL in the name of a directory; what tells it from others follows."""


def stage_of(url: str, stage: str | None) -> TreePath:
    """Return the directory, one for each URL, in which an output for a store is made. stage: where; None: the usual place."""
    name = redacted(url).rstrip("/")
    shown = re.sub(r"[^A-Za-z0-9.]+", "-", name.partition("://")[2])[-_SHOWN:].strip("-.")
    return TreePath(Path(stage or cache_directory("stage")).absolute()) / f"{shown}-{xxhash.xxh3_64_hexdigest(name.encode())}"


def output_of(root: TreePath) -> TreePath:
    """Return the output directory inside a staged one."""
    return root / "output"


def output_directory(job: Job) -> Directory:
    """Return the directory in which the worker makes an output; in a stage, only what lies above was named."""
    path = Path(text_to_path(job.out))
    return TreePath(path.parents[1], path.parts[-2:]) if job.destination else path


class Place:
    """An output in a directory of this machine."""

    def __init__(self, out: str, url: str = "") -> None:
        """url: of an output in a store of which others send all files."""
        self.directory = out
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, _error: BaseException | None, _trace: object) -> None:
        """Release nothing."""

    @property
    def observers(self) -> Sequence[Observer]:
        """Return who must be told of the run's events: nobody else."""
        return ()

    def begin(self, content: Content, *, fresh: bool, stage_bytes: int = 0) -> Manifest | None:  # noqa: ARG002  the other place's
        """Return None: the run itself looks whether the output is complete."""
        return None

    def loosened(self, job: Job) -> Job:
        """Return the job as it is."""
        return job

    def drop(self) -> None:
        """Remove nothing: the output is where it belongs."""

    def publish(self, finished: Finished, observers: Sequence[Observer]) -> Finished:  # noqa: ARG002  the contract's
        """Return the result as it is: the run itself has published the output."""
        return finished
