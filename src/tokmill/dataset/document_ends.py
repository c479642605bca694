"""Where the documents of a side end: a list that is made in one pass over the ids, and kept in the cache of the user.

Eight bytes a document are too much for the memory of every process that trains, so the list is a file, and mapped. It belongs to
one output exactly: its name is made of the checksum of the manifest, of a bare file of what tells it from others.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np

from tokmill.core.config import cache_directory
from tokmill.core.errors import StorageError
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.tree import TreePath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

Ends: TypeAlias = "NDArray[np.int64]"


def kept_ends(name: str, n_tokens: int, find: Callable[[], Iterable[Ends]]) -> Ends:
    """Return the list of this name, made if it is not there: int64, shape (n_documents,), read-only, a map.

    n_tokens: the last of the list. find: yields it, some at a time. Raises StorageError, DiskFullError.
    """
    path = TreePath(cache_directory("documents")) / f"{name}.ends"
    if path.is_file():
        with open(path.open(), "rb") as file:
            ends = _mapped(file)
        if len(ends) and ends[-1] == n_tokens:
            return ends
    try:
        return _keep(path, find())
    except StorageError:
        # Nothing can be kept there, as in some containers: each process then has its own list, which goes with it.
        with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
            return _written(file, find())


def _keep(path: TreePath, found: Iterable[Ends]) -> Ends:
    """Write a list; processes that do so at the same time do not see each other's. Raises StorageError, DiskFullError."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with storage_errors(path):
        durable.make_directory(path.parent)
        new.unlink(missing_ok=True)
        try:
            with open(durable.open_growing(new), "w+b") as file:
                ends = _written(file, found)
            durable.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
    return ends


def _written(file: IO[bytes], found: Iterable[Ends]) -> Ends:
    for some in found:
        durable.write_all(file.fileno(), some.astype("<i8").data)
    durable.sync_file(file.fileno())
    return _mapped(file)


def _mapped(file: IO[bytes]) -> Ends:
    n = os.fstat(file.fileno()).st_size // 8
    return np.memmap(file, "<i8", mode="r", shape=(n,)) if n else np.zeros(0, np.int64)
