"""What an exception means that no part of tokmill has put into words: a call that the system refused, or a fault of tokmill.

Calls that are only an advantage (hints, priorities, limits, more threads) are made in `optional`: the work goes on without. What
is needed and fails is raised where its meaning is known (`durable.storage_errors` and others), and everything else here, in one
place: a sandbox, a container or a file system may refuse any call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from tokmill.core.errors import DiskFullError, MemoryBudgetError, StorageError, TokmillError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_AGAIN = "then run the same command again"
_NEXT = {
    errno.EMFILE: f"allow more open files (ulimit -n 1024), {_AGAIN}",
    errno.ENFILE: f"close other programs, or let the machine have more open files (fs.file-max), {_AGAIN}",
    errno.EAGAIN: f"allow more processes and threads (ulimit -u, or the limit of the container), {_AGAIN}",
    errno.EACCES: f"let this user read it (chmod), {_AGAIN}",
    errno.ENODEV: f"copy it to a file system that can map files, {_AGAIN}",
    errno.ENAMETOOLONG: "check the path: a name has up to 255 bytes",
    errno.ENOMEM: f"end other programs, or allow more memory, {_AGAIN}",
}
_NO_THREAD = "can't start new thread"
"""What Python says when `clone` fails."""


def optional() -> contextlib.suppress:
    """Return a context for a call that is only an advantage: where the system refuses it, the work goes on without.

    ValueError: what `resource` makes of EPERM and EINVAL. AttributeError: a system that has no such call.
    """
    return contextlib.suppress(OSError, ValueError, AttributeError)


def in_thread(call: Callable[..., T], *arguments: Any, name: str) -> Future[T]:
    """Begin a call in a thread that does not delay an exit; where the system allows no more threads, make it at once in this one.

    What it returns or raises comes of the future, unless somebody has settled that before.
    """
    # Here, as it loads `logging` and more.
    from concurrent.futures import Future, InvalidStateError

    future: Future[T] = Future()

    def work() -> None:
        with contextlib.suppress(InvalidStateError):
            try:
                future.set_result(call(*arguments))
            except BaseException as error:  # noqa: BLE001  raised where the result is taken
                future.set_exception(error)

    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        if not is_of_threads(error):
            raise
        work()
    return future


def is_of_threads(error: BaseException) -> bool:
    """Return whether an error says that the system allows no more threads."""
    return isinstance(error, RuntimeError) and _NO_THREAD in str(error)


def explained(error: BaseException, where: str, *, next_step: str) -> TokmillError:
    """Return the error of tokmill for any exception.

    Args:
        error: As it was caught.
        where: What was at work, in words; for errors that do not name a file.
        next_step: What to do about a fault of tokmill.
    """
    if isinstance(error, TokmillError):
        return error
    if isinstance(error, MemoryError):
        return MemoryBudgetError(
            "memory ran out",
            where=where,
            allowed="what --memory, the limits of this process (ulimit -v, ulimit -d) and the machine allow",
            next_step=f"end other programs, or change --memory; {_AGAIN}",
        )
    if is_of_threads(error):
        return _refused(OSError(errno.EAGAIN, "no more threads can be started"), where)
    if isinstance(error, OSError):
        return _refused(error, where)
    if isinstance(error, ImportError):
        return UsageError(
            f"a package that tokmill needs cannot be loaded: {error}",
            where=error.name or where,
            allowed="the packages that tokmill was installed with",
            next_step="tokmill doctor says which are missing; install tokmill again",
        )
    return TokmillError(
        f"unforeseen {type(error).__name__}: {error}",
        where=where,
        allowed="no error of this kind: it is a fault of tokmill, or of what it stands on",
        next_step=next_step,
    )


@contextlib.contextmanager
def explaining(where: str) -> Iterator[None]:
    """Raise an OSError as `explained` does. where: what is opened or read."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TokmillError):
            raise
        raise explained(error, where, next_step="") from error


def full(error: OSError) -> tuple[str, str]:
    """Return what is full, and what to do. error: one of FULL."""
    if error.errno == errno.EFBIG:
        return f"a file may not become larger: {error.strerror}", "raise the limit on the size of files (ulimit -f unlimited)"
    return f"the disk is full: {error.strerror}", "free disk space"


def _refused(error: OSError, where: str) -> TokmillError:
    """Return the error for a call that the system refused."""
    path = error.filename
    if error.errno in FULL:
        cls: type[TokmillError] = DiskFullError
        what, usual = full(error)
    else:
        cls, what = StorageError, f"the system refused a call: {error.strerror or error}"
        usual = "repair the cause (a limit, the sandbox or container, the file system)"
    return cls(
        what,
        where=os.fsdecode(path) if isinstance(path, (str, bytes)) else where,
        allowed="a system that does what is needed: open files, pipes, threads, a disk with room",
        next_step=_NEXT.get(error.errno or 0, f"{usual}, {_AGAIN}"),
    )
