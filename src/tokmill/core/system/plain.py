"""All that tokmill asks of a system beyond what Python has on every POSIX system: the contract, in the form that works on each.

`System` is both. What it cannot do or know without the help of one kernel, it does not do, or says that it does not know; nothing
in tokmill needs more. `linux.py` has the better form for Linux, and `current.py` chooses. A port to another system is one more
class like `Linux`, and a line there.

Only what Python itself has loaded is imported here: a command asks for a file before it imports anything else (`child.py`).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

_READ_BYTES = 4 << 20
"""Read at once, at most, where bytes cannot be read into their place."""
_LOOK_S = 0.05
"""Between two looks whether the parent process lives."""


class System:
    """The plain POSIX form. Sizes are in bytes; None: the system does not say."""

    name = "plain POSIX"
    passing_flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    """How a directory is opened that only leads to another."""

    # Memory and processors

    def machine_bytes(self) -> int:
        """Return the memory of the machine."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def available_bytes(self) -> int | None:
        """Return the memory of the machine that is available without swapping."""
        return _from_psutil(lambda psutil: psutil.virtual_memory().available)

    def swap_bytes(self) -> int | None:
        """Return the size of the swap space."""
        return _from_psutil(lambda psutil: psutil.swap_memory().total)

    def rss_bytes(self, pid: int | None = None) -> int:
        """Return the resident memory of a process, 0 if it is gone; None: of this one, the largest so far if need be."""
        found = _from_psutil(lambda psutil: psutil.Process(pid).memory_info().rss)
        return found or (0 if pid else self.peak_rss_bytes())

    def share_bytes(self, pid: int | None = None) -> int:
        """Return the resident memory of a process, a page that n processes have as an nth of it; as much as is known."""
        return self.rss_bytes(pid)

    def own_bytes(self) -> int:
        """Return the resident memory that this process has for itself alone; as much as is known."""
        return _from_psutil(lambda psutil: psutil.Process().memory_full_info().uss) or self.rss_bytes()

    def peak_rss_bytes(self) -> int:
        """Return the largest resident memory of this process so far."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def data_bytes(self) -> int | None:
        """Return what counts against this process's limit on data: private memory that can be written to, touched or not."""
        return None

    def stalled_percent(self) -> float | None:
        """Return the percentage of the last 10 s in which every task waited for memory."""
        return None

    def group_limits(self) -> list[tuple[int, int]]:
        """Return limit and use of each control group that this process is in and that has a limit."""
        return []

    def group_cores(self) -> float | None:
        """Return the smallest quota of processor time of those groups, in cores; None without one."""
        return None

    def group_version(self) -> str:
        """Return which kind of control groups there is, for people."""
        return "none"

    def usable_cores(self) -> int:
        """Return how many processors this process may run on."""
        return os.cpu_count() or 1

    def processor(self) -> tuple[str | None, set[str]]:
        """Return the model of the processor, and the names of its features."""
        return None, set()

    def trim(self) -> None:
        """Make the C library give freed memory back to the system."""

    def forget(self, mapping: mmap.mmap, begin: int, n_bytes: int) -> None:
        """Let pages that other processes or a file hold no longer count as memory of this process. begin: of a page."""

    # Processes

    def mark_for_oom_killer(self) -> None:
        """Make this process the first that the kernel kills when memory runs out, because it can be resumed."""

    def give_way(self) -> None:
        """Let this process, and threads it starts later, use only the processor and disk time that other programs leave."""
        from tokmill.core.system.refusals import optional

        with optional():
            os.setpriority(os.PRIO_PROCESS, 0, 19)

    def end_with_parent(self, parent: int) -> None:
        """End this process as soon as its parent is dead, which is looked at in a thread.

        parent: its id. It must have forked this process in its main thread.
        """
        import threading

        if os.getppid() != parent:
            # It was dead before.
            os._exit(1)
        threading.Thread(target=_last_as_long_as, args=(parent,), name="parent", daemon=True).start()

    def name_process(self, name: str) -> None:
        """Let `top` and `ps -o comm` show this process by a name of at most 15 bytes."""

    def place(self) -> tuple[str, str] | None:
        """Return two words that are the same for processes that see each other by the same ids, since the machine was started."""
        booted_s = _from_psutil(lambda psutil: int(psutil.boot_time()))
        return (str(booted_s), _word(os.uname().nodename)) if booted_s else None

    def start_of(self, pid: int) -> str | None:
        """Return a word for when a process was started, `ended` for one that only waits to be asked for its end."""
        return _from_psutil(lambda psutil: _start_of(psutil.Process(pid)))

    def descriptor_of(self, path: str) -> int | None:
        """Return the descriptor of this process that a path such as /dev/fd/3 names; None for another path."""
        number = path.removeprefix("/dev/fd/")
        return int(number) if number != path and number.isascii() and number.isdigit() else None

    def path_in_parent(self, descriptor: int) -> str | None:
        """Return a path that opens again what the parent process has open."""
        return None

    # Files

    def file_system_kind(self, path: str) -> str | None:
        """Return the type of the file system that holds a path."""
        return None

    def scratch_file(self) -> int:
        """Open a file without a name, for reading and writing; return the descriptor."""
        import tempfile

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())

    def sync(self, fd: int) -> None:
        """Return when what was written to a file, or the names in a directory, are on the disk. Raises OSError."""
        os.fsync(fd)

    def reserve(self, fd: int, n_bytes: int) -> bool:
        """Let an open file have so many bytes, and room on the disk for all of them; return whether it is done. Raises OSError."""
        return False

    def copy(self, source_fd: int, source_offset: int, target_fd: int, target_offset: int, n_bytes: int) -> int:
        """Copy bytes between files inside the kernel; return how many, 0 where it copies none. Raises OSError."""
        return 0

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """Fill the beginning of `view` with bytes of a file; return how many, 0 at its end. Raises OSError."""
        data = os.pread(fd, min(view.nbytes, _READ_BYTES), offset)
        view.cast("B")[: len(data)] = data
        return len(data)

    def read_ahead(self, fd: int) -> None:
        """Say that a file will be read from front to back."""

    def drop_pages(self, fd: int, offset: int, n_bytes: int) -> None:
        """Let the page cache drop clean pages of a file; n_bytes 0: all from `offset` on."""

    def resident_share(self, fd: int, begin: int, end: int) -> float:
        """Return the share of a file's pages between two offsets that are in memory; 1 if the system does not say."""
        return 1.0


def _from_psutil(ask: Callable[[Any], T]) -> T | None:
    """Return what psutil says; None where it says nothing."""
    import contextlib

    # It raises errors of its own, and others where a system or a sandbox refuses a call.
    with contextlib.suppress(Exception):
        import psutil

        return ask(psutil)
    return None


def _start_of(process: Any) -> str:
    """Return the word of `System.start_of`. process: as psutil has it."""
    return "ended" if process.status() in {"zombie", "dead"} else f"{process.create_time():.2f}"


def _word(text: str) -> str:
    """Return a text without what would end a word."""
    return "".join(text.split())[:64] or "-"


def _last_as_long_as(parent: int) -> None:
    """End this process when its parent is another than `parent`."""
    import time

    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
