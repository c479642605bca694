"""`--sample`: a share of the documents, the same whatever reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import SEP, some_documents
from support.oracle import plain_tokens
from support.outputs import collect_data, side_bytes, written
from support.runs import TINY, append_in_process, make_parts, repair_in_process, run_in_process

import tokmill
from tokmill.check.compare import USUAL
from tokmill.cli import app
from tokmill.core.config import Content
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.records import Batch, Cursor
from tokmill.encode import cutter_of, resolve_tokenizer
from tokmill.read import CorpusReader, find_inputs
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

WORD = (1 << 64) - 1
DOCUMENTS = [*some_documents(200, 60, 1), b"the same", b"the same", b""]


def mixed(value: int) -> int:
    """SplitMix64's finalizer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def is_chosen(document: bytes, share: float, seed: int = 0) -> bool:
    key = mixed((mixed(seed) + 11 * 0x9E3779B97F4A7C15) & WORD)
    place = xxhash.xxh3_64_intdigest(document, seed)
    return mixed((place * 0x9E3779B97F4A7C15 + key) & WORD) < math.ceil(share * 2**64)


def expected(documents: list[bytes], share: float, seed: int = 0, **options: Any) -> tuple[bytes, bytes]:
    chosen = [each for each in documents if is_chosen(each, share, seed)]
    return plain_tokens(chosen, seed=seed, **({"val_fraction": 0.2} | options))


def write(path: Path, documents: list[bytes] = DOCUMENTS) -> Path:
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(msgspec.json.encode({"text": each.decode()}) + b"\n" for each in documents))
    else:
        path.write_bytes(SEP.encode().join(documents))
    return path


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, WORD),
    batch_bytes=st.sampled_from([10, 100, 5000]),
    n_parts=st.integers(0, 3),
    keep_empty=st.booleans(),
    name=st.sampled_from(["c.txt", "c.jsonl"]),
)
def test_it_is_what_a_plain_loop_chooses_in_any_batches_and_parts(
    tmp_path_factory: pytest.TempPathFactory, share: float, seed: int, batch_bytes: int, n_parts: int, keep_empty: bool, name: str
) -> None:
    base = tmp_path_factory.mktemp("any")
    corpus, out = write(base / name), base / "out"
    options: dict[str, Any] = {"sample": share, "seed": seed, "val_fraction": 0.2, "keep_empty": keep_empty}
    if n_parts:
        make_parts([corpus], out, n_parts, {"batch_bytes": batch_bytes}, **options)
        tokmill.finalize(out)
    else:
        run_in_process([corpus], out, TINY | {"batch_bytes": batch_bytes}, **options)
    assert side_bytes(out) == expected(DOCUMENTS, share, seed, keep_empty=keep_empty)
    counts = load_manifest(out).counts
    n_left_out = sum(not is_chosen(each, share, seed) for each in DOCUMENTS if each or keep_empty)
    assert counts.skipped.get("not_sampled", 0) == n_left_out
    report = tokmill.verify(out, sources=True)
    assert (report.ok, report.compared_documents) == (True, counts.documents_train + counts.documents_val)


def test_a_smaller_sample_lies_within_a_larger_one_and_has_its_share_of_validation() -> None:
    documents = [b"%d" % i for i in range(20_000)]
    few, many = ({each for each in documents if is_chosen(each, share)} for share in (0.1, 0.3))
    assert few < many
    assert 0.09 < len(few) / len(documents) < 0.11
    for_val = sum(xxhash.xxh3_64_intdigest(each, 0) < 0.2 * 2**64 for each in few)
    assert 0.17 < for_val / len(few) < 0.23


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_a_long_document_is_taken_or_left_out_as_a_whole(tmp_path: Path, name: str) -> None:
    documents = [b"%d and some words more. " % i * 400 for i in range(12)]
    corpus = write(tmp_path / name, documents)
    run_in_process([corpus], tmp_path / "out", {"batch_bytes": 2000}, sample=0.5, val_fraction=0.2)
    assert written(tmp_path / "out") == expected(documents, 0.5)
    assert load_manifest(tmp_path / "out").counts.skipped == {"not_sampled": sum(not is_chosen(each, 0.5) for each in documents)}
    assert tokmill.verify(tmp_path / "out", sources=True).ok


def test_of_a_divided_document_blocks_are_chosen_wherever_reading_begins(tmp_path: Path) -> None:
    words = b"Some words %d, and then more. "
    corpus = tmp_path / "one.txt"
    corpus.write_bytes(b"".join(words % i for i in range(4000)))
    tokenizer = resolve_tokenizer("gpt2")
    content = Content(
        inputs=find_inputs([str(corpus)], glob=None, input_format=None).inputs, tokenizer=tokenizer, sample=0.5, val_fraction=0.3
    )
    resources = msgspec.structs.replace(USUAL, batch_bytes=700)

    def batches(start: Cursor) -> list[Batch]:
        reader = CorpusReader(content, resources, cutter_of(tokenizer), divide_above_bytes=5000, block_bytes=300)
        return list(reader.batches(start))

    found = batches(Cursor())
    counts = sum((batch.counts for batch in found[1:]), found[0].counts)
    fates = ["".join("LTV"[0 if not b.documents else 1 + bool(b.is_val)] for b in found)]
    assert {"L", "T", "V"} == set(fates[0])
    n_written = sum(bool(b.documents) and not b.tail_open for b in found)
    assert counts.documents == n_written + counts.skipped["not_sampled"] - counts.parts_added == 1
    for i, batch in enumerate(found):
        if batch.after is not None and i % 7 == 0:
            rest = batches(batch.after)
            assert [(b.documents, b.is_val, b.head_open, b.tail_open, b.counts) for b in rest] == [
                (b.documents, b.is_val, b.head_open, b.tail_open, b.counts) for b in found[i + 1 :]
            ]


def test_made_already_it_is_complete_and_another_share_is_refused(tmp_path: Path) -> None:
    corpus, out = write(tmp_path / "c.txt"), tmp_path / "out"
    tokmill.tokenize(corpus, out, sample=0.5)
    assert tokmill.tokenize(corpus, out, sample=0.5).already_complete
    for other in (None, 0.25):
        with pytest.raises(ChangedError, match=r"--sample was 0\.5, is "):
            tokmill.tokenize(corpus, out, sample=other)
    assert load_manifest(out).content.sample == 0.5


def test_it_is_appended_to_merged_and_repaired_like_any_other(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", DOCUMENTS[:120]), write(tmp_path / "b.txt", DOCUMENTS[120:])
    options: dict[str, Any] = {"sample": 0.4, "val_fraction": 0.2}
    run_in_process([first], tmp_path / "out", TINY, **options)
    append_in_process([second], tmp_path / "out", **options)
    assert written(tmp_path / "out") == expected(DOCUMENTS, 0.4)
    for name in ("a", "b"):
        tokmill.tokenize(tmp_path / f"{name}.txt", tmp_path / name, **options)
    tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert written(tmp_path / "both") == expected(DOCUMENTS, 0.4)
    assert tokmill.verify(tmp_path / "both", sources=True).ok
    ids = np.fromfile(tmp_path / "out" / "train.bin", np.uint16)
    ids[len(ids) // 2] ^= 1
    ids.tofile(tmp_path / "out" / "train.bin")
    repair_in_process(tmp_path / "out")
    assert written(tmp_path / "out") == expected(DOCUMENTS, 0.4)


def test_it_is_planned_shown_and_said_how_to_make_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.txt")
    whole, half = tokmill.plan("c.txt").totals, tokmill.plan("c.txt", sample=0.5)
    assert whole is not None
    assert half.totals is not None
    assert not half.is_exact
    assert half.totals.tokens.low < half.totals.tokens.value == round(whole.tokens.value / 2) < half.totals.tokens.high
    assert app.run(["tokenize", "c.txt", "--sample", "0.5", "-o", "out"]) == 0
    n_left_out = sum(not is_chosen(each, 0.5) for each in DOCUMENTS if each)
    assert f"not sampled {n_left_out}, empty 1" in capsys.readouterr().out
    assert "--sample 0.5" in commands(load_manifest(tmp_path / "out").content, (), "again")
    assert collect_data(tmp_path / "out").counts.skipped["not_sampled"] == n_left_out
    for wrong in ("0", "1", "1.5", "nan", "-0.1", "x"):
        assert app.run(["tokenize", "c.txt", f"--sample={wrong}", "-o", "other"]) == 2
    with pytest.raises(UsageError):
        tokmill.tokenize("c.txt", "other", sample=1)
    capsys.readouterr()
    assert app.run(["tokenize", "c.txt", "--sample", "1e-9", "-o", "none"]) != 0
    assert "--sample 1e-09 chose none of 203 documents" in capsys.readouterr().err
