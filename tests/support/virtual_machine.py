"""A virtual machine in a process (User-Mode Linux): its own kernel, memory and disks, the host's files, and a power switch."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.commands import clean_environment
from support.faults import needs

MARKS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounts need root"),
    needs("linux.uml", "mkfs.ext4", "mkswap", "mount"),
]
LIST_OF_IDS = Path(__file__).with_name("list_of_ids.py")
"""A program that keeps all ids in a list, for comparison."""
DISK = "/run/disk"
"""Where the guest finds its ext4 disk; the host's files are where they are on the host."""


def guest_command(command: Sequence[str]) -> str:
    """A line of shell that runs it in the guest."""
    return f"PYTHONPATH={shlex.quote(clean_environment()['PYTHONPATH'])} {shlex.join(command)}"


class Machine:
    """A booted machine. `lines` is what its console says so far."""

    def __init__(self, top: Path, script: str, *, memory: str) -> None:
        """top: directory with `disk.img`, perhaps `swap.img`. script: run by sh, with the disk mounted at DISK; then power off."""
        init = top / "init.sh"
        init.write_text(
            f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run
mknod /run/ubdb b 98 16; mknod /run/ubdc b 98 32; mkdir {DISK}
mount -o commit=300 /run/ubdc {DISK} || echo NO DISK
{script}
echo o > /proc/sysrq-trigger; sleep 60
"""
        )
        init.chmod(0o755)
        self._log = top / "console.log"
        swap = top / "swap.img"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(
                        "linux.uml",
                        f"mem={memory}",
                        f"ubdb={swap if swap.exists() else '/dev/null'}",
                        f"ubdc={top / 'disk.img'}",
                    ),
                    *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}"),
                    *("con0=fd:0,fd:1", "con=null", "ssl=null", "quiet"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()

    def wait_for(self, line: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not any(said.startswith(line) for said in self.lines):
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self.process.poll() is None, "\n".join(self.lines)
            time.sleep(0.02)

    def cut_power(self) -> None:
        """Kill the machine and its children; what its kernel had not written is lost."""
        pids = [self.process.pid, *_descendants(self.process.pid)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while any(Path(f"/proc/{pid}/fd").exists() and _holds_files(pid) for pid in pids):
            time.sleep(0.02)


def _descendants(pid: int) -> Iterator[int]:
    with suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _holds_files(pid: int) -> bool:
    try:
        return bool(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


@contextmanager
def machine(top: Path, script: str, *, memory: str) -> Iterator[Machine]:
    """A machine that is off at the end."""
    booted = Machine(top, script, memory=memory)
    try:
        yield booted
    finally:
        booted.cut_power()


def make_disk(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, capture_output=True)
