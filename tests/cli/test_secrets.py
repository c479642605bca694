"""Whatever is wrong with a command, nothing that it prints or writes has a password or a signature of a URL in it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from support.commands import called, clean_environment

import tokmill
from tokmill.cli import app
from tokmill.core.errors import TokmillError

pytestmark = pytest.mark.usefixtures("workers_in_process")

WORD = "SECRETPW"
WORDS = (WORD, "Q7z", "Q%377%7A", "Ωß7")
"""A short one is no secret outside of its URL, so what is looked for occurs in no other text here."""
AROUND = st.text(st.sampled_from("aZ9/@:?#&=%+ '\"\\.é"), max_size=4).filter(lambda text: not text[:1].isdigit())
"""What stands beside the word in a secret. A number and a slash after a colon is a port."""
PLACES = (
    "s3://AKIAX:{}@bucket/f.txt",
    "https:/user:{}@127.0.0.1/f.txt",
    "https:user:{}@127.0.0.1/f.txt",
    "HTTPS:///user:{}@127.0.0.1/f.txt",
    "user:{}@host:/f.txt",
    "//user:{}@host/f.txt",
    "htp://user:{}@host/f.txt",
    "htp://{}@host/f.txt",
    "htps:/host/f.txt?code={}",
    "https:/host/f.txt?X-Amz-Signature={}",
    "https:/host/f.txt?{}",
    "https:/host/f.txt#{}",
    "https://user:{}@127.0.0.1:1/f.txt",
    "https://{}@127.0.0.1:1/f.txt",
    "s3://bucket/f.txt?X-Amz-Signature={}",
    "https://127.0.0.1:1/f.txt?sv=2024&sig={}",
    "https://127.0.0.1:1/f.txt?a=b&access_token={}#c",
    "HF://user:{}@datasets/a/b.txt",
    "ftp:/user:{}@host/f.txt",
    "az:/container/f.txt?sig={}",
    "user:{}@bucket/f.txt",
    "user:{}@host",
    "user:{}@127.0.0.1:80",
    "user:{}@[::1]/f.txt",
    "https//user:{}@127.0.0.1/f.txt",
    "https;//user:{}@127.0.0.1/f.txt",
    "https:127.0.0.1/f.txt?X-Amz-Signature={}",
    "127.0.0.1/f.txt?X-Amz-Signature={}",
    " user:{}@host/f.txt",
)
COMMANDS = (
    "tokenize U",
    "tokenize U --out o",
    "tokenize U --out o --json",
    "tokenize U --out o --thread 2",
    "tokenize U --out o --threads x -v",
    "tokenize U --out o --val-fraction 10% --json",
    "tokenize U --out o --outt o2",
    "tokenize U -out o",
    "tokenize U --input x --out o",
    "tokenize U --out",
    "tokenize c.txt U --out o",
    "tokenize c.txt --out U",
    "tokenize c.txt --out=U",
    "tokenize c.txt -oU",
    "tokenize c.txt --out o --U",
    "tokenize c.txt --out o --U=3",
    "tokenize c.txt --out o --fresh=U",
    "tokenize c.txt --out o --events U",
    "tokenize c.txt --out o --tokenizer U",
    "tokenize c.txt --out o --tokenizer U --json",
    "tokenize d --out o --glob U",
    "tokenize c.txt --out o --stage U",
    "tokenize c.txt --out o --ray U --part 0/2",
    "tokenize c.txt --out o --part U",
    "tokenize c.txt --out o --memory U",
    "tokenize c.txt --out o --seed U",
    "tokenize c.txt --out o --format U",
    "tokenize c.txt --out o --eot-token U",
    "tokenize c.txt --out o --input-format U",
    "tokenize c.txt --out o --shard-tokens U",
    "tokenize c.txt --out o --glob U --show-config",
    "tokenize c.txt --out U --show-config --json",
    "tokenise U",
    "U",
    "U --json",
    "plan U --json",
    "plan c.txt --out U",
    "verify U",
    "verify o U --json",
    "verify o --source U --source U x",
    "inspect U --json",
    "inspect U --side U",
    "report U",
    "report d --out U",
    "merge U d --out o",
    "merge d --out U",
    "convert U --out o --format raw",
    "convert c.txt --out o --format raw --val-input U",
    "reshard U --out o",
    "finalize U",
    "finalize U --stage U",
    "completion U",
    "doctor U",
    "vocab fetch U --to d",
    "vocab fetch gpt2 --to U",
    "vocab U",
)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "c.txt").write_text("one<|endoftext|>two")
    (directory / "d").mkdir()
    with contextlib.chdir(directory):
        yield directory


def clear(directory: Path) -> None:
    """Remove what earlier commands have made of other words."""
    for path in directory.iterdir():
        if path.name not in {"c.txt", "d", "kept"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def everything_below(directory: Path) -> str:
    """Names and contents of all files."""
    found = [path for path in directory.rglob("*") if not path.is_relative_to(directory / "kept")]
    return "\n".join([*map(str, found), *(path.read_text(errors="replace") for path in found if path.is_file())])


def told(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        app.run(arguments)
    return out.getvalue()


@given(place=st.sampled_from(PLACES), typed=st.sampled_from(COMMANDS), word=st.sampled_from(WORDS), before=AROUND, after=AROUND)
@example(place=PLACES[0], typed="tokenize U --out o", word=WORD, before="ab/", after="")
@example(place=PLACES[0], typed="tokenize U", word=WORD, before="p@ss/", after="")
@example(place=PLACES[0], typed="tokenize U", word=WORD, before="?9", after="")
@example(place=PLACES[1], typed="tokenize c.txt --out U", word=WORD, before="", after="")
@example(place=PLACES[1], typed="tokenize c.txt --out o --U", word=WORD, before="", after="=")
@example(place=PLACES[4], typed="tokenize c.txt --out o --events U", word=WORD, before="", after="'")
@example(place=PLACES[4], typed="merge U d --out o", word=WORD, before="@", after="@")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_mistake_shows_a_secret(elsewhere: Path, place: str, typed: str, word: str, before: str, after: str) -> None:
    # Nothing tells a user with a slash and no password from a host and a path.
    assume(":{}" in place or "?" in place or "#" in place or not set("/?#:") & {*before, *after})
    # Nor the end of a password from that of a host.
    assume("@" not in before or not set("?#") & {*after})
    clear(elsewhere)
    url = place.format(f"{before}{word}{after}")
    said = told(*(each.replace("U", url) for each in typed.split())) + everything_below(elsewhere)
    assert word not in said
    assert unquote(word) not in said


@given(word=st.text(st.sampled_from("wikteszW019._"), min_size=1, max_size=12).filter(lambda word: word.strip("._")))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_word_of_a_query_is_no_secret_elsewhere(elsewhere: Path, word: str) -> None:
    url = f"https://host/{word}.txt?dataset={word}&author={word}#{word}"
    words = ["--out", f"d/{word}", "--text-key", f"{word}@z", "--glob", f"./{word}:1e-4@*", "--stage", f"exp:/{word}"]
    said = json.loads(told("tokenize", "c.txt", url, *words, "--json", "--threads", "x").splitlines()[-1])
    assert shlex.split(said["error"]["next"].partition("\n")[0])[4:-3] == words


@pytest.mark.parametrize("typed", COMMANDS)
def test_no_mistake_shows_a_password_with_a_slash(elsewhere: Path, typed: str) -> None:
    for place in ("s3://AKIAX:ab/{}@bucket/f.txt", "https:/user:{}@127.0.0.1/f.txt", "user:{}@host:/f.txt"):
        assert WORD not in told(*(word.replace("U", place.format(WORD)) for word in typed.split()))
    assert WORD not in everything_below(elsewhere)


@pytest.mark.parametrize("option", ["out", "events", "tokenizer", "seed", "format", "outt", "fresh"])
def test_settings_and_variables_show_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text("one")
    arguments = ["tokenize", "c.txt", *([] if option == "out" else ["--out", "o"])]
    for place in PLACES[:6]:
        url = place.format(f"ab/{WORD}")
        monkeypatch.setenv(f"TOKMILL_{option.upper()}", url)
        assert WORD not in told(*arguments) + told(*arguments, "--show-config")
        monkeypatch.delenv(f"TOKMILL_{option.upper()}")
        Path("tokmill.toml").write_text(f"{option} = {json.dumps(url)}\n")
        assert WORD not in told(*arguments) + told(*arguments, "--show-config", "--json")
        Path("tokmill.toml").unlink()
    assert WORD not in everything_below(tmp_path)


CALLS: dict[str, Any] = {
    "input": lambda url: tokmill.tokenize(url, "o"),
    "out": lambda url: tokmill.tokenize("c.txt", url),
    "plan": tokmill.plan,
    "finalize": tokmill.finalize,
    "verify": tokmill.verify,
    "inspect": tokmill.inspect,
    "open": tokmill.open,
    "merge": lambda url: tokmill.merge([url], "o"),
    "convert": lambda url: tokmill.convert(url, "o", format="raw"),
    "reshard": lambda url: tokmill.reshard(url, "o", shard_tokens=9),
    "repair": tokmill.repair,
}
OPTIONS = ("tokenizer", "memory", "format", "input_format", "stage", "part", "shard_tokens", "threads", "seed", "on_error")


@pytest.mark.parametrize("place", PLACES[:8])
@pytest.mark.parametrize("call", CALLS)
def test_no_error_in_python_shows_a_secret(elsewhere: Path, place: str, call: str) -> None:
    with pytest.raises(TokmillError) as caught:
        CALLS[call](place.format(f"ab/{WORD}"))
    assert WORD not in str(caught.value) + repr(caught.value) + str(vars(caught.value))
    assert WORD not in everything_below(elsewhere)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_in_python_shows_a_secret(elsewhere: Path, name: str) -> None:
    for place in PLACES[:8]:
        with pytest.raises(TokmillError) as caught:
            tokmill.tokenize("c.txt", "o", **{name: place.format(f"ab/{WORD}")})  # type: ignore[arg-type]
        assert WORD not in str(caught.value) + repr(caught.value) + str(vars(caught.value))
    assert WORD not in everything_below(elsewhere)


@pytest.mark.parametrize(
    ("out", "proposed"),
    [
        ("s3:/AKIAX:SECRETPW@bucket/out", "tokmill tokenize c.txt --out s3://bucket/out"),
        ("s3:bucket/x", "tokmill tokenize c.txt --out s3://bucket/x"),
        ("https:/host/x", "tokmill tokenize c.txt --out https://host/x"),
        ("https:host/x", "tokmill tokenize c.txt --out https://host/x"),
        ("sftp:/host/x", "tokmill tokenize c.txt --out ./sftp:/host/x"),
        ("exp:/x", "tokmill tokenize c.txt --out ./exp:/x"),
        *((out, "for a path of this machine put ./ before it") for out in ("12:30@gpu1", "lr:1e-4@run", "***@gpu1")),
        *(
            (f"{out}user:SECRETPW@{host}", "for a path")
            for out in ("", "ftp:/", "oss:/")
            for host in ("h:/x", "a.org/x", "minio/b/x")
        ),
    ],
)
def test_what_may_be_a_url_is_no_name_of_a_directory(elsewhere: Path, out: str, proposed: str) -> None:
    before = set(elsewhere.rglob("*"))
    done = called("tokenize", "c.txt", "--out", out)
    assert done.returncode == 2
    assert f"next:    {proposed}" in done.stderr
    assert WORD not in done.stderr
    assert set(elsewhere.rglob("*")) == before


def test_a_local_path_that_looks_like_a_url_is_one_if_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    for name in ("s3:/c.txt", "me:and@you.txt"):
        Path(name).write_text("one<|endoftext|>two")
        planned = json.loads(called("plan", name, "--json").stdout)
        assert planned["inputs"][0]["path"] == str(tmp_path / name)
    for out in ("./me:or@you", "me:or@you"):
        done = called("tokenize", "s3:/c.txt", "--out", out, "--json")
        assert json.loads(done.stdout)["out"] == str(tmp_path / "me:or@you")


def test_the_arguments_of_no_child_have_a_secret(elsewhere: Path) -> None:
    probe = (
        "import os, sys, runpy; old = os.posix_spawn\n"
        "def spy(path, words, *a, **k): print('CHILD', *words, flush=True); return old(path, words, *a, **k)\n"
        "os.posix_spawn = spy; sys.argv = ['tokmill', *sys.argv[1:]]; runpy.run_module('tokmill', run_name='__main__')"
    )
    words = ["tokenize", "c.txt", "--out", "made", "--glob", f"https://user:{WORD}@host/*"]
    done = subprocess.run(
        [sys.executable, "-c", probe, *words], capture_output=True, text=True, env=clean_environment(), check=True
    )
    assert "CHILD" in done.stdout
    assert WORD not in done.stdout + done.stderr + everything_below(elsewhere)
    assert os.path.exists("made/manifest.json")
