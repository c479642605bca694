"""What only Linux has: /proc, control groups, pressure, hints to the page cache, copies inside the kernel, the death signal.

Nothing else in tokmill names any of it. Each call may be refused (an old kernel, a sandbox, a file system): then the plain form is
used, or the work goes on without.
"""

from __future__ import annotations

import errno
import os
import sys

from tokmill.core.system.plain import System

# Where it is not, no type checker looks for the calls below.
assert sys.platform == "linux"

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from pathlib import Path

_CGROUPS = "/sys/fs/cgroup"
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_NOT_RESERVED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What `posix_fallocate` says where the file system cannot do it."""


class Linux(System):
    """The form for Linux."""

    name = "Linux"
    passing_flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

    # Memory and processors

    def machine_bytes(self) -> int:
        """See System."""
        return _meminfo_bytes("MemTotal:") or super().machine_bytes()

    def available_bytes(self) -> int | None:
        """See System."""
        return _meminfo_bytes("MemAvailable:")

    def swap_bytes(self) -> int | None:
        """See System."""
        return _meminfo_bytes("SwapTotal:")

    def rss_bytes(self, pid: int | None = None) -> int:
        """See System."""
        found = _line_bytes(f"/proc/{pid or 'self'}/status", "VmRSS:")
        return super().rss_bytes(pid) if found is None else found

    def share_bytes(self, pid: int | None = None) -> int:
        """See System."""
        found = _line_bytes(f"/proc/{pid or 'self'}/smaps_rollup", "Pss:")
        return self.rss_bytes(pid) if found is None else found

    def own_bytes(self) -> int:
        """See System."""
        import re

        text = read_text("/proc/self/smaps_rollup")
        found = [int(kib) for kib in re.findall(r"^Private_\w+: +([0-9]+) kB$", text, re.MULTILINE)]
        return sum(found) * 1024 or self.rss_bytes()

    def peak_rss_bytes(self) -> int:
        """See System."""
        found = _line_bytes("/proc/self/status", "VmHWM:")
        return super().peak_rss_bytes() if found is None else found

    def data_bytes(self) -> int | None:
        """See System."""
        return _line_bytes("/proc/self/status", "VmData:")

    def stalled_percent(self) -> float | None:
        """See System. Pressure stall information of the kernel."""
        import re

        found = re.search(r"^full avg10=(\d+(?:\.\d+)?) ", read_text("/proc/pressure/memory"), re.MULTILINE)
        return float(found[1]) if found else None

    def group_limits(self) -> list[tuple[int, int]]:
        """See System. Of its cgroup and those above it, v1 and v2; use is without file pages that can be reclaimed."""
        v1, v2 = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), ("max", "current", "inactive_file")
        found = [_level(d, *(v2 if is_v2 else v1)) for d, is_v2 in _levels("memory")]
        return [level for level in found if level is not None]

    def group_cores(self) -> float | None:
        """See System."""
        found = [
            read_text(d / "cpu.max").split()
            if is_v2
            else [read_text(d / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            for d, is_v2 in _levels("cpu")
        ]
        # Without a quota there is `max`, or -1.
        numbers = [(int(words[0]), int(words[1])) for words in found if len(words) == 2 and all(map(str.isdecimal, words))]
        return min((quota / period for quota, period in numbers if quota and period), default=None)

    def group_version(self) -> str:
        """See System."""
        if os.path.exists(f"{_CGROUPS}/cgroup.controllers"):
            return "v2"
        return "v1" if os.path.isdir(f"{_CGROUPS}/memory") else "none"

    def usable_cores(self) -> int:
        """See System."""
        from tokmill.core.system.refusals import optional

        with optional():
            return len(os.sched_getaffinity(0))
        return super().usable_cores()

    def processor(self) -> tuple[str | None, set[str]]:
        """See System."""
        import re

        text = read_text("/proc/cpuinfo")
        model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
        return model[1].strip() if model else None, set(flags[1].split() if flags else ())

    def trim(self) -> None:
        """See System."""
        import ctypes

        from tokmill.core.system.refusals import optional

        # Only glibc has malloc_trim; others return freed memory on their own.
        with optional():
            ctypes.CDLL(None).malloc_trim(0)

    def forget(self, mapping: mmap.mmap, begin: int, n_bytes: int) -> None:
        """See System. Of shared mappings, the kernel keeps what is in the pages."""
        import mmap as constants

        mapping.madvise(constants.MADV_DONTNEED, begin, n_bytes)

    # Processes

    def mark_for_oom_killer(self) -> None:
        """See System."""
        from tokmill.core.system.refusals import optional

        with optional(), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")

    def give_way(self) -> None:
        """See System."""
        import contextlib

        from tokmill.core.system.refusals import optional

        super().give_way()
        with contextlib.suppress(Exception):
            import psutil

            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
        with optional():
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def end_with_parent(self, parent: int) -> None:
        """See System. The kernel kills this process: even a stopped one writes nothing more."""
        import ctypes
        import signal

        from tokmill.core.system.refusals import optional

        # For the kernel, the thread that forked is the parent.
        is_promised = False
        with optional():
            is_promised = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
        if not is_promised:
            super().end_with_parent(parent)
        elif os.getppid() != parent:
            # It was dead before.
            os._exit(1)

    def name_process(self, name: str) -> None:
        """See System."""
        import ctypes

        from tokmill.core.system.refusals import optional

        with optional():
            ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())

    def place(self) -> tuple[str, str] | None:
        """See System."""
        boot = read_text("/proc/sys/kernel/random/boot_id").strip()
        try:
            namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            return None
        return (boot, namespace) if boot else None

    def start_of(self, pid: int) -> str | None:
        """See System."""
        try:
            # In another namespace's /proc the ids mean other processes.
            if os.readlink("/proc/self") != str(os.getpid()):
                return None
        except OSError:
            return None
        state, *fields = [*read_text(f"/proc/{pid}/stat").rpartition(")")[2].split(), ""]
        if state in ("X", "Z"):
            return "ended"
        return fields[18] if len(fields) > 18 else None

    def descriptor_of(self, path: str) -> int | None:
        """See System."""
        mine = "/proc/self/fd/"
        return super().descriptor_of(f"/dev/fd/{path.removeprefix(mine)}" if path.startswith(mine) else path)

    def path_in_parent(self, descriptor: int) -> str | None:
        """See System."""
        return f"/proc/{os.getppid()}/fd/{descriptor}"

    # Files

    def file_system_kind(self, path: str) -> str | None:
        """See System. Of the longest mount point above the path, the last of several at one point."""
        import re

        best, kind = "", None
        for line in read_text("/proc/self/mounts").splitlines():
            _, point, found, *_ = line.split(" ")
            point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), point)
            if f"{path}/".startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, found
        return kind

    def scratch_file(self) -> int:
        """See System. In memory, as a disk may be read-only."""
        try:
            return os.memfd_create("tokmill")
        except (OSError, AttributeError):
            return super().scratch_file()

    def reserve(self, fd: int, n_bytes: int) -> bool:
        """See System."""
        if not hasattr(os, "posix_fallocate"):
            return False
        try:
            os.posix_fallocate(fd, 0, n_bytes)
        except OSError as error:
            if error.errno not in _NOT_RESERVED:
                raise
            return False
        return True

    def copy(self, source_fd: int, source_offset: int, target_fd: int, target_offset: int, n_bytes: int) -> int:
        """See System."""
        if not hasattr(os, "copy_file_range"):
            return 0
        return os.copy_file_range(source_fd, target_fd, n_bytes, source_offset, target_offset)

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """See System."""
        return os.preadv(fd, [view], offset)

    def read_ahead(self, fd: int) -> None:
        """See System."""
        from tokmill.core.system.refusals import optional

        with optional():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def drop_pages(self, fd: int, offset: int, n_bytes: int) -> None:
        """See System. A hint, which a pipe or a strange file system does not take."""
        from tokmill.core.system.refusals import optional

        with optional():
            os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def resident_share(self, fd: int, begin: int, end: int) -> float:
        """See System. It takes 0.1 ms for each 32 MiB."""
        import ctypes
        import mmap as maps

        n_pages = -(-(end - begin) // maps.PAGESIZE)
        pages = (ctypes.c_ubyte * n_pages)()
        try:
            with maps.mmap(fd, end - begin, flags=maps.MAP_PRIVATE, prot=maps.PROT_READ | maps.PROT_WRITE, offset=begin) as mapped:
                first = ctypes.c_char.from_buffer(mapped)
                failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(end - begin), pages)
                del first
        except (OSError, ValueError, AttributeError):
            return 1.0
        return 1.0 if failed else bytes(pages).count(1) / n_pages


def read_text(path: str | Path) -> str:
    """Return the text of a file of the system; nothing if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _meminfo_bytes(key: str) -> int | None:
    return _line_bytes("/proc/meminfo", key)


def _line_bytes(path: str, key: str) -> int | None:
    """Return the number of KiB in the line that begins with `key`, in bytes; None where there is none."""
    words = next((line.split() for line in read_text(path).splitlines() if line.startswith(key)), [])
    return int(words[1]) * 1024 if len(words) > 1 and words[1].isdecimal() else None


def _levels(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the directories of this process's cgroup and of those above it, and whether they are of v2."""
    from pathlib import Path

    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        is_v2 = not controllers
        if is_v2 or controller in controllers.split(","):
            root = Path(_CGROUPS) if is_v2 else Path(_CGROUPS) / controller
            directory = root / path.lstrip("/")
            yield from ((p, is_v2) for p in (directory, *directory.parents) if p == root or root in p.parents)


def _level(directory: Path, limit_name: str, used_name: str, reclaimable_name: str) -> tuple[int, int] | None:
    """Return limit and use of one level; None without a limit."""
    import re

    limit = read_text(directory / f"memory.{limit_name}").strip()
    used = read_text(directory / f"memory.{used_name}").strip()
    if not limit.isdecimal() or not used.isdecimal() or int(limit) > _UNLIMITED:
        return None
    found = re.search(rf"^{reclaimable_name} (\d+)$", read_text(directory / "memory.stat"), re.MULTILINE)
    return int(limit), int(used) - (int(found[1]) if found else 0)
