"""Arrow files and streams of every layout: read as pyarrow reads them, every byte accounted for, a slice at a time."""

from __future__ import annotations

import io
import itertools
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from support.reading import SpaceCutter, a_reader, read_all, write
from support.records import a_content

from tokmill.core.errors import BadRecordError, DamagedInputError, InputError, MemoryBudgetError, TokmillError
from tokmill.core.records import Cursor, Input
from tokmill.read.formats import arrow_buffers, arrow_messages

TEXTS = ["one", "", "a text of more than twelve bytes", None, "é" * 40, "one", "a text of more than twelve bytes", "six"] * 3
OTHERS = [
    pa.array(range(24)),
    pa.array([[str(i)] * (i % 3) for i in range(24)], pa.list_(pa.string_view())),
    pa.array([{"a": "x", "b": [1, 2]}] * 24),
    pa.nulls(24),
    pa.array(["x" * i for i in range(24)], pa.string_view()),
    pa.array(["x", "y"] * 12).dictionary_encode(),
    pa.array([[i, i] for i in range(24)], pa.list_(pa.int8(), 2)),
    pa.array([[("k", i)] for i in range(24)], pa.map_(pa.string(), pa.int64())),
    pa.array([["x"]] * 24, pa.list_view(pa.string())),
    pa.array([b"abc"] * 24, pa.binary(3)),
    pa.array([True, None] * 12),
    pa.UnionArray.from_sparse(pa.array([0, 1] * 12, pa.int8()), [pa.array(range(24)), pa.array(["u"] * 24)]),
    pa.UnionArray.from_dense(
        pa.array([0, 1] * 12, pa.int8()), pa.array([0] * 24, pa.int32()), [pa.array([1]), pa.array(["a text of fourteen"])]
    ),
    pa.RunEndEncodedArray.from_arrays(pa.array([24], pa.int32()), pa.array([1])),
]


def columns(texts: list[str | None]) -> dict[str, pa.Array]:
    """The texts in every type that has texts."""
    plain = pa.array(texts, pa.string())
    runs = pa.RunEndEncodedArray.from_arrays(pa.array(range(1, len(texts) + 1), pa.int32()), plain)
    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view())
    return {
        **{str(kind): pa.array(texts, pa.string()).cast(kind) for kind in kinds},
        **{f"dictionary of {kind}": plain.cast(kind).dictionary_encode() for kind in (pa.string(), pa.large_binary())},
        "dictionary of views": pa.DictionaryArray.from_arrays(
            plain.dictionary_encode().indices.cast(pa.uint16()), pa.array(plain.unique().drop_null().to_pylist(), pa.string_view())
        ),
        "dictionary that has a null": pa.DictionaryArray.from_arrays(pa.array(range(len(texts)), pa.int64()), plain),
        "runs": runs,
        "extension": pa.ExtensionArray.from_storage(pa.json_(), plain),
        "slice": pa.array(["before", *texts, "after"]).slice(1, len(texts)),
    }


KINDS = columns(TEXTS)
WRITTEN = [
    {},
    {"compression": "lz4"},
    {"compression": "zstd"},
    {"metadata_version": pa.ipc.MetadataVersion.V4},
    {"use_legacy_format": True},
    {"emit_dictionary_deltas": True},
]


def packed(table: pa.Table, *, is_file: bool, chunk: int | None = None, **options: object) -> bytes:
    sink = io.BytesIO()
    new = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return sink.getvalue()


def stream(*texts: str, end: bool = True, column: str = "text") -> bytes:
    data = packed(pa.table({column: list(texts)}), is_file=False)
    return data if end else data[:-8]


def assert_read(path: Path, data: bytes, texts: Sequence[str | None], key: str = "text", *, resume: bool = False) -> None:
    inputs = write(path.parent, {path.name: data})
    reading = read_all(inputs, text_key=key, on_error="skip", sizes={"batch_bytes": 100}, resume=resume)
    assert reading.texts == [text.encode() for text in texts if text is not None]
    assert reading.counts.skipped.get("null_text", 0) == texts.count(None)


@pytest.mark.parametrize("options", WRITTEN, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_read_beside_every_other(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    is_legacy = "use_legacy_format" in options
    table = pa.table({**{f"c{i}": other for i, other in enumerate(OTHERS)}, "text": KINDS[kind], "after": OTHERS[1]})
    assert_read(
        tmp_path / "a.arrow",
        packed(table, is_file=True, chunk=None if "dictionary" in kind else 7, **options),
        TEXTS,
        resume=not options,
    )
    if not is_legacy:
        assert_read(tmp_path / "b.arrows", packed(table, is_file=False, chunk=7, **options), TEXTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_field_of_a_struct_is_read_in_every_layout(tmp_path: Path, kind: str, compression: str | None) -> None:
    nulls = pa.array([i % 5 == 0 for i in range(24)])
    inner = pa.StructArray.from_arrays([OTHERS[1], KINDS[kind], OTHERS[0]], ["x", "text", "y"], mask=nulls)
    outer = pa.StructArray.from_arrays([OTHERS[4], inner], ["views", "inner"])
    table = pa.table({"c": OTHERS[4], "outer": outer})
    texts = [None if i % 5 == 0 else text for i, text in enumerate(TEXTS)]
    for is_file in (True, False):
        data = packed(table, is_file=is_file, compression=compression)
        assert_read(tmp_path / "a.arrow", data, texts, "outer.inner.text")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=20), max_size=30),
    st.integers(1, 40),
    st.sampled_from([None, "lz4", "zstd"]),
    st.booleans(),
    st.data(),
)
def test_any_texts_in_any_layout_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    chunk: int,
    compression: str,
    is_file: bool,
    data: st.DataObject,
) -> None:
    kinds = columns(texts)
    kind = data.draw(st.sampled_from(sorted(kinds)))
    table = pa.table({"text": kinds[kind]})
    written = packed(table, is_file=is_file, chunk=None if is_file and "dictionary" in kind else chunk, compression=compression)
    assert_read(tmp_path_factory.mktemp("any") / "a.arrow", written, texts, resume=True)


def test_a_dictionary_that_grows_or_is_replaced_is_followed(tmp_path: Path) -> None:
    parts = [pa.array(TEXTS[:n]).dictionary_encode() for n in (3, 5, 9, 24)]
    table = pa.table({"text": pa.chunked_array(parts)})
    texts = [text for part in parts for text in part.to_pylist()]
    for deltas in (False, True):
        assert_read(tmp_path / "a.arrows", packed(table, is_file=False, emit_dictionary_deltas=deltas), texts)


@pytest.mark.parametrize("n_streams", [2, 3, 20])
def test_streams_one_after_another_are_read_like_one(tmp_path: Path, n_streams: int) -> None:
    texts = [f"text {i}" for i in range(n_streams)]
    assert_read(tmp_path / "a.arrows", b"".join(map(stream, texts)), texts)


WHOLE = stream("one", "two")
FILE = packed(pa.table({"text": ["one", "two"]}), is_file=True)
JUNK = [b"x", b"\0" * 8, b"junk" * 8, WHOLE[:100], FILE[:40], b"\xff\xff\xff\xff\x08\0\0\0" + bytes(8)]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("data", [WHOLE, FILE], ids=["stream", "file"])
@pytest.mark.parametrize("where", ["before", "after", "between"])
def test_what_is_no_message_is_an_error_wherever_it_is(tmp_path: Path, data: bytes, junk: bytes, where: str) -> None:
    made = {"before": junk + data, "after": data + junk, "between": data + junk + data}[where]
    with pytest.raises(DamagedInputError) as caught:
        read_all(write(tmp_path, {"a.arrow": made}), resume=False)
    assert "a.arrow" in str(caught.value.where)


@pytest.mark.parametrize("one", [WHOLE, FILE], ids=["stream", "file"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_files_one_after_another_are_refused(tmp_path: Path, one: bytes, compression: str | None) -> None:
    for texts in (["a"], ["one", "two"], ["a text of many bytes"] * 100):
        other = packed(pa.table({"text": texts}), is_file=True, compression=compression)
        with pytest.raises(DamagedInputError):
            read_all(write(tmp_path, {"a.arrow": one + other}), resume=False)
        with pytest.raises(DamagedInputError):
            read_all(write(tmp_path, {"a.arrow": other + one}), resume=False)


def test_a_record_batch_that_the_index_leaves_out_is_an_error(tmp_path: Path) -> None:
    data = packed(pa.table({"text": ["one", "two"]}), is_file=True, chunk=1)
    footer = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
    # The length of a vector: of blocks, if one less leaves a row out.
    for at in (at for at in range(footer, len(data) - 10) if data[at : at + 4] == b"\2\0\0\0"):
        inputs = write(tmp_path, {"a.arrow": data[:at] + b"\1" + data[at + 1 :]})
        assert raised_by(inputs) or len(read_all(inputs).texts) == 2


def test_a_schema_without_the_beginning_of_a_message_is_that_of_polars(tmp_path: Path) -> None:
    length = int.from_bytes(FILE[12:16], "little")
    bare = FILE[:8] + FILE[16 : 16 + length]
    assert_read(tmp_path / "a.arrow", bare + bytes(8) + FILE[16 + length :], ["one", "two"])
    rows = packed(pa.table({"text": ["hidden"]}), is_file=False)[:-8]
    hidden = bare + b"".join([rows, bytes(-len(rows) % 8)])
    shifted = packed(pa.table({"text": ["one", "two"]}), is_file=True)
    with pytest.raises(DamagedInputError):
        read_all(write(tmp_path, {"b.arrow": hidden + shifted[8:]}), resume=False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (stream("one", end=False), "may be cut off"),
        (stream("one") + stream("two", end=False), "may be cut off"),
        (packed(pa.table({"text": ["one"]}), is_file=False, use_legacy_format=True), "before 0.15"),
        (stream("one", end=False) + stream("two"), "begins before another ended"),
    ],
)
def test_a_stream_without_end_or_of_old_says_so(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(DamagedInputError, match=words) as caught:
        read_all(write(tmp_path, {"a.arrows": data}), resume=False)
    assert caught.value.next_step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_null", [True, False])
def test_a_number_of_nulls_that_is_not_known_is_allowed(tmp_path: Path, kind: str, has_null: bool) -> None:
    """The format has -1 for it; without nulls the bits may be left out."""
    texts = [None if has_null and i == 5 else f"text {i}" for i in range(77)]
    data = packed(pa.table({"text": columns(texts)[kind]}), is_file=False)
    for n_rows, n_nulls in itertools.product((77, 76), (0, 1)):
        data = data.replace(struct.pack("<qq", n_rows, n_nulls), struct.pack("<qq", n_rows, -1))
    assert_read(tmp_path / "a.arrows", data, texts)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_big_endian_table_is_no_damage(tmp_path: Path, is_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class BigEndian(arrow_messages.FlatTable):
        def number(self, field: int, code: str = "<q") -> int:
            return 1 if (field, code) == (0, "<h") else super().number(field, code)

    monkeypatch.setattr("tokmill.read.formats.arrow_messages.FlatTable", BigEndian)
    data = packed(pa.table({"text": ["one"]}), is_file=is_file)
    with pytest.raises(DamagedInputError, match="big-endian") as caught:
        read_all(write(tmp_path, {"a.arrow": data}), resume=False)
    assert f"open_{'file' if is_file else 'stream'}('FILE')" in str(caught.value.next_step)


def test_a_stream_with_other_columns_is_asked_for_the_text(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match='no column "text"'):
        read_all(write(tmp_path, {"a.arrows": stream("one") + stream("two", column="body")}), resume=False)


@pytest.mark.parametrize("kind", ["string", "string_view", "dictionary of string", "runs"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_flipped_bit_or_a_cut_is_an_error_of_ours_or_goes_unseen(tmp_path: Path, kind: str, compression: str | None) -> None:
    rng = random.Random(0)
    for is_file in (True, False):
        data = packed(pa.table({"n": range(24), "text": KINDS[kind]}), is_file=is_file, compression=compression)
        for i in range(150):
            at = rng.randrange(len(data))
            changed = data[:at] + (bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if i % 3 else b"")
            error = raised_by(write(tmp_path, {"a.arrow": changed}))
            assert isinstance(error, InputError | MemoryBudgetError) if error or not i % 3 else True
            assert error is None or "a.arrow" in str(error.where)


def raised_by(inputs: tuple[Input, ...]) -> TokmillError | None:
    try:
        read_all(inputs, resume=False, on_error="skip")
    except TokmillError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["string", "string_view", "dictionary of string"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_record_batch_of_any_size_is_read_in_slices(tmp_path: Path, kind: str, compression: str | None) -> None:
    rng = random.Random(0)
    texts: list[str | None] = [f"{i} " + "word " * rng.randrange(400) for i in range(2000)]
    rng.shuffle(texts)
    array = columns(texts)[kind]
    if kind == "dictionary of string":
        array = array.take(pa.array(rng.sample(range(2000), 2000)))
    inputs = write(tmp_path, {"a.arrow": packed(pa.table({"text": array}), is_file=True, compression=compression)})
    before = pa.total_allocated_bytes()
    found = []
    for batch in a_reader(a_content(inputs=inputs), batch_bytes=20_000, max_piece_bytes=40_000).batches(Cursor()):
        found += list(batch.documents)
        assert pa.total_allocated_bytes() - before < 500_000
    assert found == [text.encode() for text in array.to_pylist()]


def test_a_text_beyond_the_budget_is_refused_by_name(tmp_path: Path) -> None:
    inputs: tuple[Input, ...] = write(tmp_path, {"a.arrows": stream("one", "x" * 10_000)})
    with pytest.raises(MemoryBudgetError) as caught:
        read_all(inputs, sizes={"batch_bytes": 100, "max_piece_bytes": 2000})
    assert str(caught.value.where).endswith("a.arrows, row 2")


# A dictionary of views that is not held is read where it lies: back and forth.
@pytest.mark.parametrize("kind", sorted({*KINDS} - {"dictionary of views"}))
@pytest.mark.parametrize("is_file", [True, False])
def test_of_texts_in_any_layout_those_of_up_to_a_tenth_of_the_budget_are_read_and_longer_ones_skipped(
    tmp_path: Path, kind: str, is_file: bool
) -> None:
    fits, long = "words " * 190, "words " * 210
    array = columns(["one", fits, long, long + "more", None, "", "two", long])[kind]
    inputs = write(tmp_path, {"a.arrow": packed(pa.table({"text": array}), is_file=is_file)})
    sizes = {"batch_bytes": 64, "max_piece_bytes": 500, "budget_bytes": 12_000}
    reading = read_all(inputs, SpaceCutter(), on_error="skip", sizes=sizes)
    assert reading.texts == [b"one", fits.encode(), b"", b"two"]
    assert reading.counts.skipped == {"too_long": 3, "null_text": 1}
    assert [skip.record for skip in reading.skips] == [3, 4, 5, 8]
    with pytest.raises(MemoryBudgetError, match="the text of a row is longer than the 1,200 bytes") as caught:
        read_all(inputs, SpaceCutter(), sizes=sizes)
    assert str(caught.value.where).endswith("a.arrow, row 3")


def test_a_dictionary_is_read_once_however_many_rows_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    hold = arrow_buffers._Part.hold

    def counted(part: arrow_buffers._Part) -> None:
        held.append(len(part))
        hold(part)

    monkeypatch.setattr(arrow_buffers._Part, "hold", counted)
    array = pa.array([f"text {i}" for i in range(5000)]).dictionary_encode()
    inputs = write(tmp_path, {"a.arrow": packed(pa.table({"text": array}), is_file=True, chunk=10)})
    assert len(read_all(inputs, sizes={"batch_bytes": 100}, resume=False).texts) == 5000
    assert held == [5000]
