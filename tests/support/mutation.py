"""Valid files of every kind that tokmill reads, and what becomes of them when a few things in them are changed."""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import xxhash
from support import damaged_corpora
from support.damaged_corpora import CORPORA, PACKERS, TEXT, TEXTS, tar

from tokmill.core.manifest import seal

NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"4294967296",
    b"9223372036854775808",
    b"1e400",
    b"null",
    b'""',
    b"[]",
    b"{}",
    b"NaN",
)
BINARY = (0, 1, 0x7F, 0x80, 0xFF)
PIECES = (
    b"\0",
    b"\n",
    b"\r",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"[" * 3000,
    b"\xed\xa0\x80",
    b"%s",
    b"\x1b[31m",
    b"<|endoftext|>",
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**400, 0.5, -0.0, float("nan"), float("inf")),
    *("", "text", "../x", "/", "\0", "\n", "\ud800", "\u202e", "a" * 5000, "[", "(?P<a>", "\\p{", "s3://a/b", "uint32", "none"),
    *([], {}, [[]], [0], {"": 0}, ["a", "b"], {"type": "Sequence"}),
)
TYPES = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
)
SETTINGS = b"""seed = 1
val-fraction = 0.1
glob = ["*.txt"]
[tokenize]
text-key = "a.b"
threads = 2
[verify]
memory = "1GiB"
"""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few things changed: bits, lengths, pieces of themselves, numbers."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, n = rng.randrange(len(made) + 1), rng.choice((1, 2, 4, 8, 100))
        kind = rng.randrange(7)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[at : at + n]
        elif kind == 2:
            made[at:at] = made[rng.randrange(len(made) + 1) :][:n]
        elif kind == 3 and rng.randrange(2):
            del made[at:]
        elif kind == 4:
            made[at : at + n] = bytes([rng.choice(BINARY)]) * n
        elif kind == 5:
            _change_number(made, at, rng)
        else:
            made[at:at] = rng.choice(PIECES)
    return bytes(made)


def _change_number(made: bytearray, at: int, rng: random.Random) -> None:
    digits = [i for i, byte in enumerate(made[at : at + 2000], at) if 48 <= byte < 58]
    if digits:
        end = begin = rng.choice(digits)
        while end < len(made) and 48 <= made[end] < 58:
            end += 1
        made[begin:end] = rng.choice(NUMBERS)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON in which a few values are others, gone, doubled or nested; near the top rather than deep inside."""
    value: Any = {"": json.loads(data)}
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = _place(value, rng)
        kind = rng.randrange(6)
        if kind == 0 and holder is not value:
            del holder[key]
        elif kind == 1:
            holder[key] = [holder[key]]
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif kind == 2 and isinstance(holder, dict):
            holder[rng.choice(("", "type", "text", "\0"))] = holder[key]
        elif kind == 3:
            other, name = _place(value, rng)
            # A copy: what is inside itself has no end.
            holder[key] = json.loads(json.dumps(other[name]))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(value[""], indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


def _place(value: Any, rng: random.Random) -> tuple[Any, Any]:
    holder, key = value, cast("Any", "")
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
        holder = holder[key]
        key = rng.choice([*holder]) if isinstance(holder, dict) else rng.randrange(len(holder))
    return holder, key


def mutated_state(path: Path, rng: random.Random) -> bytes:
    """Return a changed manifest, journal or plan whose checksums are right, so that what it says is looked at."""
    data = path.read_bytes()
    if path.name == "manifest.json":
        body = mutated_json(data, rng).partition(b'"checksum"')[0]
        return body + seal(body)
    lines, check = [], 0
    payloads = [line.partition(b" ")[2] for line in data.splitlines()]
    chosen = rng.randrange(len(payloads))
    for i, payload in enumerate(payloads):
        made = mutated_json(payload, rng).replace(b"\n", b" ") if i == chosen else payload
        check = xxhash.xxh3_64_intdigest(made, check)
        lines.append(b"%016x %s\n" % (check, made))
    return b"".join(lines)


def valid_files() -> dict[str, bytes]:
    """Files of every kind, small; some of them damaged already."""
    made = {name: data for name, data in damaged_corpora.files().items() if data}
    made |= {f"{path.parent.name}/{path.name}": path.read_bytes() for path in CORPORA.glob("*/*") if path.stat().st_size}
    records = [{"text": text, "id": i, "meta": {"text": text, "a.b": [1.5, None]}} for i, text in enumerate(TEXTS)]
    made["plain/a.txt"] = TEXT * 5
    made["plain/a.jsonl"] = b"\n".join(json.dumps(record).encode() for record in records) + b"\n"
    made["plain/a.ndjson"] = b'{"text": "\\u00e9\\ud83e\\udd16 \\n\\"", "n": 1e5}\r\n{"text": ""}\n' * 3
    made["plain/a.csv"] = b'id,text,more\n1,"one, ""two""\nthree",x\n2,plain,\n' * 4
    made["plain/a.tsv"] = b"id\ttext\n1\tone\n2\ttwo\n" * 4
    made["plain/a.json"] = json.dumps(records).encode()
    made["plain/a.tar"] = tar({"a.txt": b"one", "b.json": b'{"text": "two"}', "c" * 90 + "/" + "d" * 60 + ".txt": b"three" * 300})
    made["plain/a.tar.gz"] = PACKERS["gzip"][1](made["plain/a.tar"])
    for i, kind in enumerate(TYPES):
        table = pa.table({"text": pa.array([*TEXTS, None, ""] * 3).cast(kind), "id": range(18)})
        made |= dict(_tables(f"table{i}", table, i))
    nested = pa.table({"text": [{"text": text, "n": [1]} for text in TEXTS], "more": [[text] * 2 for text in TEXTS]})
    return made | dict(_tables("nested", nested, 0))


def _tables(name: str, table: pa.Table, i: int) -> Iterator[tuple[str, bytes]]:
    codec = ("none", "snappy", "gzip", "zstd", "lz4", "brotli")[i]
    page = ("1.0", "2.0")[i % 2]
    with io.BytesIO() as file:
        pq.write_table(
            table, file, compression=codec, data_page_version=page, row_group_size=7, use_dictionary=i % 3 == 0, data_page_size=64
        )
        yield f"{name}/a.parquet", file.getvalue()
    packing = pa.ipc.IpcWriteOptions(compression=(None, "lz4", "zstd")[i % 3])
    for suffix, new in (("arrow", pa.ipc.new_file), ("arrows", pa.ipc.new_stream)):
        with io.BytesIO() as file:
            with new(file, table.schema, options=packing) as writer:
                writer.write_table(table, max_chunksize=7)
            yield f"{name}/a.{suffix}", file.getvalue()
    yield f"{name}/twice.arrows", _stream(table) * 2
    if not pa.types.is_nested(table["text"].type) and table["text"].type != pa.string_view():
        with io.BytesIO() as file:
            pyarrow.feather.write_feather(table, file, chunksize=5)
            yield f"{name}/a.feather", file.getvalue()


def _stream(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def generated(suffix: str, rng: random.Random) -> bytes:
    """Return bytes of a text format made of its own signs, in any order."""
    signs = {
        ".jsonl": (
            b'{"text": ',
            b'"text"',
            b": ",
            b"}",
            b"\n",
            b"[",
            b"]",
            b'"',
            b"\\u",
            b"\\ud800",
            b"\\",
            b"1e9",
            b"null",
            b"{",
            b",",
        ),
        ".csv": (b"text", b"id", b",", b'"', b"\n", b"\r\n", b"\r", b'""', b"a", b"\0", b" ", b"\xef\xbb\xbf"),
        ".tsv": (b"text", b"id", b"\t", b'"', b"\n", b"\r", b'""', b"a", b"#", b"\\t", b"\\"),
        ".txt": (
            b"<|endoftext|>",
            b"<|endof",
            b"text|>",
            b"\n",
            b"a",
            b"\0",
            b"\xff",
            "\u00e9\u0301".encode(),
            b" " * 500,
            b"x" * 3000,
        ),
    }[suffix]
    made = b"".join(rng.choices(signs, k=rng.choice((3, 30, 300))))
    return (b"text,id\n" if suffix == ".csv" and rng.randrange(2) else b"") + made


def an_input(files: dict[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    """Return the name and the bytes of an input of any kind, changed somewhere, and perhaps packed after that."""
    if rng.randrange(4) == 0:
        suffix = rng.choice((".jsonl", ".csv", ".tsv", ".txt"))
        name, data = f"made{suffix}", generated(suffix, rng)
    else:
        name, data = rng.choice(sorted(files.items()))
        name = name.rpartition("/")[2]
        if not name.endswith((".jsonl", ".json", ".ndjson")) or rng.randrange(2):
            data = mutated(data, rng)
        else:
            lines = data.splitlines() or [b"{}"]
            data = b"\n".join(itertools.chain(lines, (_of_line(line, rng) for line in lines)))
    if rng.randrange(5) == 0:
        suffix, pack = PACKERS[rng.choice(sorted(PACKERS))]
        name, data = name + suffix, pack(data)
        if rng.randrange(3) == 0:
            data = mutated(data, rng)
    return name, data


def _of_line(line: bytes, rng: random.Random) -> bytes:
    try:
        return mutated_json(line, rng).replace(b"\n", b" ")
    except (ValueError, RecursionError):
        return mutated(line, rng)
