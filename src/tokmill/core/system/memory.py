"""Memory and processors of this process, the machine and its cgroups (v1 and v2). In bytes; None where the system does not say.

Also what makes a process no burden: to be killed first when memory runs out, and to run only when nothing else wants to.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.system.refusals import optional

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""


def machine_bytes() -> int:
    """Return the memory of the machine."""
    return meminfo_bytes("MemTotal:") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def rss_bytes(pid: int | None = None) -> int:
    """Return the resident memory of a process, 0 if it is gone; None: of this one, without /proc the largest so far if need be."""
    found = _line_bytes(f"/proc/{pid or 'self'}/status", "VmRSS:")
    if found is None:
        with contextlib.suppress(Exception):
            import psutil

            return int(psutil.Process(pid).memory_info().rss)
    return found or (0 if pid else _largest_bytes())


def share_bytes(pid: int | None = None) -> int:
    """Return the resident memory of a process, a page that n processes have as an nth of it; as much as is known."""
    found = _line_bytes(f"/proc/{pid or 'self'}/smaps_rollup", "Pss:")
    return rss_bytes(pid) if found is None else found


def own_bytes() -> int:
    """Return the resident memory that this process has for itself alone; as much as is known."""
    text = read_text("/proc/self/smaps_rollup")
    found = [int(kib) for kib in re.findall(r"^Private_\w+: +([0-9]+) kB$", text, re.MULTILINE)]
    return sum(found) * 1024 or rss_bytes()


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    found = _status_bytes("VmHWM:")
    return _largest_bytes() if found is None else found


def data_bytes() -> int | None:
    """Return what counts against this process's limit on data: private memory that can be written to, touched or not."""
    return _status_bytes("VmData:")


def _status_bytes(key: str) -> int | None:
    return _line_bytes("/proc/self/status", key)


def _largest_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trim() -> None:
    """Make the C library give freed memory back to the system, where it can."""
    # Only glibc has malloc_trim; others return freed memory on their own.
    with optional():
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int | None:
    """Return the memory of the machine that is available without swapping."""
    return meminfo_bytes("MemAvailable:")


def meminfo_bytes(key: str) -> int | None:
    """Return a line of /proc/meminfo. key: `MemTotal:`."""
    return _line_bytes("/proc/meminfo", key)


def _line_bytes(path: str, key: str) -> int | None:
    """Return the number of KiB in the line that begins with `key`, in bytes; None where there is none."""
    words = next((line.split() for line in read_text(path).splitlines() if line.startswith(key)), [])
    return int(words[1]) * 1024 if len(words) > 1 and words[1].isdecimal() else None


def cgroup_limit_bytes() -> int | None:
    """Return the smallest memory limit of this process's cgroup and those above it; None without one."""
    limits = [limit for limit, _ in _cgroup_limits()]
    return min(limits, default=None)


def usable_bytes() -> int:
    """Return the most that a budget may be: the machine's memory, or nine tenths of the cgroup's limit.

    The tenth is for what else runs in the group, and for pages of files being written.
    """
    limit = cgroup_limit_bytes()
    return machine_bytes() if limit is None else min(machine_bytes(), limit * 9 // 10)


def cgroup_left_bytes() -> int | None:
    """Return the least that is left below any of those limits."""
    return min((limit - used for limit, used in _cgroup_limits()), default=None)


def cgroup_cores() -> float | None:
    """Return the smallest quota of processor time of this process's cgroup and those above it, in cores; None without one."""
    found = [
        read_text(d / "cpu.max").split() if is_v2 else [read_text(d / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        for d, is_v2 in _levels("cpu")
    ]
    # Without a quota there is `max`, or -1.
    numbers = [(int(words[0]), int(words[1])) for words in found if len(words) == 2 and all(map(str.isdecimal, words))]
    return min((quota / period for quota, period in numbers if quota and period), default=None)


def usable_cores() -> int:
    """Return how many processors this process may run on."""
    with optional():
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mark_for_oom_killer() -> None:
    """Make this process the first that the kernel kills when memory runs out, because it can be resumed."""
    with optional():
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def give_way() -> None:
    """Let this process, and threads it starts later, use only the processor and disk time that other programs leave."""
    with optional():
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    with contextlib.suppress(Exception):
        import psutil

        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with optional():
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _cgroup_limits() -> list[tuple[int, int]]:
    """Return (limit, used without reclaimable file pages) of every level that has a limit."""
    v1, v2 = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), ("max", "current", "inactive_file")
    found = [_level(d, *(v2 if is_v2 else v1)) for d, is_v2 in _levels("memory")]
    return [level for level in found if level is not None]


def _levels(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the directories of this process's cgroup and of those above it, and whether they are of v2."""
    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        is_v2 = not controllers
        if is_v2 or controller in controllers.split(","):
            root = _CGROUPS if is_v2 else _CGROUPS / controller
            directory = root / path.lstrip("/")
            yield from ((p, is_v2) for p in (directory, *directory.parents) if p == root or root in p.parents)


def _level(directory: Path, limit_name: str, used_name: str, reclaimable_name: str) -> tuple[int, int] | None:
    limit = read_text(directory / f"memory.{limit_name}").strip()
    used = read_text(directory / f"memory.{used_name}").strip()
    if not limit.isdecimal() or not used.isdecimal() or int(limit) > _UNLIMITED:
        return None
    found = re.search(rf"^{reclaimable_name} (\d+)$", read_text(directory / "memory.stat"), re.MULTILINE)
    return int(limit), int(used) - (int(found[1]) if found else 0)


def stalled_percent() -> float | None:
    """Return the percentage of the last 10 s in which every task waited for memory (PSI); None where the kernel does not say."""
    found = re.search(r"^full avg10=(\d+(?:\.\d+)?) ", read_text("/proc/pressure/memory"), re.MULTILINE)
    return float(found[1]) if found else None


def read_text(path: str | Path) -> str:
    """Return the text of a file of the system; nothing if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
