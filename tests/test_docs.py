"""Every command in the documentation is run: the blocks of a page one behind the other, in a directory with corpora.

A block that cannot run here (a network, a cluster, a GPU) has the reason in the line above it, `<!-- not run: reason -->`, and is
counted. One that is to fail has `<!-- exit code N -->` there.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import small_tokenizers
from support.commands import called, clean_environment, words_of
from support.corpora import write_corpus

import tokmill
from tokmill.cli import app, command, settings
from tokmill.cli.examples import EXAMPLES
from tokmill.core.errors import error_classes
from tokmill.core.manifest import Manifest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if not {"reference", "_build"} & {*page.relative_to(ROOT).parts}
)
FENCE = re.compile(
    r"^(?:<!-- (?:not run: (?P<reason>[^>]+?)|exit code (?P<code>\d+)) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN = {"sh", "console", "python"}
MOST_LEFT_OUT = 26
"""Blocks that are shown and not run; more need a reason to be here."""


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    code: int
    reason: str | None
    line: int


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(
            found["kind"],
            found["text"],
            int(found["code"] or 0),
            found["reason"],
            text[: found.start()].count("\n") + 1 + bool(found["reason"] or found["code"]),
        )
        for found in FENCE.finditer(text)
    ]


TEXTS = [f"Document {i}. {'Some words, and then some more of them. ' * (i % 13)}Ünïcödé.\n" for i in range(400)]


def make_corpora(place: Path) -> None:
    """What the pages speak of."""
    for name, texts in (
        ("corpus.txt", TEXTS),
        ("more.txt", TEXTS[:5]),
        ("new.txt", ["something new", "and newer"]),
        ("monday.txt", TEXTS[:50]),
        ("tuesday.txt", TEXTS[50:90]),
        ("texts/a.txt", TEXTS[:9]),
        ("texts/b.md", TEXTS[9:12]),
        ("part-0/a.txt", TEXTS[:30]),
        ("part-1/b.txt", TEXTS[30:60]),
        ("src/one.py", ["print(1)\n"]),
        ("src/deep/two.py", ["print(2)\n"]),
        ("web/a.txt", TEXTS[:200]),
        ("books/a.txt", ["".join(TEXTS[200:220])]),
        ("books/b.txt", ["".join(TEXTS[220:240])]),
    ):
        write_corpus(place / name, texts)
    lines = "".join(json.dumps({"text": text, "body": text[:40]}) + "\n" for text in TEXTS)
    (place / "corpus.jsonl").write_text(lines)
    (place / "code").mkdir()
    (place / "code" / "a.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in TEXTS[240:300]))
    recipe = next(block for block in blocks("docs/howto/mixture.md") if block.kind == "toml")
    (place / "recipe.toml").write_text(recipe.text)
    (place / "broken.jsonl").write_text(lines[:2000].rpartition("\n")[0] + '\n{"text": 5}\nnot JSON\n{"text": "good"}\n')
    (place / "more.jsonl.zst").write_bytes(zstd.compress(lines.encode()))
    (place / "lines.gz").write_bytes(gzip.compress(lines.encode()))
    (place / "dump.gz").write_bytes(gzip.compress("\n\n".join(TEXTS[:40]).encode()))
    for directory, column, part in (
        ("fineweb", "text", 0),
        ("fineweb", "text", 1),
        ("fineweb-new", "text", 2),
        ("shards", "content", 0),
    ):
        (place / directory).mkdir(exist_ok=True)
        pq.write_table(pa.table({column: TEXTS[part * 100 : part * 100 + 100]}), place / directory / f"000_{part:05d}.parquet")
    with tarfile.open(place / "webdataset.tar.gz", "w:gz") as archive:
        for i, text in enumerate(TEXTS[:5]):
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    (place / "llama").mkdir()
    made = small_tokenizers.path_of("llama3").read_text().replace("<|endoftext|>", "<|end_of_text|>")
    (place / "llama" / "tokenizer.json").write_text(made)
    (place / "examples").symlink_to(ROOT / "examples")


def make_programs(place: Path) -> None:
    """`python` and `tokmill` as the pages call them."""
    place.mkdir()
    for name, call in (("python", ""), ("tokmill", "-m tokmill")):
        (place / name).write_text(f'#!/bin/sh\nexec {sys.executable} -P {call} "$@"\n')
        (place / name).chmod(0o755)


LONG = {"docs/howto/llama.md", "docs/howto/trainers.md", "docs/howto/parquet.md"}


def lines_of(text: str) -> list[str]:
    """The lines of a block; all of it as one, where a line may need what another one has done in the shell."""
    whole = re.sub(r"\\\n *", "", text)
    return [whole] if re.search(r"<<|[$]|^(?:for|if|while|cd|export) |^[ }]", whole, re.MULTILINE) else whole.splitlines()


def run_block(block: Block, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a block up to the first line that fails: commands of tokmill in this process, everything else in one of its own."""
    done = subprocess.CompletedProcess("", 0, "", "")
    for line in [block.text] if block.kind == "python" else lines_of(block.text):
        if block.kind == "python" or (typed := words_of(line)) is None:
            program = [sys.executable, "-c", line] if block.kind == "python" else ["bash", "-euo", "pipefail", "-c", line]
            done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
        else:
            for words in typed:
                done = called(*words, NO_COLOR="1")
        if done.returncode:
            break
    return done


@pytest.mark.usefixtures("workers_in_process")
@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in PAGES])
def test_every_block_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    make_corpora(work)
    make_programs(tmp_path / "bin")
    # Threads that wait for each other by turning would take the cores of the tests beside this one.
    environment = clean_environment(NO_COLOR="1", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"
    monkeypatch.chdir(work)
    for block in blocks(page):
        if block.reason or block.kind not in RUN:
            continue
        done = run_block(block, environment)
        assert done.returncode == block.code, f"{page}:{block.line}\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_a_block_that_shows_tokmill_is_run_or_says_why_not() -> None:
    shown = [(f"{page}:{block.line}", block) for page in PAGES for block in blocks(page) if "tokmill " in block.text]
    assert [place for place, block in shown if not block.reason and block.kind not in RUN] == []


def test_what_is_not_run_is_little() -> None:
    found = [block for page in PAGES for block in blocks(page) if block.kind in RUN]
    left_out = [block for block in found if block.reason]
    assert len(left_out) <= MOST_LEFT_OUT
    assert len(found) - len(left_out) > 35


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra docs is not installed: make docs")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
        str(ROOT / "docs"),
        str(site),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for page in ("index", "tutorial", "reference/commands", "explanation/memory"):
        assert (site / f"{page}.html").is_file()


def test_the_reference_has_every_command_option_exit_code_and_public_name(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), str(tmp_path)], env=clean_environment(), check=True)
    commands, codes, python, manifest = (
        (tmp_path / f"{name}.md").read_text() for name in ("commands", "exit-codes", "python", "manifest")
    )
    for knob in list(settings.knobs(command.root)):
        section = commands[commands.index(f"## tokmill {' '.join(knob.command)}\n") :].split("\n## ")[0]
        assert f"--{knob.key}" in section, knob
    assert {name for name, cls in error_classes().items() if f"| {cls.exit_code} | `{name}` |" not in codes} == set()
    assert {name for name in tokmill.__all__ if f"## tokmill.{name}" not in python} == set()
    assert {name for name in Manifest.__struct_fields__ if f"| `{name}` |" not in manifest} == set()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_help_of_every_command_ends_with_an_example_that_it_takes_and_a_page_that_is_there(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, page = EXAMPLES[name]
    assert app.run([*name.split(), *arguments.split(), "--show-config"]) == 0
    assert (ROOT / page).is_file()
    capsys.readouterr()
    assert app.run([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Example:  tokmill {name} {arguments}".rstrip() in said
    assert f"Page:     {page}\n" in said
    assert {*EXAMPLES} == {" ".join(path) for path in command_names()}


def command_names() -> list[tuple[str, ...]]:
    """The names of all commands, those of groups with their group."""
    found: list[tuple[str, ...]] = []
    for name, made in command.root.commands.items():
        found += [(name, each) for each in made.commands] if isinstance(made, click.Group) else [(name,)]
    return found


def test_the_pages_speak_of_every_command_and_of_no_option_that_does_not_exist() -> None:
    knobs = list(settings.knobs(command.root))
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert {" ".join(knob.command) for knob in knobs if f"tokmill {' '.join(knob.command)}" not in text} == set()
    typed = "\n".join(block.text for page in PAGES for block in blocks(page))
    lines = re.findall(r"^ *tokmill .*", typed, re.MULTILINE)
    options = {option for line in lines for option in re.findall(r"(?<= )--[a-z][a-z-]+", line)}
    assert options - {f"--{knob.key}" for knob in knobs} - {"--show-config"} == set()


def test_pictures_are_those_that_their_program_draws() -> None:
    program = "import pictures; [print(name, draw(), sep='\\0', end='\\0') for name, draw in pictures.PICTURES.items()]"
    drawn = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "docs", capture_output=True, check=True, text=True).stdout
    names = drawn.split("\0")[:-1]
    assert {name: (ROOT / "docs" / name).read_text() for name in names[::2]} == dict(zip(names[::2], names[1::2], strict=True))
    assert len(names) == 6


def shown_for(trainer: str, out: Path) -> dict[str, object]:
    """What the Python block of a trainer's section defines, with arrays in place of tensors."""
    page = (ROOT / "docs/howto/trainers.md").read_text()
    section = page[page.index(f"\n## {trainer}\n") :].split("\n## ", 2)[1]
    found = next(block for block in FENCE.finditer(section) if block["kind"] == "python")
    stand_in = SimpleNamespace(
        from_numpy=lambda array: SimpleNamespace(to=lambda _device: array, array=array),
        utils=SimpleNamespace(data=SimpleNamespace(IterableDataset=object)),
    )
    write_corpus(out.parent / "corpus.txt", TEXTS)
    tokmill.tokenize(out.parent / "corpus.txt", out, val_fraction=0.1, threads=1)
    defined: dict[str, object] = {"torch": stand_in, "tokmill": tokmill}
    exec(found["text"], defined)
    return defined


def test_the_loader_for_nanochat_goes_on_where_it_was(tmp_path: Path) -> None:
    batches_of: Any = shown_for("nanochat", tmp_path / "out")["batches_of"]
    whole = [(x.tolist(), y.tolist(), state) for x, y, state in islice(batches_of(tmp_path / "out", "train", 2, 8, "cpu", 0, 2), 6)]
    again = batches_of(tmp_path / "out", "train", 2, 8, "cpu", 0, 2, whole[2][2])
    assert [(x.tolist(), y.tolist()) for x, y, _ in islice(again, 3)] == [each[:2] for each in whole[3:]]
    other = [x.tolist() for x, _, _ in islice(batches_of(tmp_path / "out", "train", 2, 8, "cpu", 1, 2), 6)]
    assert other != [x for x, _, _ in whole]


def test_the_dataset_for_torchtitan_goes_on_where_it_was(tmp_path: Path) -> None:
    tokens: Any = shown_for("torchtitan", tmp_path / "out")["Tokens"]
    first, second = (tokens(tmp_path / "out", 8, 0, 2) for _ in range(2))
    rows = iter(first)
    for _ in range(3):
        next(rows)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for (x, y), (same_x, same_y) in islice(zip(rows, second, strict=False), 5):
        assert (x["input"].array == same_x["input"].array).all()
        assert (y.array == same_y.array).all()
        assert (x["input"].array[1:] == y.array[:-1]).all()
