"""What an older or newer tokmill wrote is called that, and never damage; `support/older` was written by one with version 1."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import xxhash
from support.corpora import write_corpus
from support.outputs import rewrite_manifest, write_output
from support.runs import run_in_process

import tokmill
from tokmill.core.errors import UsageError
from tokmill.core.manifest import FORMAT_VERSION, decode_manifest, encode_manifest, load_manifest, seal
from tokmill.core.records import FileEntry

OLDER = Path(__file__).parents[1] / "support" / "older"


def lay(out: Path, *names: str) -> None:
    """Put what an older tokmill wrote into a directory: manifest, or the state of an interrupted run."""
    for name in names:
        path = out / name if name == "manifest.json" else out / ".tokmill" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(OLDER / name, path)
        if name == "journal":
            path.with_name("train.bin.part").write_bytes(bytes(16))


def newer(out: Path) -> None:
    manifest = load_manifest(out)
    rewrite_manifest(out, manifest, format_version=FORMAT_VERSION + 1)


CALLS: dict[str, Callable[[Path, Path], object]] = {
    "verify": lambda out, _: tokmill.verify(out),
    "repair": lambda out, _: tokmill.repair(out),
    "open": lambda out, _: tokmill.open(out),
    "inspect": lambda out, _: tokmill.inspect(out),
    "report": lambda out, _: tokmill.report(out),
    "merge": lambda out, _: tokmill.merge([out], out.with_name("merged")),
    "convert": lambda out, _: tokmill.convert(out, out.with_name("converted"), format="olmo"),
    "finalize": lambda out, _: tokmill.finalize(out),
    "tokenize": lambda out, corpus: run_in_process([corpus], out, tokenizer="gpt2"),
    "append": lambda out, corpus: tokmill.tokenize([corpus], out, tokenizer="gpt2", append=True),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_newer", [False, True])
def test_an_output_of_another_version_is_not_called_damaged(tmp_path: Path, call: str, is_newer: bool) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.txt", ["one", "two", "three"]), tmp_path / "out"
    if is_newer:
        write_output(out, corpus)
        newer(out)
    else:
        lay(out, "manifest.json")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="a newer tokmill" if is_newer else "an older tokmill") as caught:
        CALLS[call](out, corpus)
    assert "upgrade" in str(caught.value) if is_newer else "--fresh" in str(caught.value)
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["journal", "manifest of a run that was publishing"])
def test_a_run_that_an_older_version_began_is_finished_there_or_started_over(tmp_path: Path, name: str) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.txt", ["one", "two", "three"]), tmp_path / "out"
    lay(out, "journal")
    if name != "journal":
        shutil.copy(OLDER / "manifest.json", out / ".tokmill" / "manifest.json.part")
    before = {path.name: path.read_bytes() for path in (out / ".tokmill").iterdir()}
    with pytest.raises(UsageError, match="an older tokmill") as caught:
        run_in_process([corpus], out, tokenizer="gpt2")
    assert "--fresh" in str(caught.value)
    assert {path.name: path.read_bytes() for path in (out / ".tokmill").iterdir() if path.name != "lock"} == before
    assert "an older tokmill" in tokmill.plan([corpus], out, tokenizer="gpt2").notices[0]
    run_in_process([corpus], out, tokenizer="gpt2", fresh=True)
    assert tokmill.verify(out).ok


@pytest.mark.parametrize("fresh", [False, True])
def test_parts_that_an_older_version_began_are_given_up_together(tmp_path: Path, fresh: bool) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.txt", ["one", "two", "three"]), tmp_path / "out"
    lay(out, "plan")
    for call in (
        lambda: tokmill.finalize(out),
        lambda: tokmill.tokenize([corpus], out, tokenizer="gpt2", part="0/2", fresh=fresh),
    ):
        with pytest.raises(UsageError, match="an older tokmill") as caught:
            call()
        assert f"remove {out / '.tokmill'}" in str(caught.value)


@pytest.mark.parametrize("how", ["another version", "damaged"])
def test_fresh_leaves_no_file_of_an_output_whose_manifest_cannot_be_used(tmp_path: Path, how: str) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.txt", ["one", "two", "three"]), tmp_path / "out"
    manifest = write_output(out, corpus)
    (out / "train_000007.bin").write_bytes(b"1234")
    files = manifest.files | {"train_000007.bin": FileEntry(size_bytes=4, side="train", tokens=2)}
    rewrite_manifest(out, manifest, files=files, format_version=FORMAT_VERSION - (how == "another version"))
    (out / "notes.txt").write_text("mine")
    if how == "damaged":
        path = out / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    run_in_process([corpus], out, tokenizer="gpt2", fresh=True)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "notes.txt", "train.bin", "val.bin"]


@pytest.mark.parametrize(
    ("known", "unknown"),
    [(b'"raw"', b'"tokenshards"'), (b'"text",\n    "compression"', b'"avro",\n    "compression"'), (b'"uint16"', b'"uint64"')],
)
def test_what_a_newer_version_of_the_same_layout_can_do_is_not_damage(tmp_path: Path, known: bytes, unknown: bytes) -> None:
    data = encode_manifest(write_output(tmp_path / "out", write_corpus(tmp_path / "corpus.txt", ["one", "two"])))
    body = data[: -len(seal(b""))].replace(known, unknown)
    assert body != data[: -len(seal(b""))]
    with pytest.raises(UsageError, match="does not know") as caught:
        decode_manifest(body + seal(body), "here")
    assert caught.value.next_step == "pip install --upgrade tokmill"
    out = tmp_path / "begun"
    lay(out, "journal")
    journal = out / ".tokmill" / "journal"
    payload = journal.read_bytes().split(b"\n")[0][17:].replace(b'"format_version":1', b'"format_version":%d' % FORMAT_VERSION)
    payload = msgspec.json.encode(msgspec.json.decode(payload)).replace(
        known.replace(b"\n    ", b"").replace(b": ", b":"), unknown.replace(b"\n    ", b"")
    )
    journal.write_bytes(b"%016x %s\n" % (xxhash.xxh3_64_intdigest(payload, 0), payload))
    with pytest.raises(UsageError, match="does not know"):
        tokmill.report(out)
