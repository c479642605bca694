"""`--val-tail`: the end of one text is for validation."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import SEP, some_documents
from support.oracle import plain_tokens
from support.outputs import ids_of, side_bytes, written
from support.reading import SEPARATORS, contents
from support.runs import TINY, make_parts, repair_in_process, run_in_process, tokenize_in_small_segments

import tokmill
from tokmill.cli import app
from tokmill.core.config import ValTail
from tokmill.core.errors import ChangedError, Interrupted, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.options import PlanOptions
from tokmill.output.directory import Output
from tokmill.reports.reproduce import commands, settings as settings_of
from tokmill.run.job import make_job

pytestmark = pytest.mark.usefixtures("workers_in_process")

POEM = "".join(f"Line {i} of a long pœm.\n" for i in range(400)).encode()


def sides(data: bytes, begin: int, separator: str = SEP, **options: Any) -> tuple[bytes, bytes]:
    """What the two files hold of a text that is cut there."""
    between, head = separator.encode(), data[:begin]
    is_document = begin in document_starts(data, separator)
    parts = (head[: -len(between)] if is_document else head, data[begin:])
    return tuple(plain_tokens(part.split(between), val_fraction=0.0, **options)[0] for part in parts)  # type: ignore[return-value]


def document_starts(data: bytes, separator: str) -> set[int]:
    starts, at = set(), 0
    for document in data.split(separator.encode()):
        starts.add(at)
        at += len(document) + len(separator.encode())
    return starts


def cut(data: bytes, separator: str, wanted: int, reach: int) -> int:
    """Where the end of so many bytes begins, found byte by byte."""
    at, between = len(data) - wanted, separator.encode()
    starts = document_starts(data, separator)
    inside = {i + k for i in range(len(data)) if data.startswith(between, i) for k in range(1, len(between))}
    lines = [i for i in range(1, len(data)) if data[i - 1 : i] == b"\n" and i not in inside]
    for places in (sorted(starts - {len(data)}), lines):
        if found := [i for i in places if at <= i <= at + reach]:
            return found[0]
    characters = (i for i in range(at, len(data)) if i in starts or (i not in inside and data[i] & 0xC0 != 0x80))
    return next(characters, len(data))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    data=st.data(), separator=st.sampled_from(SEPARATORS), batch_bytes=st.sampled_from([10, 60, 5000]), n_parts=st.integers(0, 4)
)
def test_it_is_the_end_of_the_text_in_any_batches_and_parts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, separator: str, batch_bytes: int, n_parts: int
) -> None:
    base = tmp_path_factory.mktemp("any")
    text = data.draw(contents(separator).map(lambda text: text.decode(errors="ignore").encode()).filter(lambda text: len(text) > 3))
    (base / "c.txt").write_bytes(text)
    wanted = data.draw(st.integers(1, len(text) - 1))
    is_exact = data.draw(st.booleans())
    given = wanted if is_exact else (wanted + 0.5) / len(text)
    escaped = separator.replace("\n", "\\n")
    options: dict[str, Any] = {"val_tail": given, "separator": escaped, "keep_empty": data.draw(st.booleans())}
    begin = cut(text, separator, wanted, 0 if is_exact else wanted // 10)
    if begin == len(text):
        with pytest.raises(UsageError, match="no place where it may be cut"):
            make_job([str(base / "c.txt")], PlanOptions(**options), out=str(base / "out"))
        return
    if n_parts:
        make_parts([base / "c.txt"], base / "out", n_parts, {"batch_bytes": batch_bytes}, **options)
        tokmill.finalize(base / "out")
    else:
        run_in_process([base / "c.txt"], base / "out", TINY | {"batch_bytes": batch_bytes}, **options)
    tail = load_manifest(base / "out").content.val_tail
    assert isinstance(tail, ValTail)
    assert (tail.begin, tail.is_document) == (begin, begin in document_starts(text, separator))
    assert side_bytes(base / "out") == sides(text, begin, separator, keep_empty=options["keep_empty"])
    assert tokmill.verify(base / "out", sources=True).ok


def test_a_text_of_one_document_is_cut_at_a_line(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_bytes(POEM)
    for tail in ("10%", 0.1, "0.1", "10.0%", f"{len(POEM) / 10000}kB"):
        out = tmp_path / str(tail)
        summary = tokmill.tokenize(tmp_path / "poem.txt", out, val_tail=tail)
        assert (summary.documents, summary.documents_train, summary.documents_val) == (2, 1, 1)
        with tokmill.open(out) as data:
            first, last = (data.decode_bytes(data.document(side, 0)) for side in ("train", "val"))
        assert first + last == POEM
        assert first.endswith(b"\n")
        assert 0.09 * len(POEM) < len(last) <= 0.1 * len(POEM)


@pytest.mark.parametrize("eot", ["after", "before"])
@pytest.mark.parametrize("at", [1_000_000, -8 - len(SEP), -5 - len(SEP)])
def test_however_a_long_document_is_read_it_is_cut_there(tmp_path: Path, at: int, eot: str) -> None:
    lines = b"".join(b"line %d of it\n" % i for i in range(125_000))
    text = b"a short one" + SEP.encode() + lines + SEP.encode() + b"the last" + SEP.encode()
    (tmp_path / "c.txt").write_bytes(text)
    at %= len(text)
    options: dict[str, Any] = {"val_tail": len(text) - at, "eot": eot, "keep_empty": True}
    make_parts([tmp_path / "c.txt"], tmp_path / "parts", 5, {"batch_bytes": 20_000}, **options)
    tokmill.finalize(tmp_path / "parts")
    run_in_process(
        [tmp_path / "c.txt"], tmp_path / "out", {"batch_bytes": 20_000, "range_bytes": 300_000, "n_workers": 2}, **options
    )
    wanted = sides(text, at, eot=eot, keep_empty=True)
    assert written(tmp_path / "out") == wanted
    assert side_bytes(tmp_path / "parts") == wanted


@pytest.mark.parametrize("n_calls", [1, 2, 4, 7])
def test_ended_anywhere_a_run_continues_to_the_same_files(tmp_path: Path, n_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SEP.encode().join(some_documents(80, 60, 1))
    (tmp_path / "c.txt").write_bytes(text)
    at, n_left, commit = cut(text, SEP, len(text) // 2, 0), [n_calls], Output.commit

    def die(*args: Any, **kwargs: Any) -> None:
        n_left[0] -= 1
        if not n_left[0]:
            raise Interrupted("dead", where="", allowed="", next_step="")
        commit(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "commit", die)
        with pytest.raises(Interrupted):
            tokenize_in_small_segments([tmp_path / "c.txt"], tmp_path / "out", TINY, val_tail=len(text) - at)
    run_in_process([tmp_path / "c.txt"], tmp_path / "out", TINY, val_tail=len(text) - at)
    assert written(tmp_path / "out") == sides(text, at)


def test_it_is_repaired_converted_merged_and_said_how_to_make_it_again(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_bytes(POEM)
    options: dict[str, Any] = {"val_tail": "10%", "separator": "none"}
    tokenize_in_small_segments([tmp_path / "poem.txt"], tmp_path / "out", TINY, **options)
    wanted, content = written(tmp_path / "out"), load_manifest(tmp_path / "out").content
    assert isinstance(content.val_tail, ValTail)
    for name in ("train.bin", "val.bin"):
        ids = np.fromfile(tmp_path / "out" / name, np.uint16)
        ids[len(ids) // 2] ^= 1
        ids.tofile(tmp_path / "out" / name)
    repair_in_process(tmp_path / "out")
    assert written(tmp_path / "out") == wanted
    tokmill.convert(tmp_path / "out", tmp_path / "copy", format="llmc")
    assert tokmill.verify(tmp_path / "copy", sources=True).ok
    tokmill.merge([tmp_path / "out", tmp_path / "out"], tmp_path / "both")
    assert ids_of(tmp_path / "both") == (wanted[0] * 2, wanted[1] * 2)
    with pytest.raises(UsageError, match="cannot be compared"):
        tokmill.verify(tmp_path / "both", sources=True)
    assert dict(settings_of(content))["validation"] == f"the text from byte {content.val_tail.begin:,} on"
    n_bytes = len(POEM) - content.val_tail.begin
    assert f"--val-tail {n_bytes}" in commands(content, (), "again")
    assert tokmill.tokenize(tmp_path / "poem.txt", tmp_path / "out", val_tail=n_bytes, separator="none").already_complete
    with pytest.raises(ChangedError, match="--val-tail was "):
        tokmill.tokenize(tmp_path / "poem.txt", tmp_path / "out", val_tail="20%", separator="none")
    with pytest.raises(UsageError, match="nothing can be appended to an output whose validation is the end of its text"):
        tokmill.tokenize(tmp_path / "poem.txt", tmp_path / "out", append=True)


def test_what_is_not_one_plain_text_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(POEM)
    (tmp_path / "b.txt").write_bytes(POEM)
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "a"}\n')
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(POEM))
    for names, what in (
        (["a.txt", "b.txt"], "and 2 inputs were given"),
        (["c.jsonl"], "and this is jsonl"),
        (["d.txt.gz"], "and this is text, packed as gzip"),
        (["-"], "and a pipe ends nobody knows where"),
    ):
        with pytest.raises(UsageError, match=what):
            tokmill.tokenize([name if name == "-" else tmp_path / name for name in names], tmp_path / "out", val_tail=0.1)
    for wrong in ("0", "0%", "100%", "1.5%%", "x", "-1", "1GiB", str(len(POEM))):
        assert app.run(["tokenize", str(tmp_path / "a.txt"), "-o", str(tmp_path / "out"), f"--val-tail={wrong}"]) == 2, wrong
    for others in (["--val-fraction", "0.1"], ["--val-tokens", "9"], ["--val-input", str(tmp_path / "b.txt")], ["--append"]):
        assert app.run(["tokenize", str(tmp_path / "a.txt"), "-o", str(tmp_path / "out"), "--val-tail=0.1", *others]) == 2, others
    capsys.readouterr()
    assert not (tmp_path / "out").exists()
