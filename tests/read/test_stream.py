"""Streams: every byte of every member or frame, and no end is believed that is not one."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import resource
import sys
from pathlib import Path

import lz4.frame
import pytest
from support.reading import read_all, write

from tokmill.core.errors import ChangedError, DamagedInputError, InputError
from tokmill.core.protocols import ByteStream
from tokmill.core.records import Input
from tokmill.read.inputs import find_inputs
from tokmill.read.stream import open_stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = "Twenty words of text, and é and 字 too. ".encode() * 40
PARTS = [TEXT[:700], b"", TEXT[700:]]
CHECKED: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
PACKED = {
    "a.txt.gz": b"".join(gzip.compress(part) for part in PARTS),
    "a.txt.zst": b"".join(zstd.compress(part, options=CHECKED) for part in PARTS[:2])
    + SKIPPABLE
    + zstd.compress(PARTS[2], options=CHECKED),
}


def contents(source: Input, n_bytes: int = 1 << 20) -> bytes:
    stream = open_stream(source)
    try:
        data = b""
        while part := stream.read(n_bytes):
            assert len(part) <= n_bytes
            data += part
        assert stream.offset == len(data)
        return data
    finally:
        stream.close()


def drain(stream: ByteStream) -> None:
    while stream.read(1 << 20):
        pass


def packed(tmp_path: Path, name: str, data: bytes) -> Input:
    return write(tmp_path, {name: data})[0]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("n_bytes", [1, 7, 1000, 1 << 20])
def test_all_members_and_frames_are_read(tmp_path: Path, name: str, n_bytes: int) -> None:
    assert contents(packed(tmp_path, name, PACKED[name]), n_bytes) == TEXT


@pytest.mark.parametrize("name", PACKED)
def test_truncation_at_every_byte_is_an_error(tmp_path: Path, name: str) -> None:
    data = PACKED[name]
    ends = [len(gzip.compress(PARTS[0])), len(gzip.compress(PARTS[0]) + gzip.compress(b""))]
    if name.endswith("zst"):
        first = len(zstd.compress(PARTS[0], options=CHECKED))
        ends = [first, first + len(zstd.compress(b"", options=CHECKED))]
        ends.append(ends[-1] + len(SKIPPABLE))
    for n in range(len(data)):
        source = packed(tmp_path, name, data[:n])
        if n in ends:
            assert contents(source) == TEXT[:700]
            continue
        with pytest.raises(DamagedInputError) as caught:
            contents(source)
        assert name in str(caught.value.where), n
        assert "decompressed byte" in str(caught.value.where)


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path, name: str) -> None:
    data = PACKED[name]
    for i in range(0, len(data) * 8, 5):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        try:
            # Name, time and flags of a gzip header carry no check sum.
            assert contents(packed(tmp_path, name, bytes(flipped))) == TEXT, i
        except DamagedInputError:
            continue


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("garbage", [b"x", b"garbage that follows", b"\x1f", b"\x28\xb5", b"\0x"])
def test_what_follows_the_compressed_data_is_an_error(tmp_path: Path, name: str, garbage: bytes) -> None:
    with pytest.raises(DamagedInputError):
        contents(packed(tmp_path, name, PACKED[name] + garbage))


def test_zeros_behind_gzip_are_padding(tmp_path: Path) -> None:
    assert contents(packed(tmp_path, "a.txt.gz", PACKED["a.txt.gz"] + b"\0" * 200_000)) == TEXT


@pytest.mark.parametrize("name", PACKED)
def test_a_run_is_resumed_inside_compressed_data(tmp_path: Path, name: str) -> None:
    reading = read_all((packed(tmp_path, name, PACKED[name]),), separator=" ", sizes={"batch_bytes": 300})
    assert reading.texts == TEXT.split(b" ")


def test_a_bomb_stays_bounded(tmp_path: Path) -> None:
    import tracemalloc

    for name, data in {"a.txt.gz": gzip.compress(b"\0" * (64 << 20)), "a.txt.zst": zstd.compress(b"\0" * (64 << 20))}.items():
        stream = open_stream(packed(tmp_path, name, data))
        tracemalloc.start()
        n = 0
        while part := stream.read(1 << 20):
            n += len(part)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        stream.close()
        assert n == 64 << 20
        assert peak < 8 << 20


def test_a_window_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(TEXT) + compressor.flush()
    with pytest.raises(DamagedInputError, match="window of more than 128 MiB"):
        contents(packed(tmp_path, "a.txt.zst", data))


@pytest.mark.parametrize("change", ["longer", "shorter", "touched", "replaced", "gone"])
def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path, change: str) -> None:
    (source,) = write(tmp_path, {"a.txt": TEXT})
    path = tmp_path / "a.txt"
    if change == "gone":
        path.unlink()
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.write_bytes({"longer": TEXT + b"x", "shorter": TEXT[:-1], "replaced": TEXT[::-1]}[change])
        if change == "replaced":
            os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError) as caught:
        open_stream(source)
    assert "a.txt" in str(caught.value.where)


@pytest.mark.parametrize("name", ["a.txt", *PACKED])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    source = packed(tmp_path, name, PACKED.get(name, TEXT))
    stream = open_stream(source)
    stream.read(10)
    with (tmp_path / name).open("ab") as file:
        file.write(gzip.compress(b"more"))
    with pytest.raises(InputError if name.endswith("zst") else ChangedError):
        drain(stream)
    stream.close()


def test_a_directory_in_place_of_a_file_is_an_error_with_four_parts(tmp_path: Path) -> None:
    (source,) = write(tmp_path, {"a.txt": b""})
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    with pytest.raises((DamagedInputError, ChangedError)) as caught:
        contents(source)
    assert all((caught.value.where, caught.value.allowed, caught.value.next_step))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (source,) = write(tmp_path, {"a.txt": TEXT})
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DamagedInputError, match="denied"):
        open_stream(source)


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(TEXT,)).start()
    (source,) = find_inputs([str(path)], glob=None, input_format=None).inputs
    assert source.size_bytes is None
    assert contents(source) == TEXT


PACKERS = {".gz": gzip.compress, ".zst": zstd.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".lz4": lz4.frame.compress}


@pytest.mark.parametrize("suffix", [".xz", ".bz2", ".lz4"])
def test_the_other_compressions_are_read_frame_by_frame_and_cut_nowhere(tmp_path: Path, suffix: str) -> None:
    parts = [PACKERS[suffix](part) for part in (PARTS[0], b"", PARTS[1])]
    data, ends = b"".join(parts), {len(parts[0]), len(parts[0]) + len(parts[1])}
    for n_bytes in (1, 7, 1 << 20):
        assert contents(packed(tmp_path, "a.txt" + suffix, data), n_bytes) == PARTS[0] + PARTS[1]
    for n in set(range(len(data))) - ends:
        with pytest.raises(DamagedInputError, match=r"ends in the middle|no complete"):
            contents(packed(tmp_path, "a.txt" + suffix, data[:n]))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_bomb_of_any_kind_is_given_out_in_bounded_parts(tmp_path: Path, suffix: str) -> None:
    stream = open_stream(packed(tmp_path, "a.txt" + suffix, PACKERS[suffix](bytes(40 << 20))))
    before, n_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    while data := stream.read(1 << 16):
        assert len(data) <= 1 << 16
        n_bytes += len(data)
    stream.close()
    assert n_bytes == 40 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 << 10
