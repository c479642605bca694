"""State that somebody else may have written: manifests and journals of every kind end in one clear message, and soon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from support.commands import called
from support.corpora import write_corpus
from support.outputs import write_output

from tokmill.core import bounded, manifest as manifest_module
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.manifest import FORMAT_VERSION, MANIFEST_NAME, decode_manifest, encode_manifest, load_manifest, seal
from tokmill.core.records import Counts, FileEntry

pytestmark = pytest.mark.usefixtures("workers_in_process")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_output(tmp_path / "out", write_corpus(tmp_path / "corpus.txt", ["one", "two", "three", "four", "five"]))
    return tmp_path / "out"


def test_every_single_bit_of_a_manifest_counts(out: Path) -> None:
    data = (out / MANIFEST_NAME).read_bytes()
    decode_manifest(data, "here")
    missed = []
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            try:
                decode_manifest(bytes(flipped), "here")
            except DamageError:
                continue
            except Exception as error:  # noqa: BLE001  whatever else it is, is wrong, but for another version
                if b'"format_version": ' in data[max(0, at - 20) : at + 1] and f"allowed: version {FORMAT_VERSION}" in str(error):
                    continue
                missed.append((at, bit, repr(error)))
                continue
            missed.append((at, bit, "not seen"))
    assert missed == []


def test_a_manifest_that_says_more_or_says_it_otherwise_is_damage(out: Path) -> None:
    data = (out / MANIFEST_NAME).read_bytes()
    said = json.loads(data)
    version = b'"format_version": %d' % FORMAT_VERSION
    for other in (
        data + b" ",
        data.replace(version, version.replace(b" ", b"  ")),
        data.replace(version, version + b",\n " + version),
        json.dumps(said | {"more": 1}, indent=1).encode() + b"\n",
        json.dumps(said).encode(),
        b'{"format_version":%d,"x":' % FORMAT_VERSION + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'"\xff"',
    ):
        with pytest.raises(DamageError):
            decode_manifest(other, "here")


def test_inputs_do_not_count_among_the_values_of_a_manifest_when_it_is_written_either(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(out)
    n_values = bounded.count_values(encode_manifest(manifest))
    for module in (bounded, manifest_module):
        monkeypatch.setattr(module, "MOST_VALUES", n_values)
    content = msgspec.structs.replace(manifest.content, inputs=manifest.content.inputs * n_values)
    many = msgspec.structs.replace(manifest, content=content)
    assert decode_manifest(encode_manifest(many), "here").content == content
    with pytest.raises(UsageError, match="more than any tokmill reads"):
        encode_manifest(msgspec.structs.replace(many, segments=manifest.segments * 2))


def test_pieces_of_a_hundred_terabytes_do_not_count_among_the_values_of_a_manifest(out: Path) -> None:
    manifest = load_manifest(out)
    segment = manifest.segments[0]
    pieces = " ".join(["4194304"] * 480)
    files = {name: msgspec.structs.replace(span, pieces=pieces) for name, span in segment.files.items()}
    many = msgspec.structs.replace(manifest, segments=[msgspec.structs.replace(segment, files=files)] * 25_000)
    assert bounded.MOST_VALUES < 25_000 * 480
    assert len(decode_manifest(encode_manifest(many), "here").segments) == 25_000


@pytest.mark.parametrize("pieces", ["0", "1 0", "-1", "1  2", " ", "1 2 ", "1" * 19, [1, 2]])
def test_pieces_that_are_no_numbers_are_damage(pieces: object, out: Path) -> None:
    said = json.loads((out / MANIFEST_NAME).read_bytes())
    next(iter(said["segments"][0]["files"].values()))["pieces"] = pieces
    body = json.dumps(said | {"checksum": ""}, indent=1).encode()[: -len(b'"checksum": ""\n}')]
    with pytest.raises(DamageError):
        decode_manifest(body + seal(body), "here")


def test_a_manifest_of_before_a_count_was_known_is_read(out: Path) -> None:
    manifest = load_manifest(out)
    data = encode_manifest(manifest)
    assert manifest.counts.parts_added == 0
    lines = [line for line in data[: -len(seal(b""))].split(b"\n") if b'"parts_added"' not in line]
    body = b"\n".join(lines)
    assert len(body) < len(data)
    assert decode_manifest(body + seal(body), "here").counts == Counts(
        **{f: getattr(manifest.counts, f) for f in manifest.counts.__struct_fields__}
    )


def make(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(40 << 30)


@pytest.mark.parametrize("kind", ["fifo", "endless", "huge", "directory"])
@pytest.mark.parametrize("what", ["verify", "repair", "inspect", "tokenize", "journal"])
def test_state_that_is_no_plain_file_ends_at_once(out: Path, tmp_path: Path, kind: str, what: str) -> None:
    corpus = tmp_path / "corpus.txt"
    path = out / MANIFEST_NAME
    if what == "journal":
        path = tmp_path / "new" / ".tokmill" / "journal"
        path.parent.mkdir(parents=True)
    else:
        path.unlink()
    make(path, kind)
    arguments: dict[str, tuple[object, ...]] = {
        "verify": ("verify", out),
        "repair": ("verify", out, "--repair"),
        "inspect": ("inspect", out),
        "tokenize": ("tokenize", corpus, "--out", out, "-q"),
        "journal": ("tokenize", corpus, "--out", tmp_path / "new", "-q"),
    }
    done = called(*arguments[what])
    assert done.returncode in (1, 10), done.stderr
    assert "unforeseen" not in done.stderr
    for part in ("where:", "next:"):
        assert part in done.stderr
    if what == "tokenize":
        again = called("tokenize", corpus, "--out", out, "-q", "--fresh")
        assert again.returncode in (0, 1, 10), again.stderr
        assert "unforeseen" not in again.stderr


@pytest.mark.parametrize(
    "what", ["n_ids", "input_index", "separator", "path", "manifest as a file", "a name that forges lines", "a name with a slash"]
)
def test_absurd_values_with_the_right_checksum_are_damage(out: Path, what: str) -> None:
    manifest = load_manifest(out)
    replace = msgspec.structs.replace
    content, segment = manifest.content, manifest.segments[0]
    names = {"manifest as a file": "manifest.json", "a name that forges lines": "a\nb\x1b[31m", "a name with a slash": "../x"}
    if what in names:
        manifest = replace(manifest, files=manifest.files | {names[what]: FileEntry(size_bytes=0)})
    elif what == "input_index":
        manifest = replace(manifest, segments=[replace(segment, after=replace(segment.after, input_index=10**9))])
    else:
        changed = {
            "n_ids": lambda: replace(content, tokenizer=replace(content.tokenizer, n_ids=10**12)),
            "separator": lambda: replace(content, separator=""),
            "path": lambda: replace(content, inputs=(replace(content.inputs[0], path="%ZZ"),)),
        }[what]()
        manifest = replace(manifest, content=changed, fingerprint=changed.fingerprint())
    with pytest.raises(DamageError):
        decode_manifest(encode_manifest(manifest), "here")


@pytest.mark.parametrize("plan", [b"[" * 5000, b'0 {"content": ' + b"[" * 5000, b'0 {"x": ' + b'{"a": ' * 5000])
def test_a_plan_that_is_nested_without_end_is_none(tmp_path: Path, plan: bytes) -> None:
    (tmp_path / ".tokmill").mkdir()
    (tmp_path / ".tokmill" / "plan").write_bytes(plan)
    with pytest.raises(UsageError, match="no complete"):
        load_manifest(tmp_path)
