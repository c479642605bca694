"""A repository is pinned to the commit that its revision means, and served from the cache where there is no network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import clean_environment
from support.small_tokenizers import path_of
from support.web import Answer, answering

from tokmill.core.errors import UsageError
from tokmill.encode import hub
from tokmill.encode.resolve import resolve_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = b'{"eos_token": "<|im_start|>"}'


def answers(*, revision: str = "main", config: bytes | None = None) -> dict[str, Answer]:
    """What a hub says of the repository some/thing."""
    found = {}
    for name, body in (("tokenizer.json", path_of("llama3").read_bytes()), ("tokenizer_config.json", config)):
        headers = (("X-Repo-Commit", COMMIT), ("ETag", f'"{name}"'))
        absent = Answer(b"", 404, (("X-Error-Code", "EntryNotFound"), *headers))
        for commit in (revision, COMMIT):
            found[f"/some/thing/resolve/{commit}/{name}"] = absent if body is None else Answer(body, 200, headers)
    return found


def resolved(url: str, home: Path, name: str, *more: str, **environment: str) -> list[str]:
    """Name, encoding, EOT id and path of a tokenizer in a fresh process, since huggingface_hub reads its settings once."""
    code = (
        "import sys; from tokmill.encode import resolve_tokenizer; from tokmill.core.errors import UsageError\n"
        "try: t = resolve_tokenizer(*sys.argv[1:]); print(t.name, t.encoding, t.eot_id, t.path, sep='\\n')\n"
        "except UsageError as error: print('error', error.what, error.next_step, sep='\\n')"
    )
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code, name, *more],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(**(settings | environment)),
        timeout=100,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("revision", ["main", pytest.param("v1.0", marks=pytest.mark.slow), COMMIT])
def test_the_commit_that_a_revision_means_is_stored(tmp_path: Path, revision: str) -> None:
    name = "some/thing" if revision == "main" else f"some/thing@{revision}"
    with answering(answers(revision=revision)) as url:
        pinned, encoding, _, path = resolved(url, tmp_path, name)
    assert (pinned, encoding) == (f"some/thing@{COMMIT}", "llama3")
    assert Path(path).read_bytes() == path_of("llama3").read_bytes()


def test_what_was_fetched_once_is_found_without_a_network(tmp_path: Path) -> None:
    with answering(answers()) as url:
        first = resolved(url, tmp_path, "some/thing")
    assert resolved(url, tmp_path, f"some/thing@{COMMIT}", HF_HUB_OFFLINE="1") == first
    assert resolved(url, tmp_path, "some/thing", HF_HUB_OFFLINE="1") == first


def test_the_configuration_beside_it_is_looked_at(tmp_path: Path) -> None:
    with answering(answers(config=CONFIG)) as url:
        error, what, next_step = resolved(url, tmp_path, "some/thing")
        assert error == "error"
        assert "is not clear" in what
        asked = resolved(url, tmp_path, "some/thing", "<|im_start|>")
    assert next_step == "--eot-token '<|endoftext|>'"
    assert asked[0] == f"some/thing@{COMMIT}"


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = Answer(b"", 404, (("X-Error-Code", "RepoNotFound"),))
    with answering({"/some/thing/resolve/main/tokenizer.json": missing}) as url:
        error, what, next_step = resolved(url, tmp_path, "some/thing")
    assert error == "error"
    assert what.startswith("tokenizer.json of the repository cannot be downloaded: ")
    assert "give the path of its tokenizer.json" in next_step


def test_without_network_and_cache_it_is_an_error(tmp_path: Path) -> None:
    error, what, _ = resolved("http://127.0.0.1:9", tmp_path, "some/thing", HF_HUB_OFFLINE="1")
    assert error == "error"
    assert "cannot be downloaded" in what


def test_a_hub_that_is_not_within_reach_is_one_error_and_no_long_wait(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("text")
    command = [sys.executable, "-m", "tokmill", "tokenize", str(tmp_path / "c.txt"), "--out", str(tmp_path / "o")]
    environment = clean_environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    began_s = time.monotonic()
    done = subprocess.run(
        [*command, "--tokenizer", "some/thing"], capture_output=True, text=True, check=False, env=environment, timeout=100
    )
    assert done.returncode == 2
    assert time.monotonic() - began_s < 15
    assert len(done.stderr.splitlines()) == 4
    assert "it is not in the cache, and the hub cannot be reached: [Errno 111] Connection refused" in done.stderr


def test_what_was_fetched_once_is_found_when_the_hub_is_not_within_reach(tmp_path: Path) -> None:
    with answering(answers()) as url:
        first = resolved(url, tmp_path, "some/thing")
    assert resolved("http://127.0.0.1:9", tmp_path, "some/thing") == first
    assert resolved("http://127.0.0.1:9", tmp_path, f"some/thing@{COMMIT}") == first


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="needs huggingface_hub") as caught:
        resolve_tokenizer("some/thing")
    assert "'tokenizers<" in (caught.value.next_step or "")


def test_without_tokenizers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr("tokmill.encode.resolve.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="Hugging Face tokenizers, which is not installed") as caught:
        resolve_tokenizer(str(path_of("gpt2")))
    assert "'tokenizers<" in (caught.value.next_step or "")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a/b", True),
        ("a-1.x/b_c@v1", True),
        ("a/b@refs/pr/1", True),
        ("a", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
    ],
)
def test_the_form_of_a_repositorys_name(name: str, is_one: bool) -> None:
    assert hub.is_repo(name) == is_one


def test_a_directory_and_a_file_of_any_name_are_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("some/thing")
    with pytest.raises(UsageError, match="cannot read the tokenizer's file: No such file"):
        resolve_tokenizer("some/thing")
    Path("some/thing/tokenizer.json").write_bytes(path_of("llama3").read_bytes())
    Path("some/vocabulary").write_bytes(path_of("llama3").read_bytes())
    by_directory, by_file = resolve_tokenizer("some/thing"), resolve_tokenizer("some/vocabulary")
    assert (by_directory.encoding, by_directory.sha256) == (by_file.encoding, by_file.sha256)
