"""The command that a report shows makes the same files again, however the output was made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import small_tokenizers
from support.commands import called, clean_environment, words_of
from support.corpora import write_corpus
from support.oracle import EOT, gpt2
from support.outputs import collect_data

import tokmill
from tokmill.core.errors import UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.records import text_to_path
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.reports.reporting import make_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers_in_process")
OPTIONS: dict[str, Any] = {"threads": 1, "val_fraction": 0.3}


def text_of(page: str) -> str:
    """What a browser shows of a page."""
    found: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = found.append  # type: ignore[method-assign, assignment]
    parser.feed(page)
    return "".join(found)


def command_of(directory: Path) -> str:
    """What the report of an output says is to be typed."""
    told = text_of(make_page(collect_data(directory)))
    typed = told[told.index("how to make it again") :]
    found = re.search(r"((?:for part in|tokmill) .*?)\n*Everything that decides", typed, re.DOTALL)
    assert found
    return found[1]


def run_again(directory: Path, again: Path) -> None:
    """Type it, for another directory."""
    command = command_of(directory)
    assert str(directory) in command
    command = command.replace(str(directory), str(again))
    if (lines := words_of(command)) is not None:
        for words in lines:
            done = called(*words)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
        return
    command = command.replace("tokmill ", f"{sys.executable} -m tokmill ")
    done = subprocess.run(["sh", "-c", command], env=clean_environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def corpus(path: Path, word: str) -> Path:
    return write_corpus(path, [f"{word} number {i}. " * (i % 9 + 1) for i in range(40)])


def plain(top: Path) -> None:
    tokmill.tokenize(corpus(top / "a.txt", "One"), top / "o", **OPTIONS)


def other_options(top: Path) -> None:
    lines = [json.dumps({"meta": {"body": f"Line {i}. " * (i % 5)}}) for i in range(60)]
    (top / "a.data").write_text("\n".join([*lines, "{}"]) + "\n")
    tokmill.tokenize(
        top / "a.data", top / "o", input_format="jsonl", text_key="meta.body", on_error="skip", keep_empty=True, seed=5,
        eot="before", dtype="uint32", encoding_errors="replace", shard_tokens=200, shard_documents=True, threads=1,
        val_fraction=0.123456789,
    )  # fmt: skip


def other_separator(top: Path) -> None:
    (top / "a b.txt").write_text("One\ttwo\n\nthree " * 50)
    tokmill.tokenize(top / "a b.txt", top / "o", separator="\\n\\n", format="llmc", shard_tokens=100, drop_tail=True, **OPTIONS)


def appended(top: Path) -> None:
    plain(top)
    tokmill.tokenize(corpus(top / "more.txt", "More"), top / "o", append=True, **OPTIONS)


def with_inputs_for_validation(top: Path) -> None:
    for name in ("a", "b", "val"):
        corpus(top / f"{name}.txt", name)
    tokmill.tokenize([top / "a.txt", top / "b.txt"], top / "o", val_input=top / "val.txt", threads=1)


def two(top: Path, **other: Any) -> list[Path]:
    tokmill.tokenize(corpus(top / "a.txt", "One"), top / "a", **OPTIONS)
    tokmill.tokenize(corpus(top / "b.txt", "Two"), top / "b", **OPTIONS | other)
    return [top / "a", top / "b"]


def merged(top: Path) -> None:
    tokmill.merge(two(top), top / "o")


def merged_of_other_splits(top: Path) -> None:
    tokmill.merge(two(top, val_fraction=0.1, seed=3), top / "o", allow_other_split=True)


def merged_and_appended(top: Path) -> None:
    merged(top)
    tokmill.tokenize(corpus(top / "more.txt", "More"), top / "o", append=True, **OPTIONS)


def merged_and_resharded(top: Path) -> None:
    tokmill.merge(two(top), top / "m")
    tokmill.reshard(top / "m", top / "o", shard_tokens=150, shard_documents=True)


def converted(top: Path) -> None:
    tokmill.tokenize(corpus(top / "a.txt", "One"), top / "a", **OPTIONS)
    tokmill.convert(top / "a", top / "o", format="llmc", to_eot="after", shard_tokens=200)


def converted_and_appended(top: Path) -> None:
    converted(top)
    more = corpus(top / "more.txt", "More")
    tokmill.tokenize(more, top / "o", append=True, format="llmc", eot="after", shard_tokens=200, **OPTIONS)


def in_parts(top: Path) -> None:
    text = corpus(top / "a.txt", "One")
    for part in range(3):
        tokmill.tokenize(text, top / "o", part=f"{part}/3", shard_tokens=200, **OPTIONS)
    tokmill.finalize(top / "o")


def bare(top: Path, word: str) -> Path:
    path = top / f"{word}.bin"
    ids = [i for n in range(30) for i in [*gpt2().encode_ordinary(f"{word} {n}"), EOT]]
    np.array(ids, np.uint16).tofile(path)
    return path


def converted_of_a_bare_file(top: Path) -> None:
    tokmill.convert(
        bare(top, "One"), top / "o", format="raw", from_format="raw", from_dtype="uint16", from_eot="after", from_eot_id=EOT
    )


def converted_of_bare_files_with_validation(top: Path) -> None:
    files, val = [bare(top, "One"), bare(top, "Two")], [bare(top, "Three"), bare(top, "Four")]
    tokmill.convert(
        files, top / "o", format="megatron", val_input=val, from_format="raw", from_dtype="uint16", from_eot="after",
        from_tokenizer="gpt2", to_dtype="uint32",
    )  # fmt: skip


def converted_of_bare_files_without_end_of_text(top: Path) -> None:
    tokmill.convert(bare(top, "One"), top / "o", format="raw", from_format="raw", from_dtype="uint16", from_eot="none")


def merged_of_bare_files(top: Path) -> None:
    for name in ("a", "b"):
        tokmill.convert(
            bare(top, name * 3),
            top / name,
            format="raw",
            from_format="raw",
            from_dtype="uint16",
            from_eot="after",
            from_tokenizer="gpt2",
        )
    tokmill.merge([top / "a", top / "b"], top / "o")


@pytest.mark.parametrize(
    "make",
    [
        plain, other_options, with_inputs_for_validation,
        other_separator, appended, merged, merged_of_other_splits, merged_and_appended,
        merged_and_resharded, converted, converted_and_appended, in_parts, converted_of_a_bare_file,
        converted_of_bare_files_with_validation, converted_of_bare_files_without_end_of_text, merged_of_bare_files,
    ],
)  # fmt: skip
def test_the_command_makes_the_same_files(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    run_again(tmp_path / "o", tmp_path / "again")
    before, after = load_manifest(tmp_path / "o"), load_manifest(tmp_path / "again")
    assert after.fingerprint == before.fingerprint
    assert after.files == before.files
    for name in before.files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "o" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["small", "./small/", "small/tokenizer.json", "../{top}/small", "../{top}/ranks.tiktoken", "."])
def test_the_path_of_a_tokenizer_is_absolute_in_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    place = tmp_path / "small" if name == "." else tmp_path
    (tmp_path / "small").mkdir()
    shutil.copy(small_tokenizers.path_of("gpt2"), tmp_path / "small")
    shutil.copy(text_to_path(resolve_tokenizer("gpt2").path), tmp_path / "ranks.tiktoken")
    corpus(tmp_path / "a.txt", "One")
    monkeypatch.chdir(place)
    tokmill.tokenize(tmp_path / "a.txt", tmp_path / "o", tokenizer=name.format(top=tmp_path.name), **OPTIONS)
    monkeypatch.chdir("/")
    run_again(tmp_path / "o", tmp_path / "again")
    for file in ("train.bin", "val.bin"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "o" / file).read_bytes()


def test_of_parts_that_are_not_put_together_the_report_says_how_they_are(tmp_path: Path) -> None:
    tokmill.tokenize(corpus(tmp_path / "a.txt", "One"), tmp_path / "o", part="0/2", **OPTIONS)
    with pytest.raises(UsageError, match="made in parts") as caught:
        collect_data(tmp_path / "o")
    assert caught.value.next_step == f"make those that are missing, then: tokmill finalize {tmp_path / 'o'}"


def test_standard_input_is_said_to_be_what_the_command_reads(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "o"), "-q"]
    subprocess.run(arguments, input=b"some text", env=clean_environment(), check=True, timeout=60)
    assert "# - is standard input: the same bytes" in command_of(tmp_path / "o")


@pytest.mark.parametrize("make", [converted_of_a_bare_file, merged_of_bare_files])
def test_of_ids_of_other_tools_no_size_of_text_is_told(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    told = text_of(re.sub("<svg.*?</svg>", "", make_page(collect_data(tmp_path / "o")), flags=re.DOTALL))
    assert "bytes per tokennot known" in told
    assert "0 B of text" not in told
    assert "0.000" not in told


@pytest.mark.parametrize("command", ["dedup", "mix", "dedup and pack", "tokenize --dedup"])
def test_a_report_leaves_out_what_nobody_counted(command: str, tmp_path: Path) -> None:
    if command == "tokenize --dedup":
        tokmill.tokenize(corpus(tmp_path / "c.txt", "Some"), tmp_path / "o", dedup=True)
    else:
        sources = two(tmp_path)
        if command == "mix":
            tokmill.mix([(path, 1) for path in sources], tmp_path / "o", seed=1)
        else:
            tokmill.dedup(sources, tmp_path / ("o" if command == "dedup" else "d"))
        if command == "dedup and pack":
            tokmill.pack(tmp_path / "d", tmp_path / "o", sequence=16, seed=1)
    told = text_of(re.sub("<svg.*?</svg>", "", make_page(collect_data(tmp_path / "o")), flags=re.DOTALL))
    assert "0 B of text" not in told
    assert "bytes per token0" not in told
    knows_reading = command == "tokenize --dedup"
    assert ("nothing was left out" in told) == knows_reading
    assert ("encoded a second time" in told or "by the reference tokenizer" in told) == knows_reading
