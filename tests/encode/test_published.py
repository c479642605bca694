"""`tokmill vocab`: a file that was fetched is the published one, whole, or it is not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from support.web import Answer, answering

from tokmill.cli import app
from tokmill.core.errors import InputError, StorageError, UsageError
from tokmill.core.records import text_to_path
from tokmill.encode import published
from tokmill.encode.published import ENCODINGS, fetch_vocabulary, list_vocabularies, url_of
from tokmill.encode.resolve import resolve_tokenizer

GPT2 = Path(text_to_path(resolve_tokenizer("gpt2").path)).read_bytes()
PATH = "/r50k_base.tiktoken"


def test_all_published_encodings_are_listed() -> None:
    found = {v.name: v for v in list_vocabularies()}
    assert found.keys() == ENCODINGS.keys()
    assert found["r50k_base"].path
    assert (found["cl100k_base"].n_ids, found["cl100k_base"].eot_id) == (100258, 100257)


def test_a_file_is_fetched_and_used(tmp_path: Path) -> None:
    asked: list[str] = []
    with answering({PATH: Answer(GPT2)}, asked) as url:
        fetched = fetch_vocabulary("gpt-2", tmp_path / "new" / "dir", url + "/")
    assert asked == [PATH]
    assert (fetched.name, fetched.was_there, fetched.size_bytes) == ("r50k_base", False, len(GPT2))
    assert [p.name for p in (tmp_path / "new" / "dir").iterdir()] == ["r50k_base.tiktoken"]
    assert resolve_tokenizer(fetched.path).encoding == "r50k_base"


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "r50k_base.tiktoken").write_bytes(GPT2)
    assert fetch_vocabulary("r50k_base", tmp_path, "http://127.0.0.1:9").was_there


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "r50k_base.tiktoken").write_bytes(GPT2[:-1])
    with answering({PATH: Answer(GPT2)}) as url:
        assert not fetch_vocabulary("r50k_base", tmp_path, url).was_there
    assert (tmp_path / "r50k_base.tiktoken").read_bytes() == GPT2


def test_the_built_in_one_needs_no_network(tmp_path: Path) -> None:
    assert fetch_vocabulary("gpt2", tmp_path).size_bytes == len(GPT2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(GPT2[:1000], length=len(GPT2)), "cut short: 1,000 bytes"),
        (Answer(GPT2[:1000]), "not the published file: 1,000 bytes"),
        (Answer(GPT2[:-1] + b"!"), "not the published file"),
        (Answer(b"<html>log in first</html>"), "not the published file"),
        (Answer(b""), "not the published file: 0 bytes"),
        (Answer(b"", 404), "HTTP status 404"),
        (Answer(b"", 503), "HTTP status 503"),
        (Answer(b"", 302, (("Location", "file:///etc/passwd"),)), "cannot be fetched"),
    ],
)
def test_what_is_not_the_published_file_is_refused_and_leaves_nothing(tmp_path: Path, answer: Answer, message: str) -> None:
    with answering({PATH: answer}) as url, pytest.raises(InputError, match=message) as caught:
        fetch_vocabulary("r50k_base", tmp_path, url)
    error = caught.value
    assert all((error.what, error.where, error.allowed, error.next_step))
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with answering({}) as url:
        pass
    with pytest.raises(InputError, match="Connection refused"):
        fetch_vocabulary("r50k_base", tmp_path, url)


@pytest.mark.parametrize(("name", "base"), [("nothing", None), ("r50k_base", "file:///etc"), ("r50k_base", "")])
def test_what_cannot_be_asked_for_is_refused(tmp_path: Path, name: str, base: str | None) -> None:
    if base == "":
        assert fetch_vocabulary(name, tmp_path, base).size_bytes
        return
    with pytest.raises(UsageError):
        fetch_vocabulary(name, tmp_path, base)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        fetch_vocabulary("gpt2", tmp_path / "file")


def test_a_fetch_that_breaks_off_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(published, "replace", full)
    with pytest.raises(Exception, match="the disk is full"):
        fetch_vocabulary("gpt2", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cached_file_is_found_by_name_and_by_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones cannot be had here: GPT-2's stands in under another encoding's name and hash."""
    import msgspec

    from tokmill.encode import published

    o200k = msgspec.structs.replace(ENCODINGS["r50k_base"], name="o200k_base")
    monkeypatch.setitem(published.ENCODINGS, "o200k_base", o200k)
    monkeypatch.setitem(published.BY_SHA256, o200k.sha256, o200k)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    name = hashlib.sha1(url_of("o200k_base").encode()).hexdigest()
    assert name == "fb374d419588a4632f3f557e76b4b70aebbca790"
    (tmp_path / name).write_bytes(GPT2)
    for variable in ("DATA_GYM_CACHE_DIR", "TIKTOKEN_CACHE_DIR"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(tmp_path))
            for asked in ("o200k_base", "o200k_harmony", "gpt-4o", "gpt-4o-mini-2024-07-18"):
                found = resolve_tokenizer(asked)
                assert (found.name, found.encoding, found.path) == (asked, "o200k_base", str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path.parent))
    if tmp_path.parent.joinpath("data-gym-cache").exists():
        pytest.fail("left over")
    tmp_path.rename(tmp_path.parent / "data-gym-cache")
    try:
        assert resolve_tokenizer("o200k_base").path == str(tmp_path.parent / "data-gym-cache" / name)
    finally:
        (tmp_path.parent / "data-gym-cache").rename(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"YQ== 0\n", GPT2])
def test_a_file_that_is_not_in_the_cache_or_not_the_published_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    if content is not None:
        (tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(content)
    with pytest.raises(UsageError, match="the file of cl100k_base is not on this machine") as caught:
        resolve_tokenizer("gpt-4")
    assert str(tmp_path) in (caught.value.where or "")
    assert "tokmill vocab fetch cl100k_base --to DIR" in (caught.value.next_step or "")


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["vocab", "list"]) == 0
    assert "cl100k_base" in capsys.readouterr().out
    assert app.run(["vocab", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(ENCODINGS)
    with answering({PATH: Answer(GPT2)}) as url:
        assert app.run(["vocab", "fetch", "gpt2", "--to", str(tmp_path), "--base-url", url]) == 0
        assert f"--tokenizer {tmp_path}/r50k_base.tiktoken" in capsys.readouterr().out
        assert app.run(["vocab", "fetch", "o200k_base", "--to", str(tmp_path), "--base-url", url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["what"].endswith("HTTP status 404")
    assert app.run(["vocab"]) == 0
    assert app.run(["vocab", "fetch", "gpt2"]) == 2
