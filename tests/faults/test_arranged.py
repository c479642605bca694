"""`shuffle`, `mix`, `dedup`, `pack`, `build`, `tokenize --shuffle`: killed at any moment, on full disks, with another memory each
time, they make the same bytes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from support import small_arranging
from support.commands import PATIENCE_S, started, wait_until
from support.faults import Outcome, mounted, needs, prose, run, write_prose, wrong_message
from support.outputs import files_in

import tokmill

COMMANDS = ("shuffle", "mix", "dedup", "pack", "build", "tokenize")
BUCKET_BYTES = (4_000, 20_000, 1 << 20)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, their outputs, and a recipe."""
    top = tmp_path_factory.mktemp("texts")
    for i, name in enumerate(("a", "b")):
        # One document is longer than most buckets.
        write_prose(top / f"{name}.txt", n_documents=250, seed=i)
        with (top / f"{name}.txt").open("ab") as file:
            file.write(b"<|endoftext|>" + prose(1, 40_000, seed=i)[0])
        tokmill.tokenize(top / f"{name}.txt", top / name, val_fraction=0.2)
    shutil.copytree(top / "a", top / "copy")
    (top / "recipe.toml").write_text(
        '[tokenize]\nval_fraction = 0.2\n[sources.a]\ninputs = "a.txt"\nweight = 0.6\n[sources.b]\ninputs = "b.txt"\nweight = 0.4\n'
    )
    return top


def words(name: str, texts: Path, out: Path) -> list[str]:
    """The words of a command."""
    a, b = texts / "a", texts / "b"
    given = {
        "shuffle": ["shuffle", str(a), str(b), "--seed", "1"],
        "mix": ["mix", f"{a}=0.6", f"{b}=0.4", "--seed", "1"],
        "pack": ["pack", str(a), str(b), "--sequence", "64", "--seed", "1", "--format", "llmc", "--shard-tokens", "6400"],
        "dedup": ["dedup", str(a), str(b), str(texts / "copy"), "--near", "0.5"],
        "build": ["build", str(texts / "recipe.toml"), "--threads", "1"],
        "tokenize": ["tokenize", f"{a}.txt", "--shuffle", "1", "--val-fraction", "0.2", "--threads", "1"],
    }
    return [*given[name], "--out", str(out), "--quiet"]


def small(arguments: list[str], bucket_bytes: int) -> list[str]:
    return [sys.executable, str(small_arranging.__file__), str(bucket_bytes), *arguments]


def pass_of(out: Path) -> str:
    """What is done for an output, as its directory shows it; nothing: it is not begun."""
    state, found = out / ".tokmill", ""
    with suppress(FileNotFoundError):
        if any(state.glob("tokenized/.tokmill")) or any(Path(f"{out}.work").glob("*/.tokmill")):
            found = "tokenizing"
        if any(state.glob("*.part")):
            found = "reading"
        if any(path.stat().st_size for path in state.glob("train*.part")):
            found = "writing"
    return found


def kill_at_random(
    make: Callable[[], list[str]], out: Path, expected: dict[str, bytes], n_kills: int, rng: random.Random, passes: Sequence[str]
) -> None:
    """Start runs and kill all their processes at a random moment of a pass, so many times; each goes on from the one before.

    passes: in their order. One kill falls in each of them, at least.
    """
    longest_s, met = 0.5, Counter[str]()
    for _ in range(20 * n_kills):
        missing = [each for each in passes if not met[each]]
        if met.total() >= n_kills and not missing:
            return
        wanted = passes.index(missing[0] if missing else rng.choice(passes))
        if (now := pass_of(out)) and passes.index(now) > wanted:
            remove(out)
        with started(make()) as process:
            code = kill_in(process, partial(has_begun, out, passes[wanted:]), rng.uniform(0, longest_s))
            killed_in = pass_of(out)
        if code == -signal.SIGKILL:
            met[killed_in] += bool(killed_in)
        # Shorter, or longer, until about every other kill meets the pass.
        longest_s *= 1.3 if code and killed_in == passes[wanted] else 0.7
        if code == 0:
            assert files_in(out) == expected
            remove(out)
    raise AssertionError(f"of {n_kills} kills there were {met} in {passes}")


def has_begun(out: Path, passes: Sequence[str]) -> bool:
    return pass_of(out) in passes


def kill_in(process: subprocess.Popen[bytes], is_begun: Callable[[], bool], delay_s: float) -> int:
    """Kill a run some time after its pass has begun; return how it ended."""
    wait_until(lambda: is_begun() or process.poll() is not None)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay_s)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait(PATIENCE_S)
    # 11: processes of the run before may need a moment to see that it is dead.
    assert code in (0, 11, -signal.SIGKILL), process.stderr.read() if process.stderr else ""
    return code


def remove(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(f"{out}.work", ignore_errors=True)


def finish(command: list[str], out: Path, expected: dict[str, bytes]) -> None:
    outcome = Outcome(11, "")

    def ended() -> bool:
        nonlocal outcome
        outcome = run(command)
        return outcome.code != 11

    wait_until(ended)
    assert outcome.code == 0, outcome.said
    assert files_in(out) == expected
    assert tokmill.verify(out).order_checked


def kill_and_finish(name: str, texts: Path, tmp_path: Path, n_kills: int) -> None:
    rng, out = random.Random(f"{name} {n_kills}"), tmp_path / "out"
    assert run([sys.executable, "-m", "tokmill", *words(name, texts, tmp_path / "whole")]).code == 0

    def make() -> list[str]:
        return small(words(name, texts, out), rng.choice(BUCKET_BYTES))

    expected = files_in(tmp_path / "whole")
    passes = ["tokenizing"] * (name in ("build", "tokenize")) + ["reading", "writing"]
    kill_at_random(make, out, expected, n_kills, rng, passes)
    finish(make(), out, expected)


def test_killed_at_some_random_moments(texts: Path, tmp_path: Path) -> None:
    kill_and_finish("tokenize", texts, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_50_random_moments(name: str, texts: Path, tmp_path: Path) -> None:
    kill_and_finish(name, texts, tmp_path, 50)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounts need root")
@needs("mount", "umount")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_size_of_a_disk_is_one_message_and_resumes(name: str, texts: Path, tmp_path: Path) -> None:
    assert run([sys.executable, "-m", "tokmill", *words(name, texts, tmp_path / "whole")]).code == 0
    expected = files_in(tmp_path / "whole")
    total, codes = sum(map(len, expected.values())), set()
    for size in range(20_000, 5 * total, total // 3):
        with mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs") as top:
            out = top / "out"
            command = small([*words(name, texts, out), "--force"], 20_000)
            outcome = run(command)
            codes.add(outcome.code)
            if outcome.code != 0:
                assert outcome.code == 14, outcome.said
                assert "the disk is full" in outcome.said
                assert wrong_message(outcome) == []
                subprocess.run(["mount", "-o", "remount,size=20m", str(top)], check=True)
                assert run(command).code == 0
            assert files_in(out) == expected
    assert codes == {0, 14}
