"""Files that tokmill reads and options that it takes, mutated: whatever they hold, no error is called a fault of tokmill.

`make fuzz FUZZ_S=600 FUZZ_SEED=1` goes on for so many seconds. Each case is made by its number alone, which a failure names.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import damaged_corpora
from support.corpora import some_documents
from support.faults import FOUND
from support.runs import TINY, run_in_process, tokenize_directly
from support.small_tokenizers import MAKERS, path_of

from tokmill.cli import app
from tokmill.core.errors import TokmillError, error_classes
from tokmill.core.options import PlanOptions, TokenizeOptions, options_of
from tokmill.core.system.refusals import explained
from tokmill.formats import FORMATS

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("FUZZ_S", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASE_S = 60
"""Longest a case may take."""
MOST_BYTES = 2 << 30
"""Of resident memory, whatever a file says."""
CODES = {0, 130, *(cls.exit_code for cls in error_classes().values())}
ODD = ["", "0", "-1", "1e999", "nan", "None", "\u202e", "'", '"', "\\", "a" * 5000, "[", "{}", "../x", "/dev/null", "1T", "\ud800"]
ODD += [
    "\N{BELL}",
    "*",
    "**",
    "[!",
    "http://",
    "s3://",
    "hf://a",
    "-",
    "--",
    "~",
    "%",
    "NaN",
    "0x10",
    "1_000",
    "\u0664",
    "1/0",
    "0/1",
]
NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"4294967296",
    b"9223372036854775808",
    b"1e400",
    b"null",
    b'""',
    b"[]",
    b"{}",
    b"NaN",
)
BINARY = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return valid bytes with a few things changed: bits, lengths, pieces of themselves, numbers."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, n = rng.randrange(len(made) + 1), rng.choice((1, 2, 4, 8, 100))
        digits = [i for i, byte in enumerate(made[at : at + 2000], at) if 48 <= byte < 58]
        kind = rng.randrange(7)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[at : at + n]
        elif kind == 2:
            made[at:at] = made[rng.randrange(len(made) + 1) :][:n]
        elif kind == 3:
            del made[at:]
        elif kind == 4:
            made[at : at + n] = bytes([rng.choice(BINARY)]) * n
        elif kind == 5 and digits:
            end = begin = rng.choice(digits)
            while end < len(made) and 48 <= made[end] < 58:
                end += 1
            made[begin:end] = rng.choice(NUMBERS)
        else:
            made[at:at] = rng.choice((b"\0", b"\n", b"\xff\xfe", b'"', b"[" * 3000, b"\xed\xa0\x80", b"%s", b"\x1b[31m"))
    return bytes(made)


@contextmanager
def bounded() -> Iterator[None]:
    """Raise AssertionError in a case that takes too long."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {CASE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(CASE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: str) -> None:
    """Carry out a command that must not be surprised; `unforeseen` is turned into its exception by `fuzzed`."""
    code = app.run(list(arguments))
    assert code in CODES, f"exit code {code} of {arguments}"


def surprised(error: Exception, *_: object) -> int:
    """Stand in for what the command line does with an error that nothing foresaw."""
    if "unforeseen" in explained(error, "", next_step="").what:
        raise error
    return 1


def run(path: Path, out: Path, **options: object) -> None:
    """Tokenize in this process; what is raised must be foreseen."""
    try:
        run_in_process([path], out, TINY, val_fraction=0.2, **options)
    except TokmillError:
        return
    except Exception as error:  # noqa: BLE001  raised again unless it has a plain meaning
        surprised(error)


class Kinds:
    """Valid files of every kind, and what is done with mutated ones."""

    def __init__(self, top: Path) -> None:
        self.top = top
        corpus = top / "corpus.txt"
        corpus.write_bytes(b"<|endoftext|>".join(some_documents(40, 200)))
        self.inputs = {name: data for name, data in damaged_corpora.files().items() if data}
        self.outputs: list[Path] = []
        for name in FORMATS:
            out = top / f"out-{name}"
            tokenize_directly(out, corpus, format=name)
            self.outputs.append(out)
        self.corpus = corpus
        self.half = top / "half"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tokmill.output.directory.publish_files", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_in_process([corpus], self.half, TINY, val_fraction=0.2)

    def input(self, work: Path, rng: random.Random) -> None:
        name, data = rng.choice(sorted(self.inputs.items()))
        path = work / Path(name).name
        path.write_bytes(mutated(data, rng))
        run(path, work / "out", on_error=rng.choice(("stop", "skip")))

    def output(self, work: Path, rng: random.Random) -> None:
        shutil.copytree(rng.choice(self.outputs), out := work / "out")
        self._mutate_one(out, rng)
        verb = rng.choice(("verify", "inspect", "report", "merge", "convert", "reshard", "finalize"))
        more = {
            "report": ["--out", str(work / "report.html")],
            "merge": [str(self.outputs[0]), "--out", str(work / "new")],
            "convert": ["--format", rng.choice(sorted(FORMATS)), "--out", str(work / "new")],
            "reshard": ["--shard-tokens", "500", "--out", str(work / "new")],
        }
        command(verb, str(out), *more.get(verb, []))

    def begun(self, work: Path, rng: random.Random) -> None:
        shutil.copytree(self.half, out := work / "out")
        self._mutate_one(out, rng)
        if rng.randrange(3):
            run(self.corpus, out)
        else:
            command(rng.choice(("verify", "inspect", "finalize")), str(out))

    def tokenizer(self, work: Path, rng: random.Random) -> None:
        path = work / "tokenizer.json"
        path.write_bytes(mutated(path_of(rng.choice(sorted(MAKERS))).read_bytes(), rng))
        run(self.corpus, work / "out", tokenizer=str(path))

    def ranks(self, work: Path, rng: random.Random) -> None:
        path = work / "some.tiktoken"
        path.write_bytes(mutated(b"".join(b"%s %d\n" % (bytes([65 + i]), i) for i in range(26)), rng))
        run(self.corpus, work / "out", tokenizer=str(path))

    def settings(self, work: Path, rng: random.Random) -> None:
        (work / "tokmill.toml").write_bytes(
            mutated(b'seed = 1\nval-fraction = 0.1\n[tokenize]\nout = "x"\nglob = ["*.txt"]\n', rng)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(work)
            command(rng.choice(("tokenize", "plan", "verify", "doctor")), "--show-config")

    def option(self, work: Path, rng: random.Random) -> None:
        names = sorted(set(options_of(TokenizeOptions)) - {"ray"})
        typed = [f"--{rng.choice(names).replace('_', '-')}={rng.choice(ODD)}" for _ in range(rng.randrange(1, 4))]
        command(rng.choice(("tokenize", "plan")), str(self.corpus), *typed, "--show-config")
        planned = sorted(options_of(PlanOptions))
        try:
            options = {rng.choice(planned): rng.choice(ODD)}
            run_in_process([self.corpus], work / "out", TINY, **options)
        except TokmillError:
            return
        except Exception as error:  # noqa: BLE001  raised again unless it has a plain meaning
            surprised(error)

    @staticmethod
    def _mutate_one(out: Path, rng: random.Random) -> None:
        # Indexes and manifests before tokens, in which every byte is a number.
        files = sorted((p for p in out.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size > 20_000, str(p)))
        path = rng.choice(files)
        path.write_bytes(mutated(path.read_bytes(), rng))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("kind", ["input", "output", "begun", "tokenizer", "ranks", "settings", "option"])
def test_nothing_is_unforeseen(
    kind: str, kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_fail_unforeseen", surprised)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    fuzz: Callable[[Path, random.Random], None] = getattr(kinds, kind)
    found: dict[str, str] = {}
    end, number = time.monotonic() + SECONDS / 7, 0
    while time.monotonic() < end:
        number += 1
        work = tmp_path / "work"
        work.mkdir()
        try:
            with bounded():
                fuzz(work, random.Random(f"{SEED} {kind} {number}"))
        except Exception as error:  # noqa: BLE001  every kind of it is told once
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            found.setdefault(f"{type(error).__name__} at {place}", f"FUZZ_SEED={SEED}, case {number}: {str(error)[:300]}")
        shutil.rmtree(work)
        capsys.readouterr()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["victim"]
        assert victim.read_bytes() == b"precious"
    FOUND.append(f"{kind}: {number} cases")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 < MOST_BYTES
    assert not found, f"of {number} cases:\n" + "\n".join(f"{what}\n    {how}" for what, how in found.items())
