"""`--max-tokens` and `--val-tokens`: where the output ends, and where its validation side does."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import SEP, some_documents
from support.oracle import EOT, gpt2
from support.outputs import ids_of, rewrite_manifest, side_bytes, written
from support.runs import TINY, repair_in_process, run_in_process, tokenize_in_small_segments
from support.small_tokenizers import path_of

import tokmill
from tokmill.check import compare
from tokmill.cli import app
from tokmill.core.errors import ChangedError, Interrupted, TokmillError, UsageError
from tokmill.core.manifest import SKIPPED_NAME, Manifest, load_manifest
from tokmill.core.records import Cursor
from tokmill.output.directory import Output
from tokmill.reports.reproduce import commands, settings as settings_of
from tokmill.run.coordinator import Coordinator
from tokmill.run.encode_batch import EncodeStage
from tokmill.run.token_limits import TokenLimits

pytestmark = pytest.mark.usefixtures("workers_in_process")

DOCUMENTS = [*some_documents(150, 60, 1), b"", b"the same", b"", b"the same", *some_documents(40, 60, 2)]
ALL = 1 << 40


def expected(
    documents: Sequence[bytes],
    *,
    max_tokens: int = ALL,
    val_tokens: int = ALL,
    val_fraction: float = 0.2,
    seed: int = 0,
    eot: str = "after",
    keep_empty: bool = False,
) -> tuple[tuple[bytes, bytes], int]:
    """The two files, and how many of the documents were met."""
    sides: tuple[list[int], list[int]] = ([], [])
    n_met = 0
    for document in documents:
        n_met += 1
        if document or keep_empty:
            is_val = len(sides[1]) < val_tokens and xxhash.xxh3_64_intdigest(document, seed) < val_fraction * 2**64
            ids = gpt2().encode_ordinary(document.decode())
            sides[is_val].extend([EOT] * (eot == "before") + ids + [EOT] * (eot == "after"))
            if len(sides[0]) + len(sides[1]) >= max_tokens:
                break
    return (np.array(sides[0], "uint16").tobytes(), np.array(sides[1], "uint16").tobytes()), n_met


def write(path: Path, documents: Sequence[bytes] = DOCUMENTS) -> Path:
    texts = [document.decode() for document in documents]
    lines = b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts)
    match path.name.partition(".")[2]:
        case "jsonl":
            path.write_bytes(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case "csv":
            path.write_text("text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts), newline="")
        case "parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
        case _:
            path.write_bytes(SEP.encode().join(documents))
    return path


def check(out: Path, documents: Sequence[bytes], *, ends: bool | None = None, **options: Any) -> Manifest:
    """Compare an output with the plain loop, and let verify compare it with its sources."""
    wanted, n_met = expected(documents, **options)
    manifest = load_manifest(out)
    assert side_bytes(out) == wanted
    assert manifest.counts.documents == n_met
    assert (manifest.cut_short is True) == (n_met < len(documents) if ends is None else ends)
    report = tokmill.verify(out, sources=True)
    assert (report.ok, report.compared_documents) == (True, manifest.counts.documents_train + manifest.counts.documents_val)
    return manifest


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    max_tokens=st.one_of(st.just(ALL), st.integers(1, 7000)),
    val_tokens=st.one_of(st.just(ALL), st.integers(1, 800)),
    val_fraction=st.sampled_from([0.05, 0.2, 0.6]),
    seed=st.integers(0, 9),
    eot=st.sampled_from(["after", "before"]),
    keep_empty=st.booleans(),
    batch_bytes=st.sampled_from([30, 300, 3000]),
    name=st.sampled_from(["c.txt", "c.jsonl", "c.jsonl.gz", "c.parquet"]),
)
def test_they_are_those_of_a_plain_loop_in_any_batches(
    tmp_path_factory: pytest.TempPathFactory, batch_bytes: int, name: str, **options: Any
) -> None:
    base = tmp_path_factory.mktemp("any")
    corpus = write(base / name)
    limits = {option: options[option] for option in ("max_tokens", "val_tokens")}
    given = {option: n for option, n in limits.items() if n != ALL}
    others = {option: value for option, value in options.items() if option not in limits}
    run_in_process([corpus], base / "out", TINY | {"batch_bytes": batch_bytes}, **given, **others)
    check(base / "out", DOCUMENTS, **options)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_they_are_the_same_with_any_number_of_workers(tmp_path: Path, n_threads: int) -> None:
    documents = some_documents(20_000, 120, 3)
    for i in range(4):
        write(tmp_path / f"{i}.txt", documents[i * 5000 : (i + 1) * 5000])
    options: dict[str, Any] = {"max_tokens": 400_000, "val_tokens": 3_000, "val_fraction": 0.1}
    resources = {"n_workers": n_threads, "range_bytes": 100_000, "batch_bytes": 20_000}
    run_in_process([tmp_path / f"{i}.txt" for i in range(4)], tmp_path / "out", resources, **options)
    check(tmp_path / "out", documents, **options)


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
@pytest.mark.parametrize("max_tokens", [1, 2500, 5000, 9000, 12_000])
def test_a_document_of_many_batches_is_on_one_side_and_whole(
    tmp_path: Path, name: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "USUAL", msgspec.structs.replace(compare.USUAL, batch_bytes=2000, max_piece_bytes=2000))
    documents = [(b"%d and some words more. " % i) * (400 if i % 3 else 4) for i in range(12)]
    corpus = write(tmp_path / name, documents)
    options: dict[str, Any] = {"max_tokens": max_tokens, "val_tokens": 2000, "val_fraction": 0.6}
    run_in_process([corpus], tmp_path / "out", {"batch_bytes": 2000}, **options)
    check(tmp_path / "out", documents, **options)


def test_bad_records_before_the_end_are_listed_and_none_after_it(tmp_path: Path) -> None:
    lines = [msgspec.json.encode({"text": text.decode()}) if text else b"no json" for text in [*DOCUMENTS, b"", b"", b"x", b""] * 2]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines))
    found = set()
    for batch_bytes in (50, 500, 50_000):
        out = tmp_path / f"{batch_bytes}"
        tokenize_in_small_segments(
            [tmp_path / "c.jsonl"], out, TINY | {"batch_bytes": batch_bytes}, max_tokens=7500, on_error="skip"
        )
        manifest = load_manifest(out)
        found.add((out / SKIPPED_NAME).read_bytes() + msgspec.json.encode(manifest.counts.skipped))
        at = manifest.segments[-1].after
        assert (at.record, manifest.counts.documents) == (manifest.counts.documents, manifest.counts.documents)
        assert manifest.counts.skipped["invalid_json"] == sum(line == b"no json" for line in lines[: at.record])
        assert tokmill.verify(out, sources=True).ok
    assert len(found) == 1


@pytest.mark.parametrize("batch_bytes", [500, 1 << 20])
def test_what_is_wrong_behind_the_end_is_nobodys_concern(tmp_path: Path, batch_bytes: int) -> None:
    documents = some_documents(40, 60, 2)
    (tmp_path / "a.txt").write_bytes(SEP.encode().join([*documents[:20], b"bad \xff bytes", *documents[20:]]))
    sizes = TINY | {"batch_bytes": batch_bytes}
    run_in_process([tmp_path / "a.txt"], tmp_path / "out", sizes, max_tokens=40)
    assert written(tmp_path / "out") == expected(documents[:20], max_tokens=40)[0]
    with pytest.raises(TokmillError):
        run_in_process([tmp_path / "a.txt"], tmp_path / "more", sizes, max_tokens=ALL)


def test_a_bad_record_before_a_long_one_that_is_the_last_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is written before the long one's end is then told by itself.
    monkeypatch.setattr("tokmill.run.worker._LIMITED_BYTES", 1)
    (tmp_path / "c.csv").write_text("n,text\n1,one\n2\n3," + "some words and more. " * 400 + "\n4\n5,five\n")
    for batch_bytes in (2000, 200_000):
        out = tmp_path / f"{batch_bytes}"
        run_in_process([tmp_path / "c.csv"], out, {"batch_bytes": batch_bytes}, max_tokens=9, on_error="skip", val_fraction=0)
        counts = load_manifest(out).counts
        assert (counts.documents, counts.documents_train, counts.skipped) == (3, 2, {"invalid_csv": 1})
        assert [msgspec.json.decode(line)["record"] for line in (out / SKIPPED_NAME).read_bytes().splitlines()] == [2]
        assert tokmill.verify(out, sources=True).ok


@pytest.mark.parametrize("n_calls", range(1, 9, 2))
def test_ended_anywhere_a_run_continues_to_the_same_files(tmp_path: Path, n_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, out = write(tmp_path / "c.jsonl"), tmp_path / "out"
    options: dict[str, Any] = {"max_tokens": 4000, "val_tokens": 300, "val_fraction": 0.2}
    with monkeypatch.context() as patch:
        n_left = [n_calls]
        commit, publish = Output.commit, Output.publish

        def die(method: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                n_left[0] -= 1
                if not n_left[0]:
                    raise Interrupted("dead", where="", allowed="", next_step="")
                return method(*args, **kwargs)

            return call

        patch.setattr(Output, "commit", die(commit))
        patch.setattr(Output, "publish", die(publish))
        with pytest.raises(Interrupted):
            tokenize_in_small_segments([corpus], out, TINY, **options)
    run_in_process([corpus], out, TINY, **options)
    check(out, DOCUMENTS, **options)


def test_a_run_that_died_after_its_last_commit_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, out = write(tmp_path / "c.txt"), tmp_path / "out"

    def die(*_: Any) -> None:
        raise Interrupted("", where="", allowed="", next_step="")

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "_manifest", die)
        with pytest.raises(Interrupted):
            tokenize_in_small_segments([corpus], out, TINY, max_tokens=900)
    run_in_process([corpus], out, TINY, max_tokens=900)
    check(out, DOCUMENTS, max_tokens=900, val_fraction=0.0005)


def test_damage_is_repaired_though_the_corpus_goes_on(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl")
    options: dict[str, Any] = {"max_tokens": 5000, "val_tokens": 300, "val_fraction": 0.2}
    tokenize_in_small_segments([corpus], tmp_path / "out", TINY, **options)
    tokmill.convert(tmp_path / "out", tmp_path / "copy", format="llmc")
    for out, name, at in (("out", "train.bin", 0.3), ("out", "train.bin", 0.99), ("out", "val.bin", 0.7), ("copy", None, 0.9)):
        path = tmp_path / out / name if name else max((tmp_path / out).glob("train*.bin"))
        before, ids = path.read_bytes(), np.fromfile(path, np.uint16)
        ids[int(at * len(ids))] ^= 1
        ids.tofile(path)
        repair_in_process(tmp_path / out)
        assert path.read_bytes() == before
        assert tokmill.verify(tmp_path / out, sources=True).ok


@pytest.mark.parametrize(("tokenizer", "eot"), [("gpt2", "after"), ("gpt2", "before"), ("gpt2", "none"), ("wordpiece", "after")])
@pytest.mark.parametrize(
    ("made", "said", "finding"),
    [
        ({"max_tokens": 500}, {"max_tokens": 900}, "the text differs"),
        ({"max_tokens": 900}, {"max_tokens": 500}, "a document follows"),
        ({"max_tokens": 900}, {}, "the text differs"),
        ({"max_tokens": 900, "val_tokens": 200}, {"max_tokens": 900, "val_tokens": 90}, "a document follows"),
        ({"max_tokens": 900, "val_tokens": 90}, {"max_tokens": 900, "val_tokens": 200}, "the text differs|continues"),
        ({"val_tokens": 200}, {"val_tokens": 90}, "a document follows"),
    ],
    ids=["early", "late", "cut", "much val", "little val", "much val of all"],
)
def test_verify_finds_limits_that_were_not_kept_whatever_the_manifest_counts(
    tmp_path: Path, made: dict[str, Any], said: dict[str, Any], finding: str, tokenizer: str, eot: str
) -> None:
    corpus, given = write(tmp_path / "c.txt"), {"val_fraction": 0.3, "eot": eot, **made}
    if tokenizer == "wordpiece":
        given |= {"tokenizer": str(path_of(tokenizer)), "eot_token": "[SEP]"}
        finding = "ids differ|continues"
    run_in_process([corpus], tmp_path / "out", TINY, **given)
    assert tokmill.verify(tmp_path / "out", sources=True).ok
    manifest = load_manifest(tmp_path / "out")
    content = msgspec.structs.replace(manifest.content, **{"max_tokens": msgspec.UNSET, "val_tokens": msgspec.UNSET} | said)
    rewrite_manifest(tmp_path / "out", manifest, content=content, fingerprint=content.fingerprint())
    report = tokmill.verify(tmp_path / "out", sources=True)
    assert not report.ok
    assert re.search(finding, report.problems[0].what)


@pytest.mark.parametrize(
    ("at", "what"),
    [(100, "the output ends before the"), (10**9, "a document follows the one that reached the")],
    ids=["early", "late"],
)
def test_verify_does_not_believe_the_code_that_made_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, what: str
) -> None:
    # Where ids do not give the text back, the same code says where the comparison ends.
    corpus = write(tmp_path / "c.txt")
    with monkeypatch.context() as patch:
        init = TokenLimits.__init__

        def other(self: TokenLimits, content: Any, *rest: Any) -> None:
            init(self, msgspec.structs.replace(content, max_tokens=at), *rest)

        patch.setattr(TokenLimits, "__init__", other)
        tokenizer = {"tokenizer": str(path_of("wordpiece")), "eot_token": "[SEP]"}
        run_in_process([corpus], tmp_path / "out", TINY, max_tokens=500, **tokenizer)
        report = tokmill.verify(tmp_path / "out", sources=True)
    assert [problem.what.partition(" 500 ")[0] for problem in report.problems] == [what]


def test_a_document_that_the_output_lacks_is_found_where_a_limit_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [b"two and more", b"one and more", b"four and more"]
    assert [xxhash.xxh3_64_intdigest(text) < 2**63 for text in texts] == [False, True, False]
    for name, documents in (("whole", texts), ("lacking", texts[::2])):
        run_in_process([write(tmp_path / f"{name}.txt", documents)], tmp_path / name, TINY, max_tokens=5, val_fraction=0.5)
    content = load_manifest(tmp_path / "whole").content
    rewrite_manifest(tmp_path / "lacking", load_manifest(tmp_path / "lacking"), content=content, fingerprint=content.fingerprint())
    for batch_bytes in (20, 2000):
        monkeypatch.setattr(compare, "USUAL", msgspec.structs.replace(compare.USUAL, batch_bytes=batch_bytes))
        assert tokmill.verify(tmp_path / "whole", sources=True).ok
        report = tokmill.verify(tmp_path / "lacking", sources=True)
        assert [problem.what.partition(";")[0] for problem in report.problems] == ["the output continues after its last document"]


def test_made_already_it_is_complete_and_other_limits_are_refused(tmp_path: Path) -> None:
    corpus, out = write(tmp_path / "c.txt"), tmp_path / "out"
    options: dict[str, Any] = {"max_tokens": 1000, "val_tokens": "0.2k"}
    summary = tokmill.tokenize(corpus, out, **options)
    assert any(notice.startswith("ended with the document that reached 1,000 tokens") for notice in summary.notices)
    assert tokmill.tokenize(corpus, out, **options).already_complete
    content = load_manifest(out).content
    assert (content.max_tokens, content.val_tokens, content.val_fraction) == (1000, 200, 0.1)
    with pytest.raises(ChangedError, match=r"--max-tokens was 1000, is 2000"):
        tokmill.tokenize(corpus, out, **options | {"max_tokens": "2K"})
    with pytest.raises(ChangedError, match=r"--val-tokens was 200, is not given"):
        tokmill.tokenize(corpus, out, max_tokens=1000, val_fraction=0.1)
    said = dict(settings_of(content))
    assert said["end"] == "the document that reaches 1,000 tokens"
    assert said["validation"] == "0.1 of the documents, seed 0, until they have 200 tokens"
    assert "--val-fraction 0.1 --val-tokens 200 --max-tokens 1000" in " ".join(
        commands(content, (), "again").replace("\\", "").split()
    )


def test_where_the_corpus_ends_first_that_is_the_end_and_too_little_validation_is_said(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.txt", DOCUMENTS[:50])
    summary = tokmill.tokenize(corpus, tmp_path / "out", max_tokens=10**9, val_tokens=10**6)
    check(tmp_path / "out", DOCUMENTS[:50], max_tokens=10**9, val_tokens=10**6, val_fraction=0.1)
    assert load_manifest(tmp_path / "out").segments[-1].after == Cursor(input_index=1)
    assert any("not the 1,000,000 tokens of --val-tokens" in notice for notice in summary.notices)
    assert not any("ended with" in notice for notice in summary.notices)


def test_what_is_piped_in_ends_there_too(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.txt")
    options = ["--max-tokens", "2000", "--val-tokens", "200", "--val-fraction", "0.2"]
    command = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "out"), *options]
    subprocess.run(command, input=corpus.read_bytes(), check=True, capture_output=True, timeout=100)
    wanted, n_met = expected(DOCUMENTS, max_tokens=2000, val_tokens=200)
    assert written(tmp_path / "out") == wanted
    assert load_manifest(tmp_path / "out").counts.documents == n_met
    again = subprocess.run(command, input=corpus.read_bytes(), check=True, capture_output=True, timeout=100, text=False)
    assert b"complete already" in again.stdout


def piped(path: Path, data: bytes) -> threading.Thread:
    """Make a pipe, and write into it for whoever reads it."""

    def write_all() -> None:
        with suppress(BrokenPipeError):
            path.write_bytes(data)

    os.mkfifo(path)
    thread = threading.Thread(target=write_all, daemon=True)
    thread.start()
    return thread


TOKENIZERS = {
    "gpt2": {},
    **{name: {"tokenizer": str(path_of(name)), "eot_token": "</s>"} for name in ("sentencepiece", "wordpiece")},
}
"""Of a byte one id at most, some, and nobody knows how many."""


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    name=st.sampled_from(["c.txt", "c.jsonl", "c.jsonl.gz", "c.csv"]),
    batch_bytes=st.sampled_from([40, 400, 4000]),
    n_workers=st.sampled_from([1, 1, 3]),
    tokenizer=st.sampled_from([*TOKENIZERS]),
    max_tokens=st.integers(1, 4000),
    val_tokens=st.integers(1, 800),
    eot=st.sampled_from(["after", "before"]),
    errors=st.sampled_from(["strict", "replace"]),
    where=st.lists(st.integers(2, 190), max_size=4),
)
def test_of_a_pipe_all_is_as_of_a_file_in_any_batches(
    tmp_path_factory: pytest.TempPathFactory,
    batch_bytes: int,
    n_workers: int,
    name: str,
    tokenizer: str,
    errors: str,
    where: list[int],
    **options: Any,
) -> None:
    base = tmp_path_factory.mktemp("pipe")
    corpus, separator = write(base / name), SEP.encode() if name == "c.txt" else b"\n"
    data = gzip.decompress(corpus.read_bytes()) if name.endswith(".gz") else corpus.read_bytes()
    records = data.split(separator)
    for i in where:
        records.insert(min(i + 1, len(records) - 1), b"\xff\xfe bad \xff" if name == "c.txt" else b"{bad")
    data = separator.join(records)
    corpus.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    given = {"val_fraction": 0.2, "on_error": "skip", "encoding_errors": errors, **options, **TOKENIZERS[tokenizer]}
    resources = TINY | {"batch_bytes": batch_bytes, "n_workers": n_workers}
    run_in_process([corpus], base / "file", resources, **given)
    pipe = base / f"pipe-{name}"
    writing = piped(pipe, corpus.read_bytes())
    run_in_process([pipe], base / "out", resources, **given)
    writing.join()
    made, wanted = load_manifest(base / "out"), load_manifest(base / "file")
    assert written(base / "out") == written(base / "file")
    skipped = [
        (path / SKIPPED_NAME).read_bytes() if (path / SKIPPED_NAME).exists() else b"" for path in (base / "out", base / "file")
    ]
    assert skipped[0].replace(b"pipe-c", b"c") == skipped[1]
    assert (made.counts, made.cut_short) == (wanted.counts, wanted.cut_short)
    ends = [msgspec.structs.replace(each.segments[-1].after, digest=None) for each in (made, wanted)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("max_tokens", "most"), [(10**9, 20), (9_000, 40)], ids=["never", "reached"])
@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.csv"])
def test_what_is_piped_in_is_encoded_in_batches_as_long_as_the_end_is_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, max_tokens: int, most: int
) -> None:
    documents, sizes, run = some_documents(700, 60, 5), [0], EncodeStage.run

    def noted(stage: EncodeStage, *arguments: Any, **named: Any) -> Any:
        encoded = run(stage, *arguments, **named)
        sizes.append(sizes[-1] + sum(len(each.ids) for each in encoded.runs))
        return encoded

    monkeypatch.setattr(EncodeStage, "run", noted)
    writing = piped(tmp_path / f"pipe-{name}", write(tmp_path / name, documents).read_bytes())
    run_in_process([tmp_path / f"pipe-{name}"], tmp_path / "out", max_tokens=max_tokens, val_fraction=0.2)
    writing.join()
    assert written(tmp_path / "out") == expected(documents, max_tokens=max_tokens)[0]
    # All of it fits into the pipe, and a worker may have read further.
    assert 1 <= sum(size < max_tokens for size in sizes[1:]) < most


def test_merged_converted_and_shuffled_it_is_what_it_was(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.txt")
    options: dict[str, Any] = {"max_tokens": 3000, "val_tokens": 200, "val_fraction": 0.2}
    for name in ("a", "b"):
        tokmill.tokenize(corpus, tmp_path / name, **options)
    wanted, _ = expected(DOCUMENTS, **options)
    tokmill.convert(tmp_path / "a", tmp_path / "copy", format="megatron")
    assert ids_of(tmp_path / "copy") == wanted
    assert tokmill.verify(tmp_path / "copy", sources=True).ok
    assert load_manifest(tmp_path / "copy").cut_short is True
    outcome = tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert any("verify --source cannot compare" in notice for notice in outcome.notices)
    assert written(tmp_path / "both") == (wanted[0] * 2, wanted[1] * 2)
    with pytest.raises(UsageError, match="different settings or limits"):
        tokmill.verify(tmp_path / "both", sources=True)
    tokmill.tokenize(corpus, tmp_path / "mixed", shuffle=1, **options)
    assert sorted(np.frombuffer(ids_of(tmp_path / "mixed")[0], np.uint16)) == sorted(np.frombuffer(wanted[0], np.uint16))


def test_what_cannot_know_the_tokens_before_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write(tmp_path / "c.txt")
    for limit in ("max_tokens", "val_tokens"):
        for other in ({"part": "0/2"}, {"ray": "local"}, {"append": True}):
            with pytest.raises(
                UsageError, match=f"--{limit.replace('_', '-')} counts the tokens of all documents before"
            ) as caught:
                tokmill.tokenize(corpus, tmp_path / "out", **{limit: 100}, **other)  # type: ignore[arg-type]
            assert f"--{next(iter(other))}" in str(caught.value.where)
        tokmill.tokenize(corpus, tmp_path / limit, **{limit: 100})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="an output with a limit of tokens"):
            tokmill.tokenize(write(tmp_path / "more.txt"), tmp_path / limit, append=True)
    for wrong in (
        ["--max-tokens", "0"],
        ["--max-tokens", "x"],
        ["--val-tokens", "1.5"],
        ["--val-tokens", "9", "--val-fraction", "0"],
    ):
        assert app.run(["tokenize", str(corpus), "-o", str(tmp_path / "o"), *wrong]) == 2
    assert app.run(["tokenize", str(corpus), "-o", str(tmp_path / "o"), "--val-input", str(corpus), "--val-tokens", "9"]) == 2
    capsys.readouterr()
    assert not (tmp_path / "o").exists()


def test_a_plan_ends_there_too(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.txt")
    plan = tokmill.plan(corpus, max_tokens=1000, val_tokens=500)
    assert plan.totals is not None
    assert plan.totals.tokens.value == 1000
    assert any("validation has about 100 tokens, not the 500 tokens" in notice for notice in plan.notices)
    assert tokmill.plan(corpus, max_tokens=10**9).totals == tokmill.plan(corpus).totals


def test_a_limit_that_the_last_document_reaches_cuts_nothing(tmp_path: Path) -> None:
    documents = some_documents(20, 60, 2)
    (tmp_path / "a.jsonl").write_bytes(b"".join(b'{"text": %s}\n' % msgspec.json.encode(each.decode()) for each in documents))
    run_in_process([tmp_path / "a.jsonl"], tmp_path / "whole", TINY)
    counts = load_manifest(tmp_path / "whole").counts
    n = counts.tokens_train + counts.tokens_val
    for max_tokens, is_short in ((n, False), (n - 1, False), (n // 2, True)):
        out = tmp_path / str(max_tokens)
        run_in_process([tmp_path / "a.jsonl"], out, TINY, max_tokens=max_tokens)
        assert (load_manifest(out).cut_short is True) == is_short
        assert tokmill.verify(out, sources=True).ok
        assert (written(out) == written(tmp_path / "whole")) != is_short


def test_what_does_not_go_with_the_end_of_a_text_or_a_limit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(SEP.encode().join(some_documents(20, 60, 2)))
    (tmp_path / "b.txt").write_bytes(b"another")
    words = ["tokenize", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    assert app.run([*words, "--val-tail", "10%", "--max-tokens", "100"]) == 2
    assert "one of them" in capsys.readouterr().err
    assert app.run([*words, "--val-tail", "1.5"]) == 2
    assert "out of range" in capsys.readouterr().err
    assert app.run([*words, "--val-tail", "10%", "--sample", "0.5", "--seed", "7"]) == 0
    assert "no effect" not in capsys.readouterr().err
    assert app.run([*words, "--fresh", "--max-tokens", "100"]) == 0
    capsys.readouterr()
    assert app.run([words[0], str(tmp_path / "b.txt"), *words[2:], "--max-tokens", "100"]) == 12
    assert "--append" not in capsys.readouterr().err
