"""Files of tokenizers are untrusted: what their names lead to, and the numbers in them, are bounded before they are used."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from support.small_tokenizers import path_of, rewritten

from tokmill.core.errors import TokmillError, UsageError
from tokmill.encode.loading import load_fastest
from tokmill.encode.published import ENCODINGS, path_here, tiktoken_cache_paths
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.encode.tokenizer_files import read_file
from tokmill.encode.tokenizer_json import touching

FILES = ("tokenizer.json", "x.tiktoken")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_directory(path: Path) -> None:
    (path / "tokenizer.json").mkdir(parents=True)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


KINDS = {
    "a pipe": make_pipe,
    "a device": make_link_to_a_device,
    "a directory": make_directory,
    "No such device": make_socket,
    "it has 1.1 TB": make_huge,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_only_a_regular_file_of_limited_size_is_read(kind: str, name: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / name)
    with pytest.raises(UsageError, match=kind) as caught:
        resolve_tokenizer(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value.where)


def test_what_lies_in_a_cache_or_beside_the_file_is_read_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    os.mkfifo(tiktoken_cache_paths("cl100k_base")[0])
    assert path_here(ENCODINGS["cl100k_base"]) is None
    rewritten("gpt2", tmp_path)
    os.mkfifo(tmp_path / "tokenizer_config.json")
    assert resolve_tokenizer(str(tmp_path)).kind == "huggingface"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("wordpiece", {"model": {"max_input_chars_per_word": 2 * 10**9}}, "max_input_chars_per_word"),
        ("wordpiece", {"model": {"max_input_chars_per_word": 10**30}}, "max_input_chars_per_word"),
        ("wordpiece", {"model": {"max_input_chars_per_word": -1}}, "max_input_chars_per_word"),
        ("wordpiece", {"model": {"max_input_chars_per_word": "many"}}, "max_input_chars_per_word"),
        ("gpt2", {"model": {"vocab": {"a": 4_000_000_000}}}, "its vocabulary cannot be read"),
        ("gpt2", {"model": {"vocab": {"a": -1}}}, "its vocabulary cannot be read"),
        ("gpt2", {"added_tokens": [{"id": 4_000_000_000, "content": "<x>", "special": True}]}, "no tokenizer.json"),
        ("gpt2", {"model": {"end_of_word_suffix": 3}}, "end_of_word_suffix"),
        ("gpt2", {"normalizer": []}, "its normalizer cannot be read"),
        ("gpt2", {"pre_tokenizer": "ByteLevel"}, "its pre_tokenizer cannot be read"),
    ],
)
def test_a_number_or_type_out_of_bounds_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_tokenizer(str(rewritten(name, tmp_path, **changes)), "</s>" if name == "wordpiece" else None)


def nested(depth: int) -> str:
    return '{"type":"Sequence","normalizers":[' * depth + "]}" * depth


@pytest.mark.parametrize("depth", [1, 50, 400, 5000, 200_000])
def test_a_part_that_is_nested_deeply_is_no_fault_of_tokmill(depth: int, tmp_path: Path) -> None:
    path = rewritten("gpt2", tmp_path, normalizer="HERE")
    path.write_text(path.read_text().replace('"HERE"', nested(depth)))
    try:
        resolve_tokenizer(str(path))
    except UsageError:
        assert depth > 1


def places(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places of a tokenizer.json, but most of a vocabulary's."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [path, *(place for key, value in [*inner][:12] for place in places(value, (*path, key)))]


SPECS = {name: json.loads(path_of(name).read_text()) for name in ("qwen2+nfc", "sentencepiece", "unigram", "wordpiece")}
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 7, 2**31, 2**70, 1.5, 1e300, "", "a", "\0", "▁", "<0x41>", [], {}, [[]], [None], {"type": 5}]
)


@given(st.data())
def test_any_value_anywhere_is_used_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SPECS)))
    spec = json.loads(json.dumps(SPECS[name]))
    *way, last = data.draw(st.sampled_from([place for place in places(spec) if place]))
    part = spec
    for key in way:
        part = part[key]
    part[last] = data.draw(VALUES)
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(json.dumps(spec))
    with contextlib.suppress(TokmillError):
        encoder = load_fastest(resolve_tokenizer(str(path), data.draw(st.sampled_from([None, "</s>", "1"]))))
        encoder.encode(["It was 1859, 你好 naïve <think>".encode()])


def with_added(n: int, path: Path) -> Path:
    spec = json.loads(path_of("gpt2").read_text())
    # Special ones are in the vocabulary and are not, and take turns with those that are not special.
    first = len(spec["model"]["vocab"])
    spec["added_tokens"] = [
        {"id": first + i, "content": f"<|tok{i}|>", "special": i % 2 == 0, "normalized": False} for i in range(n)
    ]
    path.write_text(json.dumps(spec))
    return path


def test_many_added_tokens_take_little_longer_than_few(tmp_path: Path) -> None:
    times = {}
    for n in (200, 20_000):
        path, begin = with_added(n, tmp_path / f"{n}.json"), time.process_time()
        assert resolve_tokenizer(str(path), "<|tok0|>").encoding == "gpt2"
        times[n] = time.process_time() - begin
    # Time with the square of them was a minute; the least that is asked of a slow machine.
    assert times[20_000] < 5 + 100 * times[200]


def test_a_long_added_token_leads_to_the_reference(tmp_path: Path) -> None:
    added = json.loads(path_of("gpt2").read_text())["added_tokens"]
    added.append({"id": added[-1]["id"] + 1, "content": "x" * 300_000, "normalized": False})
    assert resolve_tokenizer(str(rewritten("gpt2", tmp_path, added_tokens=added))).encoding == "other"


few = st.sets(st.text("ab<", min_size=1, max_size=4), max_size=4)


@given(few, few)
def test_tokens_that_touch_are_those_that_share_characters_somewhere(plain: set[str], special: set[str]) -> None:
    def touch(a: str, b: str) -> bool:
        n = min(len(a), len(b))
        return a in b or b in a or any(a.endswith(b[:i]) or b.endswith(a[:i]) for i in range(1, n))

    assert touching(plain, special) == {a for a in plain if any(touch(a, b) for b in special)}


def test_a_file_takes_the_memory_that_it_has_and_not_the_most_that_one_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.tiktoken").write_bytes(b"x" * 3_000_000)
    tracemalloc.start()
    try:
        assert read_file(str(tmp_path / "a.tiktoken"), ".tiktoken file") == b"x" * 3_000_000
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
