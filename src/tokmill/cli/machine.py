"""Checks of the machine for `tokmill doctor`: processor, memory, control group, open files, disk.

Only the standard library is needed: what is found may be the reason why a package does not work.
"""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokmill.core.errors import TokmillError
from tokmill.core.system import durable, memory
from tokmill.core.system.current import SYSTEM

MIB = 1 << 20
Status = Literal["ok", "note", "bad"]

_FEATURES = ("sse4_2", "avx2", "avx512f", "neon", "asimd", "sve")
"""Processor features that decide how fast the engine is."""
_FEW_FILES = 256
_LOW_BYTES = 512 * MIB
_SLOW_SYNC_S = 0.5
_SYNC_BYTES = 64 << 10
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "lustre", "gpfs", "beegfs", "ceph"}
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    group: str
    name: str
    value: str
    status: Status = "ok"
    """`bad`: tokmill would not work; `note`: it works, but this is worth knowing."""
    next_step: str | None = None
    """What to do or type, for a note or worse."""


def processor() -> list[Check]:
    """Return model, features, and how many cores this process may use."""
    model, flags = SYSTEM.processor()
    found = sorted({*_FEATURES} & flags)
    n_cores, n_usable = os.cpu_count() or 1, memory.usable_cores()
    quota = memory.cgroup_cores()
    limited = f", {n_usable} for this process" if n_usable != n_cores else ""
    checks = [
        Check("machine", "processor", f"{platform.machine()}, {model or 'model not known'}"),
        Check("machine", "features", " ".join(found) or "none known"),
        Check("machine", "cores", f"{n_cores}{limited}"),
    ]
    if quota is not None and quota < n_usable:
        value = f"{quota:.1f} cores by the control group's quota"
        checks.append(Check("machine", "quota", value, "note", f"--threads {max(1, int(quota))}"))
    return checks


def memory_checks() -> list[Check]:
    """Return the memory of the machine and of the control group."""
    total, available = memory.machine_bytes(), memory.available_bytes()
    checks = [Check("memory", "machine", _mib(total))]
    if available is not None:
        is_low = available < _LOW_BYTES
        hint = f"free some, or --memory {max(64, available // MIB // 2)}MiB" if is_low else None
        checks.append(Check("memory", "available", _mib(available), "note" if is_low else "ok", hint))
    checks.append(Check("memory", "swap", _mib(memory.swap_bytes())))
    limit, left = memory.cgroup_limit_bytes(), memory.cgroup_left_bytes()
    version = SYSTEM.group_version()
    value = f"{version}, no limit" if limit is None else f"{version}, limit {_mib(limit)}, {_mib(left)} left"
    checks.append(Check("memory", "control group", value))
    stalled = memory.stalled_percent()
    checks.append(
        Check(
            "memory", "pressure", "not reported by this kernel" if stalled is None else f"{stalled:.1f} % of the last 10 s stalled"
        )
    )
    return checks


def open_files() -> Check:
    """Return how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < _FEW_FILES and soft != resource.RLIM_INFINITY
    return Check(
        "machine",
        "open files",
        f"{_limit(soft)}, at most {_limit(hard)}",
        "note" if few else "ok",
        "ulimit -n 1024" if few else None,
    )


def disk(directory: str) -> list[Check]:
    """Return file system, free space, and the time to make a small file durable where an output would be made."""
    wanted = Path(directory).absolute()
    place = next(p for p in (wanted, *wanted.parents) if p.is_dir())
    kind = SYSTEM.file_system_kind(str(place)) or "not known"
    status = durable.file_system_of(place)
    free = status.f_bavail * status.f_frsize if status else None
    checks = [Check("disk", "place", str(place)), _of_kind(kind), _of_space(free)]
    try:
        took_s = _time_to_sync(place)
    except (OSError, TokmillError) as error:
        why = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
        return [
            *checks,
            Check(
                "disk", "writing", f"not possible here: {why}", "bad", "choose a directory that can be written: tokmill doctor DIR"
            ),
        ]
    is_slow = took_s > _SLOW_SYNC_S
    hint = "each segment waits for the disk; a local one is faster" if is_slow else None
    return [
        *checks,
        Check("disk", "fsync", f"{took_s * 1000:.1f} ms for {_SYNC_BYTES >> 10} KiB", "note" if is_slow else "ok", hint),
    ]


def _of_kind(kind: str) -> Check:
    if kind in _NETWORK:
        return Check("disk", "file system", f"{kind}, over a network", "note", "locks and fsync are as good as the server's")
    if kind in _IN_MEMORY:
        return Check("disk", "file system", f"{kind}: in memory, gone with the machine", "note", "choose a directory on a disk")
    return Check("disk", "file system", kind)


def _of_space(free: int | None) -> Check:
    if free is None:
        return Check("disk", "free", "not known: the file system does not say", "note")
    is_low = free < _LOW_BYTES
    return Check(
        "disk", "free", _mib(free), "note" if is_low else "ok", "free disk space, or choose another --out" if is_low else None
    )


def _time_to_sync(place: Path) -> float:
    """Return the seconds to write and sync a small file, the least of three. Raises OSError, TokmillError."""
    took = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(3):
            began_s = time.perf_counter()
            file.write(bytes(_SYNC_BYTES))
            file.flush()
            durable.sync_file(file.fileno())
            took.append(time.perf_counter() - began_s)
    return min(took)


def _limit(value: int) -> str:
    return "no limit" if value == resource.RLIM_INFINITY else f"{value:,}"


def _mib(n_bytes: int | None) -> str:
    return "not known" if n_bytes is None else f"{n_bytes / MIB:,.0f} MiB"
