"""A tokenizer is known by the content of its file, and by nothing else."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken_ext.openai_public as published  # type: ignore[import-untyped]

from tokmill.core.errors import ChangedError, TokmillError, UsageError
from tokmill.core.records import Tokenizer, text_to_path
from tokmill.encode.loading import load_encoder
from tokmill.encode.published import ENCODINGS
from tokmill.encode.resolve import known_encoding, ranks_path, resolve_tokenizer


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A copy of GPT-2's ranks under a name that lies, in a directory whose name is awkward."""
    folder = tmp_path / "a b%\n"
    folder.mkdir()
    return Path(shutil.copy(text_to_path(resolve_tokenizer("gpt2").path), folder / "o200k_base.tiktoken"))


def assert_four_parts(error: TokmillError) -> None:
    assert all((error.what, error.where, error.allowed, error.next_step))


@pytest.mark.parametrize("name", ["gpt2", "r50k_base"])
def test_gpt2_is_built_in(name: str) -> None:
    tokenizer = resolve_tokenizer(name)
    assert (tokenizer.name, tokenizer.encoding, tokenizer.n_ids, tokenizer.eot_id) == (name, "r50k_base", 50257, 50256)
    assert tokenizer.sha256 == hashlib.sha256(Path(text_to_path(tokenizer.path)).read_bytes()).hexdigest()


def test_the_asset_has_its_licence_beside_it() -> None:
    licence = Path(text_to_path(resolve_tokenizer("gpt2").path)).with_name("r50k_base.LICENSE.txt").read_text()
    assert "MIT License" in licence
    assert "Copyright (c) 2022 OpenAI" in licence


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=lambda e: e.name)
def test_encodings_are_as_published(encoding: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "load_tiktoken_bpe", lambda _, expected_hash: expected_hash)
    ours = ENCODINGS[encoding.name]  # type: ignore[attr-defined]
    theirs = getattr(published, ours.name)()
    assert (ours.pattern, ours.sha256) == (theirs["pat_str"], theirs["mergeable_ranks"])
    assert ours.eot_id == theirs["special_tokens"]["<|endoftext|>"]


def test_a_file_is_known_by_its_content(ranks: Path) -> None:
    assert resolve_tokenizer(str(ranks)).encoding == "r50k_base"


def test_a_file_needs_no_suffix_and_may_be_relative(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.rename(ranks.with_name("vocabulary"))
    monkeypatch.chdir(ranks.parent)
    tokenizer = resolve_tokenizer("vocabulary")
    assert tokenizer.encoding == "r50k_base"
    assert text_to_path(tokenizer.path) == str(ranks.with_name("vocabulary"))


@pytest.mark.parametrize("engine", ["gigatoken", "tiktoken"])
def test_a_file_gives_the_ids_of_the_built_in_one(ranks: Path, engine: str) -> None:
    tokens = [load_encoder(resolve_tokenizer(name), engine).encode([b"Hello world"])[0].tolist() for name in (str(ranks), "gpt2")]
    assert tokens == [[15496, 995]] * 2


@pytest.mark.parametrize("name", ["gpt5", "", "GPT2", "\udcff", "../x/y", "a/b/c"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="there is no tokenizer") as caught:
        resolve_tokenizer(name)
    assert_four_parts(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file") as caught:
        resolve_tokenizer(str(tmp_path / "none.tiktoken"))
    assert_four_parts(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.tiktoken").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        resolve_tokenizer(str(tmp_path / "folder.tiktoken"))


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d + b"\n", lambda d: b"\x00" + d[1:], lambda _: b""])
def test_a_damaged_or_unknown_file_is_refused_with_its_hash(ranks: Path, damage) -> None:  # type: ignore[no-untyped-def]
    ranks.write_bytes(damage(ranks.read_bytes()))
    with pytest.raises(UsageError, match=hashlib.sha256(ranks.read_bytes()).hexdigest()) as caught:
        resolve_tokenizer(str(ranks))
    assert_four_parts(caught.value)


@pytest.mark.parametrize("engine", ["gigatoken", "tiktoken"])
@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"YQ== 0\n"), lambda p: p.unlink()])
def test_a_file_that_changes_before_it_is_loaded_is_noticed(ranks: Path, engine: str, change) -> None:  # type: ignore[no-untyped-def]
    tokenizer = resolve_tokenizer(str(ranks))
    change(ranks)
    with pytest.raises(ChangedError) as caught:
        load_encoder(tokenizer, engine)
    assert_four_parts(caught.value)


def test_a_file_that_changes_before_the_engine_drops_its_caches_is_noticed(ranks: Path) -> None:
    encoder = load_encoder(resolve_tokenizer(str(ranks)), "gigatoken")
    ranks.write_bytes(ranks.read_bytes()[:-1])
    with pytest.raises(ChangedError):
        encoder.reset_caches()
    assert encoder.encode([b"Hello world"])[0].tolist() == [15496, 995]


def test_the_path_that_is_opened_is_the_one_that_was_named(ranks: Path) -> None:
    assert ranks_path(resolve_tokenizer(str(ranks))) == str(ranks)


def test_an_encoding_of_a_later_version_is_refused() -> None:
    later = Tokenizer(name="x", kind="tiktoken", encoding="p900k", path="/x", sha256="0", n_ids=1, eot_id=0)
    with pytest.raises(UsageError, match="p900k") as caught:
        known_encoding(later)
    assert_four_parts(caught.value)


def test_resolving_loads_no_engine() -> None:
    code = (
        "import sys; from tokmill.encode.resolve import resolve_tokenizer; resolve_tokenizer('gpt2'); "
        "print(*{'numpy', 'gigatoken', 'tiktoken', 'pyarrow', 'awkward'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# What SentencePiece 0.2 writes: the first piece of a model, with its score and type, and the list beside it.
MODEL = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c\n\x03<s>\x15\0\0\0\0\x18\x03"


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("m.model", MODEL, "SentencePiece model"),
        ("spiece", MODEL[:16], "SentencePiece model"),
        ("m.vocab", b"<unk>\t0\n<s>\t0\n\xe2\x96\x81the\t-3.25\n", "pieces of a SentencePiece model"),
        ("merges.txt", b"#version: 0.2\na b\n", "list of merges"),
        ("vocab.json", b'{"a": 0, "b": 1}', "no model"),
        ("tokenizer_config.json", b'{"eos_token": "</s>"}', "no model"),
    ],
)
def test_another_file_of_a_tokenizer_is_named_with_the_way_out(tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=kind) as caught:
        resolve_tokenizer(str(tmp_path / name))
    assert_four_parts(caught.value)
    assert "tokenizer.json" in (caught.value.allowed or "")
    assert ("made/tokenizer.model" in (caught.value.next_step or "")) == ("SentencePiece" in kind)


@pytest.mark.parametrize("typed", ["mytokk", "mytok/tokenizer.jsn", "mytok2", "file.jso"])
def test_a_mistyped_path_is_answered_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tokmill.encode.hub.fetch", no_hub)
    Path("mytok").mkdir()
    for path in ("mytok/tokenizer.json", "file.json"):
        Path(path).write_text("{}")
    Path("mytokens.txt").write_text("")
    with pytest.raises(UsageError, match="did you mean") as caught:
        resolve_tokenizer(typed)
    assert caught.value.suggested in ("mytok", "mytok/tokenizer.json", "file.json")


def no_hub(name: str, *_: str) -> tuple[str, str]:
    raise UsageError("it is not there", where=name, allowed="x", next_step="y")


def test_what_resembles_nothing_has_no_suggestion_but_the_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        resolve_tokenizer("nothing-like-it")
    assert caught.value.suggested == "gpt2"
    with pytest.raises(UsageError) as caught:
        resolve_tokenizer("moved/tokenizer.json")
    # Another tokenizer would make other ids.
    assert "gpt2" not in str(caught.value.next_step)
