"""What is read from files that anyone may have written is bounded before it is believed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.outputs import write_output
from support.runs import plan_parts

import tokmill
from tokmill.core.bounded import MOST_VALUES
from tokmill.core.errors import DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, PLAN_NAME, decode_manifest, load_manifest, seal
from tokmill.core.system.tree import beside
from tokmill.output.journal import Header, decode_header, encode_header
from tokmill.store.transfer import Notes, UploadState


@pytest.fixture
def out(tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one<|endoftext|>two<|endoftext|>three<|endoftext|>four")
    write_output(tmp_path / "out", corpus)
    return tmp_path / "out"


def sealed(said: dict[str, Any]) -> bytes:
    """A manifest by someone who knows how to seal it."""
    body = json.dumps(said, indent=1).encode()
    body = body[: body.rindex(b'"checksum"')]
    return body + seal(body)


@pytest.mark.parametrize("what", ["segments", "parts", "reasons", "files", "unknown"])
def test_a_manifest_of_millions_of_values_is_not_decoded(out: Path, what: str) -> None:
    data = (out / MANIFEST_NAME).read_bytes()
    many = {
        "segments": b'"segments": [' + b'{"after":{},"files":{},"counts":{}},' * (MOST_VALUES // 5),
        "parts": b'"parts": [' + b"0," * (MOST_VALUES + 1),
        "reasons": b'"counts": {"skipped": {' + b'"a":1,' * (MOST_VALUES // 2 + 1),
        "files": b'"files": {' + b'"a":{"size_bytes":1},' * (MOST_VALUES // 3 + 1),
        "unknown": b'"x": [' + b"{}," * (MOST_VALUES + 1),
    }[what]
    data = data[:2] + many + data[2:]
    tracemalloc.start()
    with pytest.raises(DamageError, match="no run of tokmill writes more"):
        decode_manifest(data, "here")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * len(data) + 10_000_000


def test_a_state_of_uploads_of_millions_of_values_is_not_decoded(tmp_path: Path) -> None:
    url, path = "s3://bucket/a", tmp_path / "upload.json"
    UploadState(beside(path), url).change(is_fresh=True)
    assert UploadState(beside(path), url).notes.is_fresh
    data = path.read_bytes().removesuffix(b"}") + b',"retired":[' + b'"",' * MOST_VALUES + b'""]}'
    path.write_bytes(data)
    tracemalloc.start()
    assert UploadState(beside(path), url).notes == Notes(url=url)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * len(data) + 10_000_000


def places(said: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("value", [10**30, -1, 1 << 62, "", None])
def test_no_value_of_a_manifest_is_an_unforeseen_error(out: Path, value: object) -> None:
    data = (out / MANIFEST_NAME).read_bytes()
    for path in places(json.loads(data)):
        said = at = json.loads(data)
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        if path == ("checksum",):
            continue
        (out / MANIFEST_NAME).write_bytes(sealed(said))
        for read in (tokmill.inspect, tokmill.verify, load_manifest):
            with suppress(TokmillError):
                read(out)


@pytest.mark.parametrize("n", [0, -1, 100_000, 10**9, 10**30])
def test_a_plan_of_absurdly_many_parts_is_damage(out: Path, n: int) -> None:
    parts = out.parent / "parts"
    plan_parts([out.parent / "corpus.txt"], parts, 2)
    plan = parts / PLAN_NAME
    header = decode_header(plan.read_bytes(), str(plan))
    assert header is not None
    payload = json.loads(encode_header(header).partition(b" ")[2])
    payload["content"]["n_parts"] = n
    plan.write_bytes(b"0000000000000000 " + json.dumps(payload).encode() + b"\n")
    tracemalloc.start()
    with pytest.raises(UsageError, match="no complete tokmill output here\nwhere"):
        load_manifest(parts)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    if abs(n) < 1 << 60:
        content = type(header.content)(**{f: getattr(header.content, f) for f in header.content.__struct_fields__} | {"n_parts": n})
        plan.write_bytes(encode_header(Header.of(content, "0")))
        with pytest.raises(DamageError):
            decode_header(plan.read_bytes(), str(plan))
