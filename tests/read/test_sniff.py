"""JSON lines that nobody called so are refused by name, and text that only looks like them is read whole."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st
from support.commands import called, clean_environment
from support.oracle import plain_tokens
from support.outputs import written
from support.records import a_content, some_resources

from tokmill.core.errors import UsageError
from tokmill.core.options import PlanOptions
from tokmill.core.records import Cursor, Input
from tokmill.read.corpus import CorpusReader
from tokmill.read.sniff import LOOK_BYTES, first_line, is_json_lines
from tokmill.read.stream import PeekedStream
from tokmill.run.job import make_job

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers_in_process")

LINES = b'\n{"text": "one"}\n{"text": "two"}\n'


class Dripping:
    """A stream in memory that brings a few bytes at a time."""

    def __init__(self, data: bytes, step_bytes: int) -> None:
        self.offset = 0
        self._data = data
        self._step = step_bytes

    def read(self, n_bytes: int) -> bytes:
        part = self._data[self.offset : self.offset + min(n_bytes, self._step)]
        self.offset += len(part)
        return part

    def skip(self, n_bytes: int) -> None:
        self.offset += n_bytes

    def raw_position(self) -> int:
        return self.offset

    def close(self) -> None:
        self._step = 0


def piped(data: bytes, *arguments: object) -> subprocess.CompletedProcess[str]:
    return called("tokenize", "-", *arguments, "--val-fraction", "0", stdin=data)


@given(
    data=st.binary(max_size=40)
    | st.builds(b"".join, st.lists(st.sampled_from([b"\xef\xbb\xbf", b"{", b"\n", b" ", b'"a":1}', b"x"]))),
    step=st.integers(1, 9),
    want=st.integers(1, 9),
    skipped=st.integers(0, 5),
)
def test_what_was_looked_at_is_read_again(data: bytes, step: int, want: int, skipped: int) -> None:
    looked = PeekedStream(Dripping(data, step))
    line, is_whole = first_line(looked)
    assert line == data.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n")[0][: len(line)]
    assert is_whole or not line.startswith(b"{")
    skipped = min(skipped, len(data))
    looked.skip(skipped)
    parts = list(iter(lambda: looked.read(want), b""))
    assert b"".join(parts) == data[skipped:]
    assert looked.offset == len(data)


def test_no_more_is_looked_at_than_is_needed() -> None:
    stream = Dripping(b"text" * 10**6, 1000)
    first_line(PeekedStream(stream))
    assert stream.offset == 1000
    stream = Dripping(b'{"text": "' + b"long" * 10**6, 1 << 16)
    assert first_line(PeekedStream(stream))[1] is False
    assert stream.offset < 2 * LOOK_BYTES


@pytest.mark.parametrize(
    ("line", "is_whole", "text_key", "expected"),
    [
        (b'{"text": "one"}', True, "text", True),
        (b'{ "id" : 1, "x": {"y": [null]}}\r', True, "text", True),
        (b"{}", True, "text", True),
        (b'{"text": "a line that goes on', False, "text", True),
        (b'{"body": "not quite JSON",}', True, "body", True),
        (b'{"body": "not quite JSON",}', True, "text", False),
        (b'{"quoted": "words"} and more text', True, "text", False),
        (b"{", True, "text", False),
        (b"{", True, "body", False),
        (b"{curly} brackets", False, "body", False),
        (b'["an", "array"]', True, "body", False),
        (b'"text"', True, "text", False),
        (b"", True, "body", False),
        (b'{"\xff": 1}', True, "text", False),
        (b'{"a":' * 100_000, True, "text", False),
    ],
)
def test_the_rule(line: bytes, is_whole: bool, text_key: str, expected: bool) -> None:
    assert is_json_lines(line, is_whole, text_key) == expected


def test_a_pipe_of_json_lines_is_refused_and_either_word_lets_it_pass(tmp_path: Path) -> None:
    done = piped(LINES, "--out", tmp_path / "o", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["where"]) == ("UsageError", "standard input")
    assert "--input-format jsonl" in error["next"]
    assert "--input-format text" in error["next"]
    assert not (tmp_path / "o" / "train.bin").exists()
    # The same directory: nothing was committed.
    assert piped(LINES, "--out", tmp_path / "o", "--input-format", "jsonl").returncode == 0
    assert written(tmp_path / "o") == plain_tokens([b"one", b"two"], val_fraction=0)
    assert piped(LINES, "--out", tmp_path / "t", "--input-format", "text").returncode == 0
    assert written(tmp_path / "t") == plain_tokens([LINES], val_fraction=0)


def test_a_text_key_makes_a_broken_first_line_suspicious(tmp_path: Path) -> None:
    assert piped(b'{"body": "one",}\n', "--out", tmp_path / "o", "--text-key", "body").returncode == 2
    assert piped(b'{"body": "one",}\n', "--out", tmp_path / "o").returncode == 0
    done = piped(b"plain text", "--out", tmp_path / "p", "--text-key", "body")
    assert done.returncode == 0
    assert "--text-key is for JSON lines" in done.stderr


def test_a_pipe_of_text_loses_nothing_to_the_look(tmp_path: Path) -> None:
    for i, text in enumerate([b"", b"\n\n", b"{", b" \n {curly}<|endoftext|>two", b"\xef\xbb\xbfone", b'{"a": 1} b\n' * 5_000]):
        assert piped(text, "--out", tmp_path / f"o{i}").returncode == (0 if text else 1)
        assert written(tmp_path / f"o{i}") == plain_tokens(text.split(b"<|endoftext|>"), val_fraction=0)


def test_a_run_that_is_resumed_behind_the_first_line_is_not_asked_again(tmp_path: Path) -> None:
    documents = [*[b'{"n": %d}\n' % i + b"words and words" * 40 for i in range(9000)], b"caf\xe9"]
    text = b"<|endoftext|>".join(documents)
    words = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "o"), "--val-fraction", "0"]
    failed = subprocess.run(
        [*words, "--input-format", "text"], input=text, env=clean_environment(), capture_output=True, check=False
    )
    assert failed.returncode == 1
    assert (tmp_path / "o" / ".tokmill" / "train.bin.part").stat().st_size > 0
    text = text.replace(b"\xe9", b"e")
    done = subprocess.run([*words, "--json"], input=text, env=clean_environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] is True
    assert written(tmp_path / "o") == plain_tokens([*documents[:-1], b"cafe"], val_fraction=0)


@pytest.mark.parametrize(("name", "is_refused"), [("pipe", True), ("pipe.txt", False)])
def test_a_named_pipe_is_looked_at_unless_its_name_says_what_it_is(tmp_path: Path, name: str, is_refused: bool) -> None:
    os.mkfifo(tmp_path / name)
    source = Input(path=str(tmp_path / name), format="text", compression="none")
    batches = CorpusReader(a_content(inputs=(source,)), some_resources(refuse_json_lines=True), None).batches(Cursor())
    with subprocess.Popen(["tee", str(tmp_path / name)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as tee:
        assert tee.stdin is not None
        tee.stdin.write(LINES)
        tee.stdin.close()
        if is_refused:
            with pytest.raises(UsageError, match="first line is a JSON object"):
                list(batches)
        else:
            assert [document for batch in batches for document in batch.documents] == [LINES]


@pytest.mark.parametrize("name", ["lines", "lines.log", "lines.gz", "part-00000"])
def test_a_file_whose_name_says_nothing_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES) if name.endswith(".gz") else LINES)
    with pytest.raises(UsageError, match="first line is a JSON object") as caught:
        make_job([str(path)], out=str(tmp_path / "o"))
    assert caught.value.where == str(path)
    assert "ends in .jsonl or .txt" in str(caught.value.next_step)
    for input_format in ("text", "jsonl"):
        (source,) = make_job([str(path)], PlanOptions(input_format=input_format), out=str(tmp_path / "o")).job.content.inputs
        assert source.format == input_format
    assert not (tmp_path / "o").exists()


def test_one_such_file_among_many_texts_is_found(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"part-{i:05}").write_bytes(LINES if i == 170 else b"text")
    with pytest.raises(UsageError) as caught:
        make_job([str(tmp_path)], PlanOptions(glob="part-*"), out=str(tmp_path / "o"))
    assert str(caught.value.where).endswith("part-00170")


def test_text_by_suffix_that_begins_like_json_lines_is_a_notice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(LINES)
    (tmp_path / "b.md").write_bytes(b'{"text": "' + b"long" * LOOK_BYTES)
    (tmp_path / "c.txt").write_bytes(b'{"other": "key"}\n')
    (tmp_path / "d.jsonl").write_bytes(LINES)
    (notice,) = make_job([str(tmp_path)], out=str(tmp_path / "o")).notices
    assert notice.startswith(f"{tmp_path}/a.txt (and 1 other of 3 looked at)")
    assert "--input-format jsonl" in notice
    assert make_job([str(tmp_path)], PlanOptions(input_format="text"), out=str(tmp_path / "o")).notices == []
    (notice,) = make_job([str(tmp_path)], PlanOptions(text_key="other"), out=str(tmp_path / "o")).notices
    assert notice.startswith(f"{tmp_path}/c.txt is read as text")


def test_a_file_that_cannot_be_looked_at_is_for_the_run_to_speak_of(tmp_path: Path) -> None:
    (tmp_path / "damaged.gz").write_bytes(b"\x1f\x8bnonsense")
    assert make_job([str(tmp_path / "damaged.gz")], out=str(tmp_path / "o")).notices == []
