"""A machine of 256 MB with swap: a list of ints makes it thrash, tokmill on the same file leaves the swap alone."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.faults import FOUND, mounted
from support.virtual_machine import DISK, LIST_OF_IDS, MARKS, guest_command, machine, make_disk

from tokmill.check.verification import verify
from tokmill.core.config import BudgetTerms
from tokmill.core.errors import MemoryBudgetError
from tokmill.core.system.budget import divide_budget

pytestmark = [pytest.mark.freeze, *MARKS]
COUNTERS = ("pgmajfault", "pswpin", "pswpout")
CORPUS_BYTES = 30_000_000


def write_text(path: Path) -> None:
    """Prose of a vocabulary like a language's: words of made-up syllables, common ones more often."""
    rng = random.Random(2)
    syllables = ("ba", "the", "ri", "on", "es", "qu", "ly", "ter", "an", "mo", "sti", "al", "er", "ve", "ing", "ko", "pre")
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < CORPUS_BYTES:
            file.write(" ".join(rng.choices(words, weights, k=100_000)) + "<|endoftext|>")


def smallest_memory() -> str:
    """What tokmill itself names as the smallest budget for one thread."""
    with pytest.raises(MemoryBudgetError) as caught:
        divide_budget(1, BudgetTerms(n_threads=1))
    return str(caught.value.next_step).split()[1].rstrip(",")


def counted(lines: list[str], what: str) -> dict[str, float]:
    """The counters of the machine over one program: by how much each rose; and its time in seconds."""
    text = "\n".join(lines)
    values = []
    for moment in ("BEFORE", "AFTER"):
        said = re.search(rf"^{moment} {what}\n((?:.+\n)+?)END", text, re.MULTILINE)
        assert said, text
        found = {name: float(value) for name, value in (line.split() for line in said[1].splitlines())}
        values.append(found)
    return {name: values[1][name] - values[0][name] for name in values[0]}


def measured(what: str, command: str) -> str:
    look = f"grep -wE '{'|'.join(COUNTERS)}' /proc/vmstat; echo seconds $(cut -d' ' -f1 /proc/uptime); echo END"
    return f"echo BEFORE {what}; {look}; {command}; echo CODE {what} $?; echo AFTER {what}; {look}\n"


def test_a_small_machine_thrashes_with_a_list_and_not_with_tokmill(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    write_text(corpus)
    os.utime(corpus, (1_000_000_000, 1_000_000_000))
    make_disk(tmp_path / "disk.img", 256 << 20)
    with (tmp_path / "swap.img").open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkswap", str(tmp_path / "swap.img")], check=True, capture_output=True)
    python = [sys.executable, "-m", "tokmill", "tokenize", str(corpus)]
    memory = smallest_memory()
    tokmill = guest_command([*python, "--out", f"{DISK}/out", "--threads", "1", "--memory", memory, "-q"])
    # The list would take its hours; two minutes of them are enough to see it.
    naive = f"timeout 120 env {guest_command([sys.executable, str(LIST_OF_IDS), str(corpus), f'{DISK}/naive.bin'])}"
    script = "swapon /run/ubdb\n" + measured("tokmill", tokmill) + "umount /run/disk; echo DONE\n"
    script = script.replace("umount", measured("naive", naive) + "umount", 1)
    with machine(tmp_path, script, memory="256M") as booted:
        booted.wait_for("DONE", 400)
        lines = booted.lines
    found = {what: counted(lines, what) for what in ("naive", "tokmill")}
    FOUND.append(f"{corpus.stat().st_size / 1e6:.0f} MB of text, a machine of 256 MB; tokmill with --memory {memory}")
    for what, counters in found.items():
        ended = next(line.split()[-1] for line in lines if line.startswith(f"CODE {what}"))
        FOUND.append(f"  {what:<8} exit {ended:>3}  " + "  ".join(f"{name} {value:,.0f}" for name, value in counters.items()))
    assert "CODE tokmill 0" in lines
    assert found["tokmill"]["pswpin"] < 100
    assert found["tokmill"]["pgmajfault"] < 2_000
    assert found["naive"]["pswpin"] > 10 * 100
    assert found["naive"]["pgmajfault"] > 10_000
    with mounted("-o", "loop", str(tmp_path / "disk.img")) as top:
        assert verify(str(top / "out")).ok
