"""Writes the binary files of `damaged/`: `python tests/support/damaged_corpora.py`. Files that exist stay as they are.

The files are committed, so that tests do not depend on what today's version of a library writes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CORPORA = Path(__file__).with_name("damaged")
TEXTS = ["one", "two", "three " * 20, "four"]
TEXT = "<|endoftext|>".join(TEXTS).encode()
CHECKED = {int(zstd.CompressionParameter.checksum_flag): 1}
PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": (".gz", lambda data: gzip.compress(data, mtime=0)),
    "zstd": (".zst", lambda data: zstd.compress(data, options=CHECKED)),
    "xz": (".xz", lzma.compress),
    "bzip2": (".bz2", bz2.compress),
    "lz4": (".lz4", lambda data: lz4.frame.compress(data, content_checksum=True)),
}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def parquet(*, checked: bool = False) -> bytes:
    made = io.BytesIO()
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    pq.write_table(table, made, compression="none", use_dictionary=False, write_page_checksum=checked)
    return made.getvalue()


def nulls() -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", None, "three", None]}), made)
    return made.getvalue()


def numbers() -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table({"text": [1, 2], "body": ["one", "two"]}), made)
    return made.getvalue()


def invalid_utf8_column() -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array([b"one", b"a\xff", b"three"], pa.binary())}), made)
    return made.getvalue()


def arrow() -> bytes:
    made = io.BytesIO()
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(made, table.schema) as file:
        file.write_table(table)
    return made.getvalue()


def arrow_stream() -> bytes:
    made = io.BytesIO()
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(made, table.schema) as file:
        file.write_table(table, max_chunksize=2)
    return made.getvalue()


def tar(members: dict[str, bytes] | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (members or {f"{i}.txt": text.encode() for i, text in enumerate(TEXTS)}).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def files() -> dict[str, bytes]:
    made = {}
    for name, (suffix, pack) in PACKERS.items():
        data = pack(TEXT)
        made[f"truncated_{name}/a.txt{suffix}"] = data[:-3]
        made[f"flipped_{name}/a.txt{suffix}"] = flipped(data, len(data) // 2)
        made[f"trailing_garbage_{name}/a.txt{suffix}"] = data + b"garbage"
        made[f"many_streams/{name}.txt{suffix}"] = pack(b"o") + pack(b"") + pack(b"ne<|endoftext|>two")
        made[f"empty_packed/{name}.txt{suffix}"] = pack(b"")
        made[f"no_bytes_{name}/a.txt{suffix}"] = b""
    whole = parquet()
    made |= {
        "truncated_parquet/a.parquet": whole[:-20],
        "flipped_parquet/a.parquet": flipped(parquet(checked=True), parquet(checked=True).index(b"three")),
        "no_bytes_parquet/a.parquet": b"",
        "null_parquet/a.parquet": nulls(),
        "number_parquet/a.parquet": numbers(),
        "invalid_utf8_parquet/a.parquet": invalid_utf8_column(),
        "truncated_arrow/a.arrow": arrow()[:-30],
        "truncated_arrow_stream/a.arrows": arrow_stream()[:-90],
        "no_bytes_arrow/a.arrow": b"",
        "truncated_arrow_between/a.arrows": arrow_stream()[:-8],
        "truncated_tar/a.tar": tar()[:1400],
        "truncated_tar_between/a.tar": tar()[:2048],
        "flipped_tar/a.tar": flipped(tar(), 1024 + 5),
        "trailing_garbage_tar/a.tar": tar() + b"garbage",
        "no_bytes_tar/a.tar": b"",
        "other_members/a.tar": tar({"a.jpg": b"\xff\xd8", "b.txt": b"one", "c/d.json": b'{"text": "two"}', "e": b""}),
        "bad_json_tar/a.tar": tar({"a.txt": b"one", "b.json": b'{"text": 1}'}),
        "invalid_utf8/a.txt": b"one<|endoftext|>a\xffb",
        "invalid_utf8_jsonl/a.jsonl": b'{"text": "one"}\n{"text": "a\xffb"}\n',
        "invalid_utf8_csv/a.csv": b"id,text\n1,one\n2,a\xffb\n",
        "invalid_utf8_tar/a.tar": tar({"a.txt": b"one", "b.txt": b"a\xffb"}),
        "duplicate_keys/a.jsonl": b'{"text": "zero", "text": "one"}\n{"text": 1, "text": "two"}\n',
        "duplicate_column/a.csv": b"text,text\n1,one\n",
        "null_text/a.jsonl": b'{"text": "one"}\n{"text": null}\n',
        "number_text/a.jsonl": b'{"text": 1}\n',
        "missing_text/a.jsonl": b'{"body": "one"}\n',
        "missing_column/a.csv": b"id,body\n1,one\n",
        "deep_nesting/a.jsonl": json.dumps({"x": 1}).encode()[:-1] + b', "y": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        "open_quote/a.csv": b'id,text\n1,one\n2,"two\n3,three\n',
        "wrong_fields/a.csv": b"id,text\n1,one\n2,two,too\n",
        "bom_csv/a.csv": b'\xef\xbb\xbftext,id\r\none,1\r\n"two\r\n",2\r\n\r\n',
        "nul_csv/a.tsv": b"text\tid\na\0b\t1\n",
        "empty_table/a.csv": b"",
        "empty_table/b.csv": b"id,text\n",
    }
    return made


def main() -> None:
    for name, data in files().items():
        path = CORPORA / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            sys.stdout.write(f"made {name}\n")


if __name__ == "__main__":
    main()
