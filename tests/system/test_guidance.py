"""What a person who begins is told: a next step that works, numbers that agree, a side that is empty, an example that copes."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.commands import called, clean_environment
from support.corpora import write_corpus
from support.oracle import gpt2
from support.outputs import write_output

import tokmill
from tokmill.cli import app
from tokmill.core.errors import ChangedError, DamageError, InputError, StorageError
from tokmill.core.system.durable import storage_errors
from tokmill.formats import FORMATS
from tokmill.read.json_record import NotARecordError, RecordParser
from tokmill.run.advice import fraction_for

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = [f"Document {i}. {'Some words, then more. ' * (i % 9)}Ünïcödé\n" for i in range(200)]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=clean_environment(), timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        (["tokenise", "a b.txt", "--out", "o"], "tokmill tokenize 'a b.txt' --out o"),
        (["verfy", "o"], "tokmill verify o"),
        (["inspects"], "tokmill inspect"),
        (["x"], "tokmill --help"),
        (["tokenize", "--oot", "o"], "tokmill tokenize --out o"),
        (["tokenize", "--oot"], "tokmill tokenize --help"),
        (["--oot"], "tokmill --help"),
    ],
)
def test_the_next_step_of_a_mistyped_command_is_one_that_works(
    capsys: pytest.CaptureFixture[str], arguments: list[str], next_step: str
) -> None:
    assert app.run(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"  next:    {next_step}"


@pytest.mark.parametrize(
    ("arguments", "meant", "next_step"),
    [
        (["tokenize", "a", "-out", "pos"], "--out pos", "tokmill tokenize a --out pos"),
        (["tokenize", "a", "-out=pos"], "--out=pos", "tokmill tokenize a --out=pos"),
        (["tokenize", "a", "-quiet", "--out", "pos"], "--quiet", "tokmill tokenize a --quiet --out pos"),
        (["verify", "o", "-val-fraction"], None, None),
        (["tokenize", "a", "--separator", "-out", "-o", "pos"], None, None),
        (["tokenize", "-o", "pos", "--", "-out"], None, None),
        (["verify", "-qv", "o"], None, None),
    ],
)
def test_a_long_option_with_one_dash_is_not_read_as_a_short_one_with_the_rest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    meant: str | None,
    next_step: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(arguments) == 2
    said = capsys.readouterr().err
    assert ("did you mean" in said) == (meant is not None)
    if meant:
        assert f"did you mean {meant}?" in said
        assert said.splitlines()[-1] == f"  next:    {next_step}"
    assert [*tmp_path.iterdir()] == []


def test_an_input_directory_that_is_the_output_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", TEXTS)
    assert app.run(["tokenize", str(corpus.parent), "--out", str(corpus.parent)]) == 2
    assert "this is the output directory, which is not searched for inputs" in capsys.readouterr().err


def test_verbose_says_what_was_decided(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", TEXTS)
    plain = called("tokenize", corpus, "--out", tmp_path / "plain").stderr
    told = called("tokenize", corpus, "--out", tmp_path / "told", "-v", "--threads", "1", "--memory", "512MiB").stderr
    for words in (
        f"input: {corpus}, text",
        "tokenizer: gpt2, 50,257 ids",
        "engine gigatoken, 1 thread",
        "memory: 512 MiB",
        "batches: ",
    ):
        assert words in told
        assert words not in plain


def test_a_directory_with_other_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", TEXTS)
    (tmp_path / "old.bin").touch()
    done = called("tokenize", corpus, "--out", tmp_path)
    assert done.returncode == 2
    assert "there is a file here that the trainer may read, and no tokmill manifest lists it" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["corpus.txt", "old.bin"]
    assert not (tmp_path / "train.bin").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".hidden").touch()
    assert called("tokenize", corpus, "--out", tmp_path / "new", "-q").returncode == 0
    assert called("verify", tmp_path / "new", "-q").returncode == 0


def test_too_many_bad_records_are_in_the_file_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbad\n{"text": null}\n')
    done = called("tokenize", path, "--out", tmp_path / "o", "--on-error", "skip", "--max-skipped", "1", "--json")
    assert done.returncode == 15
    named = Path(json.loads(done.stdout)["error"]["where"])
    assert named == tmp_path / "o" / ".tokmill" / "skipped.jsonl.part"
    assert [json.loads(line)["reason"] for line in named.read_text().splitlines()] == ["invalid_json", "null_text"]


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        (
            ["few", *TEXTS[:11]],
            [],
            "val.bin is empty .* of 12 documents none was drawn for validation; for more, .*--val-fraction 0.5",
        ),
        (
            ["one"],
            [],
            "val.bin is empty .* of 1 document none was drawn for validation, and .* --separator .* --val-tail 10%.*With --val",
        ),
        (["one"], ["--val-fraction", "0.999"], "train.bin is empty .* of 1 document none was drawn for training"),
        (TEXTS[1:3], ["--val-fraction", "0.001", "--eot", "none"], "val.bin is empty .* --val-fraction 0.5"),
    ],
)
def test_an_empty_side_is_a_notice_with_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: list[str], options: list[str], words: str
) -> None:
    path = write_corpus(tmp_path / "few.txt", texts)
    assert app.run(["tokenize", str(path), "--out", str(tmp_path / "o"), *options]) == 0
    shown = capsys.readouterr()
    assert len(re.findall(words, shown.err + shown.out)) == 1
    assert re.search(f"^  note: {words}", shown.out, re.MULTILINE)
    assert app.run(["tokenize", str(path), "--out", str(tmp_path / "o"), *options, "--json", "-q"]) == 0
    (notice,) = json.loads(capsys.readouterr().out)["notices"]
    assert re.match(words, notice)
    with tokmill.open(tmp_path / "o") as data:
        assert sorted([len(data.train) > 0, len(data.val) > 0]) == [False, True]
        assert data.n_documents("train") + data.n_documents("val") == len(texts)
    assert tokmill.verify(tmp_path / "o", sources=str(path)).ok


def test_who_appended_or_joined_parts_is_not_told_to_make_it_anew_of_the_last_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (write_corpus(tmp_path / name, TEXTS[:100]) for name in ("old.txt", "new.txt"))
    tokmill.tokenize(old, tmp_path / "o", threads=1)
    (appended,) = tokmill.tokenize(new, tmp_path / "o", threads=1, append=True).notices
    for part in ("0/2", "1/2"):
        tokmill.tokenize([old, new], tmp_path / "p", threads=1, part=part)
    (joined,) = tokmill.finalize(tmp_path / "p").notices
    assert "make the output of all inputs again, in another directory, with --val-fraction 0." in appended
    assert "make all parts again, in another directory, with --val-fraction 0." in joined
    assert "--fresh" not in appended + joined
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n')
    assert app.run(["tokenize", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o"), "--append", "--threads", "1"]) != 0
    said = capsys.readouterr().err
    assert "nothing was added" in said
    assert "--fresh" not in said


def test_members_of_archives_that_are_passed_over_are_told_and_no_list_of_them_is_promised(tmp_path: Path) -> None:
    for name, members in (("some", ("a.bin", ".hidden.txt", "b.txt")), ("none", ("a.bin", "b.bin"))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for member in members:
                (tmp_path / member).write_text("A text. " * 500)
                archive.add(tmp_path / member, member)
    some, none = (tokmill.tokenize(tmp_path / f"{name}.tar", tmp_path / name, val_fraction=0).notices for name in ("some", "none"))
    assert some == none[1:] == ["passed over in archives: 2 members (hidden, or not of text)"]
    assert none[0].endswith("every record was skipped (2 other_file)")


def test_a_complete_output_that_lacks_a_file_is_to_be_repaired(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "few.txt", TEXTS[:9])
    tokmill.tokenize(path, tmp_path / "o o", val_fraction=0)
    (tmp_path / "o o" / "train.bin").unlink()
    with pytest.raises(DamageError, match="a file of the complete output is missing") as caught:
        tokmill.tokenize(path, tmp_path / "o o", val_fraction=0)
    assert str(caught.value.next_step).startswith(f"tokmill verify '{tmp_path / 'o o'}' --repair; or ")


def test_a_repaired_file_without_a_range_is_told_without_one(tmp_path: Path) -> None:
    tokmill.tokenize(write_corpus(tmp_path / "few.txt", TEXTS[:9]), tmp_path / "o", val_fraction=0)
    (tmp_path / "o" / "val.bin").unlink()
    with (tmp_path / "o" / "train.bin").open("ab") as file:
        file.write(b"more")
    repaired = {str(each) for each in tokmill.repair(tmp_path / "o").repaired or []}
    assert repaired == {"val.bin: made again: it is empty", "train.bin: cut to its length: it was too long"}


@pytest.mark.parametrize("cause", [errno.EACCES, errno.EROFS])
def test_a_complete_output_where_nobody_may_write_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: int) -> None:
    def denied(_: object) -> None:
        with storage_errors(tmp_path):
            raise OSError(cause, os.strerror(cause))

    path = write_corpus(tmp_path / "few.txt", TEXTS[:9])
    tokmill.tokenize(path, tmp_path / "o", val_fraction=0)
    monkeypatch.setattr("tokmill.output.directory.acquire_lock", denied)
    assert tokmill.tokenize(path, tmp_path / "o", val_fraction=0).already_complete
    with pytest.raises(ChangedError):
        tokmill.tokenize(path, tmp_path / "o", val_fraction=0.5)
    for out, fresh in (("o", True), ("new", False)):
        with pytest.raises(StorageError):
            tokmill.tokenize(path, tmp_path / out, val_fraction=0, fresh=fresh)


def test_a_single_line_of_json_is_not_told_of_separators(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "hi there"}\n')
    (notice,) = tokmill.tokenize(path, tmp_path / "o").notices
    assert "--separator" not in notice
    assert "--val-fraction" in notice


def test_no_validation_side_that_was_asked_for_is_no_notice(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "few.txt", TEXTS[:3])
    assert tokmill.tokenize(path, tmp_path / "o", val_fraction=0).notices == []
    (notice,) = tokmill.tokenize(path, tmp_path / "p", val_fraction=0.5).notices
    assert re.match(r"val\.bin has only \d+ tokens: nanoGPT's train\.py needs 1,025", notice)


def test_the_proposed_fraction_gives_what_the_trainer_needs(tmp_path: Path) -> None:
    lengths = [int(n) for n in np.random.default_rng(1).lognormal(4, 1.3, 1500)]
    path = write_corpus(tmp_path / "many.txt", [f"{i} " + "a few words " * (n // 3) for i, n in enumerate(lengths)])
    foretold = tokmill.plan(path).notices[-1]
    first = tokmill.tokenize(path, tmp_path / "o", threads=1)
    assert first.tokens_val < 1025
    (told,) = first.notices
    for notice in (foretold, told):
        fraction = re.search(r"--val-fraction ([\d.]+)", notice)
        assert fraction, notice
        assert "nanoGPT" in notice or "empty" in notice
        again = tokmill.tokenize(path, tmp_path / "o", threads=1, fresh=True, val_fraction=float(fraction[1]))
        assert again.tokens_val >= 1025
        assert again.notices == []
        assert tokmill.plan(path, val_fraction=float(fraction[1])).notices == []


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_how_many_tokens_its_trainer_needs(tmp_path: Path, name: str) -> None:
    path = write_corpus(tmp_path / "few.txt", TEXTS)
    summary = tokmill.tokenize(path, tmp_path / "o", threads=1, format=name, val_fraction=0.1)
    (notice,) = [notice for notice in summary.notices if "val" in notice.partition(" has only")[0]]
    assert f"{summary.tokens_val:,} tokens" in notice
    assert f"{FORMATS[name].least_tokens:,}" in notice or FORMATS[name].too_short in notice
    assert "run again with --fresh and --val-fraction" in notice
    assert FORMATS[name].too_short in "".join(tokmill.plan(path, format=name, val_fraction=0.1).notices)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("n_wanted", [1025, 2049, 20_000])
def test_a_fraction_that_is_said_to_be_enough_very_likely_is(sigma: float, n_wanted: int) -> None:
    rng, n_short, n_asked = np.random.default_rng(7), 0, 0
    for _ in range(200):
        lengths = rng.lognormal(5, sigma, int(rng.integers(30, 3000))).astype(int) + 1
        fraction, is_enough = fraction_for(n_wanted, len(lengths), int(lengths.sum()))
        if is_enough:
            n_asked += 1
            n_short += int(lengths[rng.random(len(lengths)) < float(fraction)].sum()) < n_wanted
    assert n_asked > 20
    assert n_short <= 0.03 * n_asked


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.jsonl",
            '{"body": "x", "id": 1}\n{"body": "y", "id": 2}\n',
            r"no token was written: .* skipped \(2 missing_text\): is --text-key text right\?.* keys body, id\..*--fresh",
        ),
        ("a.jsonl", "no json\n", r"no token was written: .* skipped \(1 invalid_json\); skipped\.jsonl"),
        ("a.csv", "text,id\n", "no token was written: the inputs hold no document"),
        ("a.txt", "", "no token was written: .*1 document, and no text in any"),
    ],
)
def test_an_output_without_text_is_a_notice_that_says_why(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    (notice,) = tokmill.tokenize(tmp_path / name, tmp_path / "o", on_error="skip").notices
    assert re.match(words, notice), notice


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("a.jsonl", '{"body": "x"}\n', ["--on-error", "skip"]),
        ("a.jsonl", "no json\n", ["--on-error", "skip", "--format", "llmc"]),
        ("a.jsonl", '{"text": ""}\n', ["--format", "mds"]),
        ("a.csv", "text,id\n", []),
        ("a.txt", "", []),
        ("a.txt", "<|endoftext|>" * 9, ["--val-fraction", "0.5"]),
    ],
)
def test_a_script_stops_at_an_output_without_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, options: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    arguments = ["tokenize", str(tmp_path / name), "--out", str(tmp_path / "o"), *options]
    for more in ([], [], ["-q"], ["--json"]):
        assert app.run([*arguments, *more]) == 1
        shown = capsys.readouterr()
        assert "error: no token was written: " in shown.err or '"what":"no token was written: ' in shown.err
        assert "no token was written" not in shown.out or more == ["--json"]
        assert not re.search("done|nothing to do|next", shown.out) or more == ["--json"]
    assert app.run(["verify", str(tmp_path / "o")]) == 0
    assert "sound, but it holds no token" in capsys.readouterr().out
    assert app.run(["merge", str(tmp_path / "o"), "--out", str(tmp_path / "m")]) == 1


def test_a_script_stops_where_nothing_was_appended_or_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("some words")
    for name in ("none.txt", "none.jsonl"):
        (tmp_path / name).write_text("")
    settings = ["--out", str(tmp_path / "o"), "--val-fraction", "0", "-q"]
    assert app.run(["tokenize", str(tmp_path / "a.txt"), *settings]) == 0
    append = ["tokenize", "--append", *settings]
    assert app.run([*append, str(tmp_path / "a.txt")]) == 0
    assert app.run([*append, str(tmp_path / "none.txt")]) == 1
    assert "nothing was added" in capsys.readouterr().err
    assert app.run([*append, str(tmp_path / "a.txt"), str(tmp_path / "none.txt")]) == 0
    for part in ("0/2", "1/2"):
        arguments = ["tokenize", str(tmp_path / "none.jsonl"), "--part", part, "--out", str(tmp_path / "p"), "-q"]
        assert app.run(arguments) == 0
    assert app.run(["finalize", str(tmp_path / "p"), "-q"]) == 1
    assert "no token was written" in capsys.readouterr().err


def test_the_documents_of_the_summary_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbad\n{"text": ""}\n{"text": ""}\n')
    assert app.run(["tokenize", str(path), "--out", str(tmp_path / "o"), "--on-error", "skip", "--val-fraction", "0"]) == 0
    assert "documents  4  (train 1, validation 0, empty 2, skipped 1)" in capsys.readouterr().out


def test_numbers_agree_with_their_nouns(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "a.txt", ["one"])
    (tmp_path / "b.dat").write_bytes(b"x")
    shown = [
        called(*arguments)
        for arguments in (
            ("tokenize", tmp_path, "--out", tmp_path / "o", "--threads", "1", "--val-fraction", "0", "--eot", "none"),
            ("plan", path, "--threads", "1"),
            ("verify", tmp_path / "o", "--source", path),
            ("inspect", tmp_path / "o"),
        )
    ]
    text = "".join(done.stdout + done.stderr for done in shown)
    assert [done.returncode for done in shown] == [0, 0, 0, 0], text
    assert re.findall(r"(?<![\w.,])1 \w+s\b", text) == []
    assert {"1 file ", "1 thread", "1 document", "1 segment", "1 input", "1 token"} - {
        words for words in ("1 file ", "1 thread", "1 document", "1 segment", "1 input", "1 token") if words in text
    } == set()


def test_bytes_per_token_stand_beside_the_size_that_they_are_of(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "more": "than the text", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    n_text, n_tokens = sum(len(text.encode()) for text in TEXTS), sum(len(gpt2().encode_ordinary(text)) + 1 for text in TEXTS)
    expected = f"text +{n_text / 1000:.1f} kB, {n_text / n_tokens:.2f} bytes per token"
    for arguments in (("tokenize", path, "--out", tmp_path / "o"), ("plan", path), ("inspect", tmp_path / "o")):
        assert re.search(expected, called(*arguments).stdout), arguments


def test_the_example_says_what_it_needs_and_copes_with_little_text(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "batches.py"
    for arguments, words in (((), "usage: "), ((tmp_path / "nothing",), "cannot open it")):
        done = command(example, *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    tokmill.tokenize(write_corpus(tmp_path / "c.txt", TEXTS[:30]), tmp_path / "o")
    done = command(example, tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert "train: x (4, 64), y (4, 64)" in done.stdout
    assert "val: 0 tokens are too few" in done.stdout


def test_text_that_is_perhaps_json_lines_is_a_notice_of_the_summary_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": "one"}\n{"text": "two"}\n')
    notices = tokmill.tokenize(tmp_path / "a.txt", tmp_path / "o", val_fraction=0).notices
    assert [notice.partition(" is read as text")[0] for notice in notices] == [str(tmp_path / "a.txt")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"])
def test_a_byte_that_is_not_utf8_has_one_number_in_the_error_and_in_the_record_of_what_was_skipped(
    tmp_path: Path, name: str
) -> None:
    data = b'{"text": "one"}\n{"text": "t\xffo"}\n' if "jsonl" in name else b"one<|endoftext|>t\xffo"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(InputError) as caught:
        tokmill.tokenize(tmp_path / name, tmp_path / "stopped")
    assert ("; or the compressed file is damaged: gzip -t FILE tests it" in (caught.value.next_step or "")) == name.endswith(".gz")
    tokmill.tokenize(tmp_path / name, tmp_path / "o", on_error="skip")
    (skip,) = (tmp_path / "o" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skip)["offset"] == data.index(b"\xff")
    assert str(caught.value.where).endswith(f", byte {json.loads(skip)['offset']}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http:/127.0.0.1:9/a.txt"], r"next: +tokmill tokenize http://127\.0\.0\.1:9/a\.txt --out "),
        (["htp://127.0.0.1:9/a.txt"], r"next: +if http:// was meant"),
        (["http://127.0.0.1:9/a.txt"], r"next: +check the URL, .* run the same command again$"),
        (["DIR"], r"next: +pass --glob PATTERN .* than \.txt "),
        (["a.txt", "--tokenizer", "wat"], r"allowed: gpt2, r50k_base, p50k_base, cl100k_base, o200k_base;"),
    ],
)
def test_what_was_mistyped_is_answered_with_what_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "notes.doc").write_text("x")
    arguments = [str(tmp_path) if each == "DIR" else each for each in arguments]
    assert app.run(["tokenize", *arguments, "--out", str(tmp_path / "o")]) != 0
    assert re.search(words, capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('{"meta": {"body": "x", "n": 1}}', "meta.txt", 'there is no key "meta.txt" inside "meta"; keys there: "body", "n"'),
        ('{"meta": "x"}', "meta.txt", 'there is no key "meta.txt"; keys there: "meta"'),
        ('{\n "text": "x"\n}', "text", "jq -c . FILE"),
    ],
)
def test_json_that_does_not_fit_is_told_what_would(text: str, key: str, words: str) -> None:
    with pytest.raises(NotARecordError) as caught:
        RecordParser(key).parse(text.split("\n", maxsplit=1)[0].encode(), "strict", at_start=True)
    assert words in caught.value.what + caught.value.next_step


def test_an_audit_of_nothing_is_not_called_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("")
    assert app.run(["tokenize", str(tmp_path / "a.txt"), "--out", str(tmp_path / "o")]) == 1
    assert re.search("^  audited +none$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "notice"),
    [
        (("--stage", "s"), "--stage has no effect without an s3:// output"),
        (("--stage-size=1GiB",), "--stage-size has no effect without an s3:// output"),
        (("--part-bytes", "1GiB"), "--part-bytes has no effect without --ray"),
        (("--max-skipped", "3"), "--max-skipped has no effect without --on-error skip"),
    ],
)
def test_an_option_that_was_typed_and_has_no_effect_is_a_notice(words: tuple[str, ...], notice: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.txt", TEXTS[:9])
    assert f"note: {notice}" in called("tokenize", corpus, "--out", tmp_path / "o", *words).stdout
    if "--part-bytes" not in words:
        assert f"note: {notice}" in called("plan", corpus, *words).stdout


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), ("--audit=0.5", "--glob=*", "--input-format=text", "--threads=1", "--tokenizer=gpt2")),
        (("--source", "c.txt"), ("--threads=1",)),
        (("--source",), ("--glob=*", "--input-format=text", "--threads=1")),
        (("--repair",), ("--audit=0.5", "--glob=*", "--input-format=text")),
    ],
)
def test_an_option_of_verify_that_has_no_effect_is_a_notice(
    words: tuple[str, ...],
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", TEXTS[:9]))
    monkeypatch.chdir(tmp_path)
    assert app.run(["verify", "o", *words, *options]) == 0
    said = capsys.readouterr().out
    for option in options:
        assert f"note: {option.partition('=')[0]} has no effect with" in said
    assert said.count("has no effect") == len(options)


def test_an_option_without_effect_that_is_for_all_runs_is_no_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "c.txt", TEXTS[:9])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokmill.toml").write_text("max-skipped = 3\n")
    monkeypatch.setenv("TOKMILL_STAGE", str(tmp_path / "s"))
    assert app.run(["plan", str(corpus)]) == 0
    assert "no effect" not in "".join(capsys.readouterr())


def test_a_separator_that_does_not_occur_where_lines_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"One.\r\nMore.\r\n\r\nTwo.\r\n")
    wanted = r"the separator \n\n does not occur; lines end in \r\n: try --separator '\r\n\r\n'"
    said = called("tokenize", tmp_path / "c.txt", "--out", tmp_path / "o", "--separator", r"\n\n")
    assert wanted in said.stdout
    (tmp_path / "c.txt").write_bytes(b"One.\r\n\r\nTwo.\r\n<|endoftext|>")
    said = called("tokenize", tmp_path / "c.txt", "--out", tmp_path / "p")
    assert "say with --separator where documents end" in said.stdout
