"""Small text files are read many at a time; nothing but the time that it takes may tell."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from support.reading import Reading, a_reader, contents, read_all, write
from support.records import a_content

from tokmill.core.errors import TokmillError
from tokmill.core.records import Batch, Cursor, Input
from tokmill.read import corpus, small_texts

FILES = st.one_of(
    contents("<|endoftext|>"),
    st.sampled_from(
        [b"", b"one text", b"a\0b", "\ufeffmarked".encode(), "UTF-16".encode("utf-16"), b"%PDF-1.7 text", b"bad \xff byte", b"\xc3"]
    ),
)


def outcome(inputs: tuple[Input, ...], **changes: object) -> tuple[Reading, str, list[str], list[str]]:
    """What was read, the error that ended it, where each document is said to be, and what is said of the inputs."""
    content = a_content(inputs=inputs, **changes)
    reading, places, error = Reading(), [], ""
    reader = a_reader(content, batch_bytes=200)
    try:
        for batch in reader.batches(Cursor()):
            reading.add(batch, content)
            places += [str(batch.locate(i)) for i in range(len(batch.documents))]
    except TokmillError as found:
        error = str(found)
    return reading, error, places, reader.notices()


@pytest.fixture(scope="module")
def one_by_one() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@given(texts=st.lists(FILES, min_size=1, max_size=12), separator=st.sampled_from(["<|endoftext|>", None, "a"]))
def test_read_together_they_are_what_they_are_one_by_one(
    texts: list[bytes], separator: str | None, one_by_one: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        inputs = write(Path(directory), {f"{i:02}.txt": text for i, text in enumerate(texts)})
        together = outcome(inputs, separator=separator)
        with one_by_one.context() as patch:
            patch.setattr(corpus, "small_texts", lambda *_of: None)
            assert outcome(inputs, separator=separator) == together


def test_reading_resumes_from_the_end_of_each_batch(tmp_path: Path) -> None:
    texts = {f"{i:03}.txt": b"text %d" % i * (i % 7 + 1) for i in range(300)}
    inputs = write(tmp_path, texts)
    assert read_all(inputs, sizes={"batch_bytes": 500}).texts == list(texts.values())


def test_they_are_one_batch(tmp_path: Path) -> None:
    inputs = write(tmp_path, {f"{i:03}.txt": b"text %d" % i for i in range(300)})
    (batch,) = a_reader(a_content(inputs=inputs)).batches(Cursor())
    assert len(batch.documents) == 300
    assert str(batch.locate(299)) == str(tmp_path / "299.txt") + ", document 1, byte 0"


@pytest.mark.parametrize("how", ["longer", "shorter", "touched", "gone"])
def test_one_that_changed_since_it_was_found_is_named(tmp_path: Path, how: str) -> None:
    inputs = write(tmp_path, {f"{i}.txt": b"some text" for i in range(9)})
    changed = tmp_path / "4.txt"
    if how == "gone":
        changed.unlink()
    elif how == "touched":
        os.utime(changed, ns=(1, 1))
    else:
        changed.write_bytes(b"some text and more" if how == "longer" else b"some")
    batches: list[Batch] = []
    with pytest.raises(TokmillError) as caught:
        batches += a_reader(a_content(inputs=inputs)).batches(Cursor())
    assert caught.value.where == str(changed)


def test_a_large_file_is_none_of_them(tmp_path: Path) -> None:
    (found,) = write(tmp_path, {"large.txt": b"x" * (small_texts._MOST_BYTES + 1)})
    reader = a_reader(a_content(inputs=(found,)))
    assert small_texts.small_texts(reader.settings, 0, 1, 0) is None
