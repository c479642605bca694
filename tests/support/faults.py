"""Runs the real command while the system fails it: the Nth call that touches its output or input, by strace.

Faults are aimed by path (`strace -P`), so that the interpreter's own start is left alone. strace counts calls a thread.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import small_run
from support.commands import called, clean_environment
from support.in_process import workers_in_process
from support.oracle import plain_tokens
from support.outputs import written

from tokmill import api
from tokmill.check.verification import verify
from tokmill.core.manifest import load_manifest

SMALL_RUN = Path(small_run.__file__)
SEGMENT_BYTES = 16 << 10
SEPARATOR = b"<|endoftext|>"
CALLS = {
    "openat": "?open,openat",
    "mkdir": "?mkdir,mkdirat",
    "write": "write",
    "pwrite": "pwrite64",
    "fsync": "fsync",
    "rename": "?rename,?renameat,renameat2",
    "read": "read",
}
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "EINTR", "EROFS")
_FULL = ("ENOSPC", "EDQUOT")
_MOST_CALLS = 60
"""Of one kind in one thread; a run that makes more has lost its way."""

RESULTS: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
"""Cases tried and failed, by call, error and scene; shown after the tests."""
FOUND: list[str] = []
"""What tests measured; shown after them."""


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip, and say so, where a tool is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"NOT TESTED: {', '.join(missing)} is not installed")


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `error` is a name of errno, or SIGKILL."""

    call: str
    error: str
    when: int
    for_ever: bool = False

    def __str__(self) -> str:
        return f"{self.call} {self.error} at {self.when}{'+' if self.for_ever else ''}"

    def injection(self) -> str:
        what = f"signal={self.error}" if self.error.startswith("SIG") else f"error={self.error}"
        return f"inject={CALLS[self.call]}:{what}:when={self.when}{'+' if self.for_ever else ''}"


@dataclass(frozen=True)
class Outcome:
    """What a person sees of a run, and the calls that failed."""

    code: int
    said: str
    hits: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scene:
    """A corpus, and what its output is to be."""

    corpus: Path
    expected: tuple[bytes, bytes]
    options: tuple[str, ...] = ()
    before: Path | None = None
    """A directory to begin from: an earlier output, or a run to be resumed."""
    earlier: tuple[bytes, bytes] | None = None
    """The files of that earlier output."""

    def command(self, out: Path) -> list[str]:
        return small_command(self.corpus, out, *self.options)

    def prepare(self, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        if self.before:
            shutil.copytree(self.before, out)


def small_command(corpus: Path | str, out: Path, *options: str) -> list[str]:
    base = [sys.executable, str(SMALL_RUN), str(SEGMENT_BYTES), "tokenize", str(corpus), "--out", str(out)]
    threads = [] if "--threads" in options else ["--threads", "1"]
    return [*base, *threads, "--quiet", "--val-fraction", "0.2", *options]


def run(command: Sequence[str], timeout_s: float = 60) -> Outcome:
    done = subprocess.run(command, capture_output=True, check=False, timeout=timeout_s, env=clean_environment(), cwd="/")
    return Outcome(done.returncode, done.stderr.decode("utf-8", "replace"))


def run_here(command: Sequence[str]) -> Outcome:
    """The same in this process: where no call fails, it makes no difference, and takes a tenth of the time."""
    with workers_in_process(), pytest.MonkeyPatch.context() as patch:
        if command[1] == str(SMALL_RUN):
            patch.setitem(vars(api), "make_job", small_run.small_jobs(int(command[2])))
        done = called(*command[3:])
    return Outcome(done.returncode, done.stderr)


def run_with(fault: Fault, scene: Scene, out: Path) -> Outcome:
    """One run of the scene's command into `out`, with the fault."""
    log = out.with_name(out.name + ".strace")
    aim = [part for path in touched(scene.corpus, out) for part in ("-P", str(path))]
    is_kill = fault.error.startswith("SIG")
    # Stopping at the traced calls alone is ten times as fast, but a signal is not delivered at such a stop.
    speed = [] if is_kill else ["--seccomp-bpf"]
    strace = ["strace", "-f", "-q", "-y", *speed, "-o", str(log), *aim, "-e", f"trace={CALLS[fault.call]}"]
    outcome = run([*strace, "-e", fault.injection(), *scene.command(out)])
    text = log.read_text(errors="replace")
    log.unlink()
    mark = "killed by SIGKILL" if is_kill else "(INJECTED)"
    return Outcome(outcome.code, outcome.said, [line for line in text.splitlines() if mark in line])


def touched(corpus: Path, out: Path) -> list[Path]:
    """Every path that a run may touch."""
    names = ("train.bin", "val.bin", "manifest.json", "skipped.jsonl")
    state = out / ".tokmill"
    return [corpus, out, state, state / "journal", state / "lock", *(out / n for n in names), *(state / f"{n}.part" for n in names)]


def cases(scene: Scene, call: str, error: str, out: Path, *, for_ever: bool = False) -> Iterator[tuple[Fault, Outcome]]:
    """Runs with the fault at 1, 2, ... until a run no longer meets it."""
    for when in range(1, _MOST_CALLS):
        fault = Fault(call, error, when, for_ever)
        scene.prepare(out)
        outcome = run_with(fault, scene, out)
        if not outcome.hits:
            return
        yield fault, outcome
    raise AssertionError(f"{call} {error}: still met at {_MOST_CALLS}")


def problems(fault: Fault, outcome: Outcome, scene: Scene, out: Path, run: Callable[[Sequence[str]], Outcome] = run) -> list[str]:
    """What is wrong with how the run ended; then runs it again without the fault, and what is wrong with that."""
    found = [*_wrong_end(fault, outcome, scene), *_wrong_files(scene, out)]
    if outcome.code == 0 and not is_complete(out, scene.expected):
        found.append("exit code 0 without a complete output")
    again = run(scene.command(out))
    if again.code != 0:
        found.append(f"run again: exit code {again.code}: {again.said}")
    elif not is_complete(out, scene.expected):
        found.append("run again: the output is not that of an uninterrupted run")
    return found


def _wrong_end(fault: Fault, outcome: Outcome, scene: Scene) -> list[str]:
    if fault.error == "SIGKILL":
        return [] if outcome.code in (0, 1) else [f"exit code {outcome.code}"]
    if fault.error == "EINTR":
        return [] if outcome.code == 0 else [f"EINTR: exit code {outcome.code}: {outcome.said}"]
    if outcome.code == 0:
        return [] if not outcome.said else [f"exit code 0 and {outcome.said!r}"]
    # A corpus that cannot be looked at while the run is planned is no error yet; what fails behind it may be the output.
    is_input = all(f"{scene.corpus}" in hit for hit in outcome.hits)
    wanted = 14 if fault.error in _FULL and not is_input else 1
    return [
        *([] if outcome.code == wanted else [f"exit code {outcome.code}, not {wanted}: {outcome.said}"]),
        *wrong_message(outcome),
    ]


def wrong_message(outcome: Outcome) -> list[str]:
    """What is wrong with an error as a person sees it."""
    found = [f"no `{part.strip()}` in {outcome.said!r}" for part in ("where:", "allowed:", "next:") if part not in outcome.said]
    if outcome.said.count("tokmill: error:") != 1 or re.search("Traceback|unforeseen", outcome.said):
        found.append(f"not one clear message: {outcome.said!r}")
    return found


def _wrong_files(scene: Scene, out: Path) -> list[str]:
    """A file under its final name is complete: the new one, or the earlier one untouched; with a manifest, all are of one run."""
    found = []
    for side, name in enumerate(("train.bin", "val.bin")):
        path = out / name
        allowed = [scene.expected[side], *([scene.earlier[side]] if scene.earlier else [])]
        if path.exists() and path.read_bytes() not in allowed:
            found.append(f"{name} is neither the new file nor the earlier one")
    if (out / "manifest.json").exists() and not verify(str(out)).ok:
        found.append("the manifest stands beside files that are not its own")
    return found


def is_complete(out: Path, expected: tuple[bytes, bytes]) -> bool:
    """Whether a directory holds that output, sound, and nothing else."""
    load_manifest(out)
    names = {p.name for p in out.iterdir()}
    return names == {"manifest.json", "train.bin", "val.bin"} and verify(str(out)).ok and written(out) == expected


def write_prose(path: Path, n_documents: int = 60, size: int = 2000, seed: int = 0) -> tuple[bytes, bytes]:
    """Write a text file of documents. Return the bytes of its train.bin and val.bin."""
    documents = prose(n_documents, size, seed)
    path.write_bytes(SEPARATOR.join(documents))
    return plain_tokens(documents, val_fraction=0.2)


def prose(n_documents: int, size: int = 2000, seed: int = 0) -> list[bytes]:
    """Documents of all kinds of words."""
    rng = random.Random(seed)
    words = ("the", "cat's", " sat\n", "naïve", "1234", "你好", "🤖", " on", " a mat,", "\n\n", " WE'LL", " tokens")
    return ["".join(rng.choices(words, k=size // 5)).encode() for _ in range(n_documents)]


@contextmanager
def mounted(*arguments: str) -> Iterator[Path]:
    """A mount that goes away again. arguments: what `mount` takes before the directory."""
    top = Path(tempfile.mkdtemp(prefix="tokmill-faults-"))
    try:
        subprocess.run(["mount", *arguments, str(top)], check=True, capture_output=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", "-l", str(top)], check=True)
    finally:
        top.rmdir()
