"""Files that tokmill reads and options that it takes, mutated: whatever they hold, no error is called a fault of tokmill.

`make fuzz FUZZ_S=600 FUZZ_SEED=1` goes on for so many seconds. A case is made by its seed, kind and number alone, which a failure
names; FUZZ_CASE tries that one. Commands are carried out whole, in this process: their children answer here, too.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import click
import pytest
from support.commands import ends_in_time
from support.corpora import some_documents
from support.direct_child import WHERE, DirectChild, is_foreseen
from support.faults import FOUND
from support.mutation import SETTINGS, an_input, mutated, mutated_json, mutated_state, valid_files
from support.runs import TINY, plan_parts, run_in_process, tokenize_directly
from support.small_tokenizers import MAKERS, path_of

import tokmill
from tokmill.cli import app
from tokmill.cli.command import Parameter, root
from tokmill.core.errors import TokmillError, error_classes
from tokmill.core.events import Failed
from tokmill.core.options import Option
from tokmill.core.system.process import failed_event
from tokmill.formats import FORMATS

SECONDS = float(os.environ.get("FUZZ_S", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASE_S = 60
"""Longest a case may take."""
MOST_BYTES = 400 << 20
"""By which a case may raise the most of resident memory, whatever a file says."""
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
ODD += [
    "\0",
    "{a,b",
    "a.",
    ".a",
    "a..b",
    "$x",
    "9" * 400,
    "18446744073709551616",
    "-9223372036854775809",
    "0.1e-400",
    "360MiB",
    "é",
]
GOOD: dict[str, tuple[str, ...]] = {
    "glob": ("*", "*.txt", "!*.txt", "*.{txt,csv}", "**/*"),
    "text_key": ("text", "id", "meta.text", "text.text", "more", "a.b"),
    "separator": ("\n", "\\n\\n", "a", "aa", "<|endoftext|>", "\0"),
    "eot_token": ("<|endoftext|>", "</s>", "<|im_start|>"),
    "shard_tokens": ("7", "1000", "1M"),
    "val_fraction": ("0", "0.2", "0.9999"),
    "max_skipped": ("0", "3"),
    "memory": ("360MiB", "1GiB", "64GiB"),
    "threads": ("1", "2", "3"),
    "part": ("0/1", "0/2", "1/2", "5/7"),
    "document": ("1", "2", "40"),
    "tokens": ("0", "5"),
    "audit": ("0", "1"),
    "eot_id": ("0", "5", "701"),
}
LEFT_OUT = {"ray", "help", "show_config", "base_url"}
"""Options that start a cluster or ask the network."""


@contextmanager
def bounded() -> Iterator[None]:
    """Raise AssertionError in a case that takes too long or too much memory; end a process that cannot even do that."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(3 * CASE_S, exit=True, file=sys.__stderr__ or 2)
    try:
        with ends_in_time(CASE_S):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown << 10 < MOST_BYTES, f"memory grew by {grown >> 10} MiB"


SURPRISES: list[BaseException] = []
"""What nothing foresaw in a worker, which tells of it as of any error."""


def told_by_a_worker(error: BaseException) -> Failed:
    """Stand in for what a worker does with an error."""
    if not isinstance(error, Exception) or not is_foreseen(error):
        SURPRISES.append(error)
    return failed_event(error)


def command(*words: str) -> None:
    """Carry out a command that must not be surprised; what nothing foresaw is raised."""
    SURPRISES.clear()
    code = app.run([*words])
    if SURPRISES:
        raise SURPRISES[0]
    assert code in CODES, f"exit code {code} of {words}"


def surprised(error: Exception, *_: object) -> int:
    """Stand in for what the command line does with an error that nothing foresaw."""
    if not is_foreseen(error):
        raise error
    return 1


def commands() -> dict[str, click.Command]:
    """Every command by its words."""
    found: dict[str, click.Command] = {}
    for name, each in root.commands.items():
        found |= {f"{name} {inner}": of for inner, of in each.commands.items()} if isinstance(each, click.Group) else {name: each}
    return found


def options(name: str) -> list[Option]:
    """Return the options of a command."""
    found = [each.about for each in commands()[name].params if isinstance(each, Parameter)]
    return [each for each in found if each.name not in LEFT_OUT]


def typed(option: Option, rng: random.Random, *, odd: float) -> str:
    """Return an option as it is typed; odd: how likely its value is a strange one."""
    if option.kind is bool:
        return option.flag
    good = option.choices or option.examples or GOOD.get(option.name, ("0", "1", "2"))
    if option.name == "tokenizer":
        good = tuple(str(path_of(name)) for name in MAKERS)
    value = (
        rng.choice(ODD) if rng.random() < odd or option.name in ("stage", "events", "out", "val", "source") else rng.choice(good)
    )
    return f"{option.flag}={value}"


def some_options(name: str, rng: random.Random, *, most: int, odd: float, without: str = "") -> list[str]:
    """Return some options of a command, without those whose names are in `without`."""
    known = [each for each in options(name) if each.name not in ("out", "verbose", *without.split())]
    return [typed(each, rng, odd=odd) for each in rng.sample(known, k=min(len(known), rng.randrange(most + 1)))]


class Kinds:
    """What is fuzzed. Each method carries out one case in an empty working directory `work`."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.corpus = top / "corpus.txt"
        self.corpus.write_bytes(b"<|endoftext|>".join(some_documents(40, 200)))
        self.tokenizer_file = str(path_of("gpt2"))

    @cached_property
    def files(self) -> dict[str, bytes]:
        return valid_files()

    @cached_property
    def outputs(self) -> list[Path]:
        for name in FORMATS:
            tokenize_directly(self.top / f"out-{name}", self.corpus, format=name, tokenizer=self.tokenizer_file)
        skipping = self.top / "skipping.jsonl"
        skipping.write_bytes(b'{"text": "one"}\n{"text": 1}\n[\n' * 9)
        tokenize_directly(self.top / "out-skipped", skipping, on_error="skip", tokenizer=self.tokenizer_file)
        return sorted(self.top.glob("out-*"))

    @cached_property
    def unfinished(self) -> list[Path]:
        """An interrupted run, one that skips, and one in parts."""
        ends = {"corpus.txt": "stop", "bad.txt": "skip"}
        (self.top / "bad.txt").write_bytes(self.corpus.read_bytes()[:4000] + b"\xff")
        for name, policy in ends.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tokmill.output.directory.publish_files", _interrupted)
                with pytest.raises(KeyboardInterrupt):
                    run_in_process(
                        [self.top / name],
                        self.top / f"half-{name}",
                        TINY,
                        val_fraction=0.2,
                        on_error=policy,
                        tokenizer=self.tokenizer_file,
                    )
        plan_parts([self.corpus], self.top / "half-parts", 2, val_fraction=0.2, tokenizer=self.tokenizer_file)
        return sorted(self.top.glob("half-*"))

    def tokenize(self, inputs: list[str], *words: str, verb: str = "tokenize") -> None:
        known = [] if any(word.startswith("--tokenizer") for word in words) else ["--tokenizer", self.tokenizer_file]
        command(verb, *inputs, "--out", "out", *known, *words)

    def input(self, work: Path, rng: random.Random) -> None:
        """A corpus of any kind, tokenized, planned, and compared with an output of another."""
        names = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            name, data = an_input(self.files, rng)
            (work / name).write_bytes(data)
            names.append(name)
        policy = ["--on-error=skip"] * rng.randrange(2)
        more = some_options("tokenize", rng, most=3, odd=0, without="on_error fresh append part events tokenizer stage max_skipped")
        verb = rng.choice(("tokenize",) * 4 + ("plan", "verify"))
        if verb == "verify":
            command("verify", str(rng.choice(self.outputs)), "--source", *names)
            return
        self.tokenize(names, *policy, *(word for word in more if verb == "tokenize" or not word.startswith("--force")), verb=verb)
        if verb == "tokenize" and (work / "out" / "manifest.json").exists():
            command("verify", "out", "--source", *names, "--audit=1")

    def output(self, work: Path, rng: random.Random) -> None:
        """A complete output in which a file was changed, under every command that reads one."""
        shutil.copytree(rng.choice(self.outputs), out := work / "out")
        self._mutate_one(out, rng)
        verb = rng.choice(("verify", "inspect", "report", "merge", "convert", "reshard", "finalize", "open", "append", "repair"))
        if verb == "open":
            self._open(out)
        elif verb == "append":
            self.tokenize([str(self.corpus)], "--append", "--val-fraction=0.2")
        elif verb == "repair":
            command("verify", "out", "--repair", "--source", str(self.corpus))
        else:
            new = {"merge": [str(rng.choice(self.outputs)), "-o", "new"], "reshard": ["-o", "new"]}
            new["convert"] = [f"--format={rng.choice(sorted(FORMATS))}", "-o", "new"]
            more = some_options(verb, rng, most=2, odd=0.1, without="format events stage source repair")
            command(verb, "out", *new.get(verb, []), *more)

    def begun(self, work: Path, rng: random.Random) -> None:
        """What an interrupted run left, changed, and gone on with."""
        shutil.copytree(before := rng.choice(self.unfinished), out := work / "out")
        self._mutate_one(out, rng)
        source = self.top / "bad.txt" if before.name == "half-bad.txt" else self.corpus
        verb = rng.choice(("tokenize", "tokenize", "plan", "verify", "inspect", "finalize", "report"))
        if verb in ("tokenize", "plan"):
            policy = ["--on-error=skip"] * (source != self.corpus)
            part = ["--part=0/2"] * (before.name == "half-parts" and verb == "tokenize")
            self.tokenize([str(source)], "--val-fraction=0.2", *policy, *part, verb=verb)
        else:
            command(verb, "out")

    def tokenizer(self, work: Path, rng: random.Random) -> None:
        data = path_of(rng.choice(sorted(MAKERS))).read_bytes()
        made = mutated(data, rng) if rng.randrange(3) == 0 else mutated_json(data, rng)
        (work / "tokenizer.json").write_bytes(made)
        if rng.randrange(4) == 0:
            (work / "tokenizer_config.json").write_bytes(
                mutated_json(b'{"eos_token": {"content": "</s>"}, "add_bos_token": true}', rng)
            )
        name = rng.choice(("tokenizer.json", str(work)))
        self.tokenize([str(self.corpus)], f"--tokenizer={name}", verb=rng.choice(("tokenize", "tokenize", "plan")))

    def ranks(self, work: Path, rng: random.Random) -> None:
        (work / "some.tiktoken").write_bytes(mutated(b"".join(b"%s %d\n" % (bytes([65 + i]) * 4, i) for i in range(26)), rng))
        self.tokenize([str(self.corpus)], "--tokenizer=some.tiktoken")

    def settings(self, work: Path, rng: random.Random) -> None:
        (work / "tokmill.toml").write_bytes(mutated(SETTINGS, rng))
        verb = rng.choice(sorted(commands()))
        if rng.randrange(3):
            command(*verb.split(), "--show-config")
        else:
            self.tokenize([str(self.corpus)], verb=rng.choice(("tokenize", "plan")))

    def option(self, work: Path, rng: random.Random) -> None:
        """Every option of every command, with strange values, on sound files."""
        verb = rng.choice(sorted(set(commands()) - {"doctor"}))
        words = some_options(verb, rng, most=4, odd=0.5) + ["--show-config"] * (rng.randrange(6) == 0)
        if verb in ("tokenize", "plan"):
            self.tokenize([rng.choice((str(self.corpus), "-", *ODD))], *words, verb=verb)
            return
        sound = str(rng.choice(self.outputs))
        if "--repair" in words or rng.randrange(2):
            shutil.copytree(sound, "sound")
            sound = "sound"
        bare = next(iter(sorted(Path(sound).glob("*.bin"))), Path(sound))
        operand = rng.choice((sound, str(bare), *ODD[:20]) if rng.randrange(3) == 0 else (sound,))
        asked = [each.flag for each in options(verb) if each.is_required and each.name != "out"]
        given = (
            [f"--format={rng.choice(sorted(FORMATS))}"] if "--format" in asked and not any("--format=" in w for w in words) else []
        )
        out = ["-o", "new"] if any(each.name == "out" for each in options(verb)) else []
        command(*verb.split(), *([] if verb == "vocab list" else [operand]), *out, *given, *words)

    @staticmethod
    def _open(out: Path) -> None:
        try:
            with tokmill.open(str(out)) as data:
                for side in ("train", "val"):
                    list(data.documents(side))
                next(data.batches(batch=2, block=8))
        except TokmillError:
            pass

    @staticmethod
    def _mutate_one(out: Path, rng: random.Random) -> None:
        # Indexes and manifests before tokens, in which every byte is a number.
        files = sorted((p for p in out.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size > 20_000, str(p)))
        sealed = [p for p in files if p.name in ("manifest.json", "journal", "plan")]
        if sealed and rng.randrange(2):
            path = rng.choice(sealed)
            path.write_bytes(mutated_state(path, rng))
        else:
            path = rng.choice(files)
            path.write_bytes(mutated(path.read_bytes(), rng))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _no_network(*_: object) -> None:
    raise ConnectionRefusedError(111, "there is no network here")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Children answer here, nothing waits for a disk or the network, and an error that nothing foresaw is raised."""
    for name in WHERE:
        monkeypatch.setattr(name, DirectChild)
    monkeypatch.setattr(app, "_fail_unforeseen", surprised)
    monkeypatch.setattr("tokmill.run.worker.failed_event", told_by_a_worker)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("os.fdatasync", lambda _: None)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    monkeypatch.setenv("HOME", str(tmp_path / "work"))


def cases(kind: str, kinds: Kinds, top: Path, numbers: Iterator[int], after: Callable[[], object]) -> tuple[int, dict[str, str]]:
    """Try cases of a kind. Return how many, and by error and place what was found."""
    (top / "victim").write_bytes(b"precious")
    found: dict[str, str] = {}
    number = 0
    for number in numbers:
        (work := top / "work" / "inner").mkdir(parents=True)
        os.chdir(work)
        try:
            with bounded():
                getattr(kinds, kind)(work, random.Random(f"{SEED} {kind} {number}"))
        except Exception as error:  # noqa: BLE001  every kind of it is told once
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            found.setdefault(f"{type(error).__name__} at {place}", f"FUZZ_SEED={SEED}, case {number}: {str(error)[:300]!a}")
        os.chdir(top)
        shutil.rmtree(top / "work")
        after()
        assert sorted(p.name for p in top.iterdir()) == ["victim"], f"{kind}, case {number}"
        assert (top / "victim").read_bytes() == b"precious"
    return number, found


def for_seconds(seconds: float) -> Iterator[int]:
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        yield number


KINDS = ["input", "output", "begun", "tokenizer", "ranks", "settings", "option"]


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("in_process")
def test_nothing_is_unforeseen(kind: str, kinds: Kinds, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = os.environ.get("FUZZ_CASE")
    numbers = iter([int(only)]) if only else for_seconds(SECONDS / len(KINDS))
    number, found = cases(kind, kinds, tmp_path, numbers, capsys.readouterr if not only else lambda: None)
    FOUND.append(f"{kind}: {number} cases")
    assert not found, f"of {number} cases:\n" + "\n".join(f"{what}\n    {how}" for what, how in found.items())


@pytest.mark.usefixtures("in_process")
def test_a_planted_fault_is_found(
    kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad record that surprises the reader: told once, with its place."""

    stumbled: list[object] = []

    def stumble(*record: object) -> None:
        stumbled.append(record)
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("tokmill.read.row_batcher.RowBatcher.reject", stumble)
    _, found = cases("input", kinds, tmp_path, itertools.takewhile(lambda _: not stumbled, itertools.count(1)), capsys.readouterr)
    assert any("planted" in told for told in found.values()), found
