"""Memory and processors of this process, of the machine and of its control groups, as the system says it (`plain.py`)."""

from __future__ import annotations

from tokmill.core.system.current import SYSTEM

machine_bytes, available_bytes, swap_bytes = SYSTEM.machine_bytes, SYSTEM.available_bytes, SYSTEM.swap_bytes
rss_bytes, share_bytes, own_bytes = SYSTEM.rss_bytes, SYSTEM.share_bytes, SYSTEM.own_bytes
peak_rss_bytes, data_bytes = SYSTEM.peak_rss_bytes, SYSTEM.data_bytes
stalled_percent, cgroup_cores, usable_cores = SYSTEM.stalled_percent, SYSTEM.group_cores, SYSTEM.usable_cores
trim, forget = SYSTEM.trim, SYSTEM.forget
give_way, mark_for_oom_killer = SYSTEM.give_way, SYSTEM.mark_for_oom_killer


def cgroup_limit_bytes() -> int | None:
    """Return the smallest memory limit of this process's control group and those above it; None without one."""
    return min((limit for limit, _ in SYSTEM.group_limits()), default=None)


def cgroup_left_bytes() -> int | None:
    """Return the least that is left below any of those limits."""
    return min((limit - used for limit, used in SYSTEM.group_limits()), default=None)


def usable_bytes() -> int:
    """Return the most that a budget may be: the machine's memory, or nine tenths of the control group's limit.

    The tenth is for what else runs in the group, and for pages of files being written.
    """
    limit = cgroup_limit_bytes()
    return machine_bytes() if limit is None else min(machine_bytes(), limit * 9 // 10)
