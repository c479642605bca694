"""Sparse members of tar are read as they would be extracted: compared with GNU tar, and with each form written by hand."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from support.reading import SpaceCutter, read_all, write

from tokmill.core.errors import DamagedInputError

FORMS = ["gnu", "pax 0.0", "pax 0.1", "pax 1.0"]
MAPS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 1500)), max_size=60)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytearray:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return bytearray(member.tobuf(tarfile.GNU_FORMAT))


def checked(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: list[tuple[str, object]], name: str, size: int, data: bytes) -> bytes:
    lines = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode()
        n = len(rest)
        while len(str(n)) + len(rest) != n:
            n = len(str(n)) + len(rest)
        lines += str(n).encode() + rest
    return bytes(header("PaxHeaders/x", len(lines), tarfile.XHDTYPE)) + padded(lines) + bytes(header(name, size)) + padded(data)


def sparse_member(form: str, name: str, segments: list[tuple[int, bytes]], size: int) -> bytes:
    """A member of `segments` with holes between them, as each form of GNU tar's stores it."""
    data = b"".join(text for _, text in segments)
    # As GNU tar writes it, the map of a file that ends with a hole has an empty last segment.
    places = [(begin, len(text)) for begin, text in segments] + [(size, 0)]
    if form == "gnu":
        block = header(name, len(data), tarfile.GNUTYPE_SPARSE)
        entries = [b"%011o\0%011o\0" % place for place in places]
        block[386:482] = b"".join(entries[:4]).ljust(96, b"\0")
        block[482] = len(entries) > 4
        block[483:495] = b"%011o\0" % size
        more = [entries[i : i + 21] for i in range(4, len(entries), 21)]
        blocks = [b"".join(part).ljust(504, b"\0") + bytes([i + 1 < len(more)]) + bytes(7) for i, part in enumerate(more)]
        return checked(block) + b"".join(blocks) + padded(data)
    if form == "pax 0.0":
        each = [record for begin, n in places for record in (("GNU.sparse.offset", begin), ("GNU.sparse.numbytes", n))]
        return pax([("GNU.sparse.size", size), ("GNU.sparse.numblocks", len(places)), *each], name, len(data), data)
    if form == "pax 0.1":
        numbers = ",".join(f"{begin},{n}" for begin, n in places)
        records = [
            ("GNU.sparse.size", size),
            ("GNU.sparse.numblocks", len(places)),
            ("GNU.sparse.map", numbers),
            ("GNU.sparse.name", name),
        ]
        return pax(records, f"GNUSparseFile.1/{Path(name).name}", len(data), data)
    lines = padded("".join(f"{n}\n" for n in [len(places), *[n for place in places for n in place]]).encode())
    records = [("GNU.sparse.major", 1), ("GNU.sparse.minor", 0), ("GNU.sparse.name", name), ("GNU.sparse.realsize", size)]
    return pax(records, f"GNUSparseFile.1/{Path(name).name}", len(lines) + len(data), lines + data)


@settings(deadline=None)
@given(steps=MAPS, tail=st.integers(0, 2000), form=st.sampled_from(FORMS), batch_bytes=st.sampled_from([64, 4096, 1 << 20]))
def test_the_text_of_a_sparse_member_has_zeros_for_its_holes(
    steps: list[tuple[int, int]], tail: int, form: str, batch_bytes: int
) -> None:
    text, segments = b"", []
    for i, (hole, n) in enumerate(steps):
        text += bytes(hole)
        segments.append((len(text), (b"word %d " % i * n)[:n]))
        text += segments[-1][1]
    text += bytes(tail)
    plain = bytes(header("plain.txt", 5)) + padded(b"after")
    data = sparse_member(form, "d/sparse.txt", segments, len(text)) + plain + bytes(1024)
    with tempfile.TemporaryDirectory() as where:
        inputs = write(Path(where), {"a.tar": data})
        reading = read_all(inputs, SpaceCutter(), sizes={"batch_bytes": batch_bytes}, keep_empty=True)
    assert reading.texts == [text, b"after"]


@pytest.mark.parametrize(
    "options", [["--format=gnu"], *(["--format=posix", f"--sparse-version={n}"] for n in ("0.0", "0.1", "1.0"))]
)
def test_what_gnu_tar_writes_is_what_gnu_tar_extracts(tmp_path: Path, options: list[str]) -> None:
    with (tmp_path / "holes.txt").open("wb") as file:
        for i in range(40):
            file.seek(i << 16)
            file.write(b"stretch %d " % i)
        file.truncate(41 << 16)
    (tmp_path / "plain.txt").write_text("a plain member")
    subprocess.run(["tar", "-S", *options, "-cf", "a.tar", "holes.txt", "plain.txt"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 41 << 13
    want = subprocess.run(["tar", "-xOf", "a.tar", "holes.txt"], cwd=tmp_path, capture_output=True, check=True).stdout
    reading = read_all(write(tmp_path, {"b.tar": (tmp_path / "a.tar").read_bytes()}), resume=False)
    assert reading.texts == [want, b"a plain member"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "segments", [[(500, b"a"), (100, b"b")], [(0, b"abc"), (1, b"b")], [(999, b"ab")]], ids=["order", "overlap", "beyond"]
)
def test_a_map_that_cannot_be_right_is_refused(tmp_path: Path, form: str, segments: list[tuple[int, bytes]]) -> None:
    data = sparse_member(form, "sparse.txt", segments, 1000) + bytes(1024)
    with pytest.raises(DamagedInputError, match="map of a sparse member"):
        read_all(write(tmp_path, {"a.tar": data}))


def test_members_that_are_no_files_are_counted_by_what_they_are(tmp_path: Path) -> None:
    kinds = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.LNKTYPE]
    names = ["a.txt", "b.txt", "c.json", "d.txt", "e.txt", "f.jpg"]
    data = b"".join(bytes(header(name, 0, kind)) for name, kind in zip(names, kinds, strict=True)) + bytes(1024)
    reading = read_all(write(tmp_path, {"a.tar": data}), keep_empty=True)
    assert reading.texts == [b""], "a contiguous file is a file"
    assert reading.counts.skipped == {"hard_link": 2, "symbolic_link": 1, "other_file": 2}


def test_archives_one_after_the_other_are_not_read_in_part(tmp_path: Path) -> None:
    one = bytes(header("a.txt", 1)) + padded(b"a") + bytes(1024)
    with pytest.raises(DamagedInputError, match="perhaps another archive") as caught:
        read_all(write(tmp_path, {"a.tar": one + one}))
    assert "tar -xif" in str(caught.value.next_step)
    later = bytes(header("a.txt", 1, b"M")) + padded(b"a") + bytes(1024)
    with pytest.raises(DamagedInputError, match="several volumes"):
        read_all(write(tmp_path, {"b.tar": later}))
