"""`--encoding`: text that is not UTF-8, decoded exactly, and a place for what the encoding does not have."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support.oracle import plain_tokens
from support.outputs import side_bytes, written
from support.runs import TINY, append_in_process, make_parts, repair_in_process, run_in_process, tokenize_in_small_segments

import tokmill
from tokmill.cli import app
from tokmill.core.errors import BadTextError, ChangedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.records import Input
from tokmill.read.encodings import codec_name
from tokmill.read.stream import DecodedStream
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

ENCODINGS = {
    "latin-1": "Größe façon ñandú. ",
    "cp1252": "“Größe” – 5 €. ",
    "cp1251": "Слова и ещё слова. ",
    "koi8-r": "Слова и ещё слова. ",
    "utf-16": "Größe 漢字 🙂. ",
    "utf-16-le": "Größe 漢字 🙂. ",
    "utf-32": "Größe 漢字 🙂. ",
    "gb18030": "漢字 and 🙂 words. ",
    "big5": "漢字 and words. ",
    "shift_jis": "日本語のテキスト words. ",
    "euc_jp": "日本語のテキスト words. ",
    "iso2022_jp": "日本語のテキスト words. ",
    "euc_kr": "한국어 words. ",
    "utf-8-sig": "Größe 漢字 🙂. ",
}
SEPARATOR = "<|endoftext|>"


class Memory:
    """A stream of bytes that gives so many at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file, self._step, self.offset = io.BytesIO(data), step, 0

    def read(self, n_bytes: int) -> bytes:
        data = self._file.read(min(n_bytes, self._step))
        self.offset += len(data)
        return data

    def skip(self, n_bytes: int) -> None:
        raise AssertionError(n_bytes)

    def raw_position(self) -> int:
        return self.offset

    def close(self) -> None: ...


def stream_of(data: bytes, encoding: str, step: int) -> DecodedStream:
    return DecodedStream(Memory(data, step), Input(path="/f.txt", format="text", compression="none", encoding=encoding))


def read_all(stream: DecodedStream, n_bytes: int = 7) -> bytes:
    parts = []
    while part := stream.read(n_bytes):
        assert len(part) <= n_bytes
        parts.append(part)
    assert stream.offset == sum(map(len, parts))
    return b"".join(parts)


@settings(max_examples=200)
@given(
    encoding=st.sampled_from([*ENCODINGS]),
    noise=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)), max_size=3),
    step=st.sampled_from([1, 2, 3, 50, 10_000]),
)
def test_however_it_is_read_it_is_what_python_decodes_at_once(encoding: str, noise: list[tuple[int, bytes]], step: int) -> None:
    data = (ENCODINGS[encoding] * 8).encode(encoding)
    for at, part in noise:
        # What comes before a byte order mark is another test.
        data = data[: at + 4] + part + data[at + 4 :]
    replaced = read_all(stream_of(data, encoding, step)).decode("utf-8", "replace")
    assert replaced == data.decode(encoding, "replace")
    strict = stream_of(data, encoding, step)
    strict.is_strict = True
    place = first_bad(data, encoding)
    if place is None:
        assert read_all(strict).decode() == data.decode(encoding)
        return
    with pytest.raises(BadTextError) as caught:
        read_all(strict)
    assert caught.value.where == f"/f.txt, byte {place:,}"
    assert caught.value.what.startswith(f"not {encoding}: byte 0x{data[place]:02x} (")


def first_bad(data: bytes, encoding: str) -> int | None:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        # Python counts without the mark at the beginning.
        return error.start + 3 * (encoding == "utf-8-sig")
    return None


def test_without_a_mark_that_says_which_it_is_another_encoding_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("text".encode("utf-16-le"))
    with pytest.raises(BadTextError) as caught:
        tokmill.tokenize(tmp_path / "c.txt", tmp_path / "out", encoding="utf-16", encoding_errors="replace")
    assert caught.value.next_step == "pass --encoding utf-16-le, or utf-16-be"
    tokmill.tokenize(tmp_path / "c.txt", tmp_path / "out", encoding="utf-16-le")
    assert written(tmp_path / "out")[0] == expected(["text"])[0]


def texts_of(encoding: str) -> list[str]:
    return [ENCODINGS[encoding] * (i % 5) + str(i) for i in range(30)]


def write(path: Path, texts: list[str], encoding: str) -> Path:
    match path.name.partition(".")[2]:
        case "jsonl":
            data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        case "csv" | "csv.gz":
            data = "id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
        case _:
            data = SEPARATOR.join(texts)
    path.write_bytes(gzip.compress(data.encode(encoding)) if path.suffix == ".gz" else data.encode(encoding))
    return path


def expected(texts: list[str]) -> tuple[bytes, bytes]:
    return plain_tokens([text.encode() for text in texts], val_fraction=0.2)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "utf-16", "gb18030", "shift_jis"])
@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.csv.gz"])
def test_all_text_formats_are_read_in_it_resumed_and_made_in_parts(tmp_path: Path, encoding: str, name: str) -> None:
    texts = texts_of(encoding)
    corpus, out = write(tmp_path / name, texts, encoding), tmp_path / "out"
    options: dict[str, Any] = {"encoding": encoding, "val_fraction": 0.2}
    tokenize_in_small_segments([corpus], out, TINY, **options)
    assert written(out) == expected(texts)
    assert load_manifest(out).content.inputs[0].encoding == codec_name(encoding)
    assert tokmill.verify(out, sources=True).ok
    assert tokmill.verify(out, sources=str(corpus)).ok
    assert tokmill.tokenize(corpus, out, **options).already_complete
    make_parts([corpus], tmp_path / "parts", 3, **options)
    tokmill.finalize(tmp_path / "parts")
    assert side_bytes(tmp_path / "parts") == expected(texts)
    ids = np.fromfile(out / "train.bin", np.uint16)
    ids[len(ids) * 3 // 4] ^= 1
    ids.tofile(out / "train.bin")
    repair_in_process(out)
    assert written(out) == expected(texts)


def test_what_the_encoding_does_not_have_stops_with_its_place_or_is_what_is_asked_for(tmp_path: Path) -> None:
    texts = ["good one", "bad \x81 one".replace("\x81", "?"), "“last” é"]
    data = SEPARATOR.join(texts).encode("cp1252").replace(b"?", b"\x81")
    (tmp_path / "c.txt").write_bytes(data)
    with pytest.raises(BadTextError) as caught:
        tokmill.tokenize(tmp_path / "c.txt", tmp_path / "out", encoding="cp1252")
    assert caught.value.where == f"{tmp_path}/c.txt, byte {data.index(0x81):,}"
    for how, kept in (
        ({"encoding_errors": "replace"}, [texts[0], "bad � one", texts[2]]),
        ({"encoding_errors": "ignore"}, [texts[0], "bad  one", texts[2]]),
        ({"on_error": "skip"}, [texts[0], texts[2]]),
    ):
        out = tmp_path / "_".join(*how.items())
        tokmill.tokenize(tmp_path / "c.txt", out, encoding="windows-1252", val_fraction=0.2, **how)  # type: ignore[arg-type]
        assert written(out) == expected(kept)
        assert tokmill.verify(out, sources=True).ok


def test_it_is_a_setting_of_each_input(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", ["é"], "latin-1"), write(tmp_path / "b.txt", ["ü"], "utf-8")
    run_in_process([first], tmp_path / "out", TINY, encoding="iso-8859-1", val_fraction=0.2)
    assert tokmill.tokenize(first, tmp_path / "out", encoding="latin1", val_fraction=0.2).already_complete
    with pytest.raises(ChangedError, match="was read as iso8859-1, is now UTF-8"):
        tokmill.tokenize(first, tmp_path / "out", val_fraction=0.2)
    assert "--encoding iso8859-1" in commands(load_manifest(tmp_path / "out").content, (), "again")
    append_in_process([second], tmp_path / "out")
    assert written(tmp_path / "out") == expected(["é", "ü"])
    assert tokmill.verify(tmp_path / "out", sources=[str(first), str(second)]).ok


def test_what_is_no_encoding_or_has_one_of_its_own_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write(tmp_path / "c.txt", ["é"], "latin-1")
    for wrong in ("latin-11", "hex", "rot13", "idna", "unicode_escape", "utf-7", "x" * 300, ""):
        with pytest.raises(UsageError, match="is not an encoding of text"):
            tokmill.tokenize(corpus, tmp_path / "out", encoding=wrong)
    assert app.run(["tokenize", str(corpus), "-o", str(tmp_path / "out"), "--encoding", "gpt2"]) == 2
    assert "a tokenizer is --tokenizer" in capsys.readouterr().err
    (tmp_path / "a.tar").write_bytes(b"\0" * 1024)
    with pytest.raises(UsageError, match="the texts in an archive are read as UTF-8"):
        tokmill.tokenize(tmp_path / "a.tar", tmp_path / "out", encoding="latin-1")
    with pytest.raises(UsageError, match="this is in iso8859-1, not in UTF-8"):
        tokmill.tokenize(corpus, tmp_path / "out", encoding="latin-1", val_tail=0.5)
    assert app.run(["plan", str(corpus), "--encoding", "latin-1"]) == 0
    assert not (tmp_path / "out").exists()
