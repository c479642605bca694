"""Texts of files that somebody else made reach no terminal as they are, whichever command prints them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import tokmill
from tokmill.cli import app
from tokmill.core.errors import UsageError
from tokmill.core.manifest import Manifest, encode_manifest, load_manifest

pytestmark = pytest.mark.usefixtures("workers_in_process")

CONTROLS = "\x00\x07\x08\x0b\x1b\x7f\x85\x9b\u200b\u202e\u2028\u2066\ufeff\U000e0041"
HOSTILE = st.text(st.sampled_from(CONTROLS + "[]2Jm\n\r\t a"), max_size=12).map(lambda text: f"a{text}") | st.just("long" * 50_000)
PRINTED = re.compile("[\n\t -~\xa0-\xac\xae-\u061b\u061d-\u180d\u180f-\u200a\u2010-\u2027\u2030-\u205f\u2070-\ud7ff\ue000-\ufefe]*")
LONGEST = 10_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("printable")
    with contextlib.chdir(directory):
        Path("c.txt").write_text("one<|endoftext|>two<|endoftext|>three")
        tokmill.tokenize("c.txt", "o", val_fraction=0.3, shard_tokens=4)
        yield directory


def printed(*arguments: str) -> str:
    """What a command prints; JSON must be an object."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        app.run(arguments)
    if "--json" in arguments and out.getvalue():
        json.loads(out.getvalue())
        assert out.getvalue().isascii()
    elif "--json" not in arguments:
        assert max(map(len, out.getvalue().splitlines()), default=0) < LONGEST
    return out.getvalue() + err.getvalue()


def texts(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where texts are in plain data; the key of a dict is the place (..., key, None)."""
    if isinstance(value, str):
        yield at
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict):
            yield (*at, key, None)
        yield from texts(each, (*at, key))


def changed(value: Any, at: tuple[Any, ...], text: str) -> Any:
    if not at:
        return text
    if len(at) == 2 and at[1] is None:
        return {text if key == at[0] else key: each for key, each in value.items()}
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], text)
    return copy


COMMANDS = ("inspect o", "inspect o --json", "verify o", "verify o --json", "plan c.txt --out o", "merge o --out m")


@given(data=st.data(), text=HOSTILE, typed=st.sampled_from(COMMANDS))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_of_a_manifest_acts_upon_a_terminal(made: Path, data: st.DataObject, text: str, typed: str) -> None:
    manifest = load_manifest(made / "o")
    plain = msgspec.to_builtins(manifest)
    plain["counts"]["skipped"] = {"bad_json": 1}
    at = data.draw(st.sampled_from(sorted(texts(plain), key=str)))
    was = (made / "o" / "manifest.json").read_bytes()
    try:
        foreign = encode_manifest(msgspec.convert(changed(plain, at, text), Manifest))
    except (msgspec.ValidationError, UsageError):
        return
    (made / "o" / "manifest.json").write_bytes(foreign)
    try:
        assert PRINTED.fullmatch(printed(*typed.split()))
    finally:
        (made / "o" / "manifest.json").write_bytes(was)
        shutil.rmtree(made / "m", ignore_errors=True)


@pytest.mark.parametrize("field", ["tokmill_version", "skipped"])
def test_the_fields_that_inspect_prints_are_escaped(made: Path, tmp_path: Path, field: str) -> None:
    shutil.copytree(made / "o", tmp_path / "o")
    manifest = load_manifest(made / "o")
    text = "0\x1b]0;owned\x07\x1b[2J\u202e" + "9" * 100_000
    foreign = (
        msgspec.structs.replace(manifest, tokmill_version=text)
        if field == "tokmill_version"
        else msgspec.structs.replace(manifest, counts=msgspec.structs.replace(manifest.counts, skipped={text: 1}))
    )
    (tmp_path / "o" / "manifest.json").write_bytes(encode_manifest(foreign))
    said = printed("inspect", str(tmp_path / "o"))
    assert "0\\x1b]0;owned\\x07\\x1b[2J\\u202e9" in said
    assert PRINTED.fullmatch(said)
    assert len(said) < LONGEST
    found = json.loads(printed("inspect", str(tmp_path / "o"), "--json"))
    assert text == found[field] or text in found[field]


@given(text=HOSTILE.filter(lambda text: len(text) < 99 and "\0" not in text))
@example(text="a\x1b]0;owned\x07")
@settings(max_examples=6, deadline=None)
def test_no_file_name_and_no_key_acts_upon_a_terminal(made: Path, text: str) -> None:
    directory = made / "d"
    directory.mkdir()
    try:
        (directory / f"{text}.jsonl").write_text(json.dumps({text: "words"}) + "\n")
        for typed in ("tokenize d --out x", "plan d --json"):
            assert PRINTED.fullmatch(printed(*typed.split()))
        for word in ("inspect", "verify", "merge", "plan", "finalize"):
            assert PRINTED.fullmatch(printed(word, text))
            assert PRINTED.fullmatch(printed(word, "d", f"--{text}", "-o", text))
    finally:
        shutil.rmtree(directory)
        shutil.rmtree(made / "x", ignore_errors=True)


@pytest.mark.parametrize("text", ["\udcff\udc9b", "a\ud800"])
def test_lone_surrogates_are_printed_as_escapes(made: Path, text: str) -> None:
    assert made.is_dir()
    for typed in (["inspect", text], ["tokenize", text, "--out", "y"], [text], ["tokenize", "c.txt", f"--{text}"]):
        assert PRINTED.fullmatch(printed(*typed))
