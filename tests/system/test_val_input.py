"""`--val-input`: all documents of these inputs are for validation, and none of any other."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import SEP, some_documents, write_corpus
from support.oracle import plain_tokens
from support.outputs import side_bytes, written
from support.runs import TINY, append_in_process, make_parts, repair_in_process, run_in_process

import tokmill
from tokmill.cli import app
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.options import PlanOptions
from tokmill.run.job import make_job

pytestmark = pytest.mark.usefixtures("workers_in_process")

TRAIN, VAL = some_documents(40, 60, 1), [*some_documents(20, 60, 2), b""]
"""Some of both are the same: a document is where its input is."""
VAL += TRAIN[:3]


def write(path: Path, documents: list[bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    texts = [document.decode() for document in documents]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    match path.name.partition(".")[2]:
        case "jsonl":
            path.write_bytes(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case "parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
        case _:
            path.write_bytes(SEP.encode().join(documents))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "train.txt", TRAIN), write(tmp_path / "val.txt", VAL)


def sides(train: list[bytes], val: list[bytes], **options: Any) -> tuple[bytes, bytes]:
    """What the two files must hold."""
    return tuple(plain_tokens(documents, val_fraction=0.0, **options)[0] for documents in (train, val))  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("eot", ["after", "before"])
def test_each_side_is_its_inputs_and_nothing_else(tmp_path: Path, suffix: str, eot: str) -> None:
    train, val = write(tmp_path / f"train.{suffix}", TRAIN), write(tmp_path / f"val.{suffix}", VAL)
    run_in_process([train], tmp_path / "out", TINY, val_input=str(val), eot=eot)
    assert written(tmp_path / "out") == sides(TRAIN, VAL, eot=eot)
    report = tokmill.verify(tmp_path / "out", sources=True)
    assert (report.ok, report.compared_documents) == (True, len(TRAIN) + len(VAL) - 1)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    files=st.lists(st.tuples(st.booleans(), st.lists(st.text(alphabet="ab é漢", max_size=20), max_size=6)), min_size=1, max_size=9),
    batch_bytes=st.sampled_from([10, 100, 5000]),
    n_parts=st.integers(0, 4),
    keep_empty=st.booleans(),
)
def test_of_any_files_in_any_batches_and_parts(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[bool, list[str]]],
    batch_bytes: int,
    n_parts: int,
    keep_empty: bool,
) -> None:
    base = tmp_path_factory.mktemp("any")
    named: dict[bool, list[Path]] = {False: [], True: []}
    texts: dict[bool, list[bytes]] = {False: [], True: []}
    for i, (is_val, documents) in enumerate([(False, ["first"]), (True, ["other"]), *files]):
        named[is_val].append(write_corpus(base / f"{i}.txt", documents))
        texts[is_val] += [document.encode() for document in documents or [""]]
    options: dict[str, Any] = {"val_input": [str(path) for path in named[True]], "keep_empty": keep_empty}
    if n_parts:
        make_parts(named[False], base / "out", n_parts, {"batch_bytes": batch_bytes}, **options)
        tokmill.finalize(base / "out")
    else:
        run_in_process(named[False], base / "out", TINY | {"batch_bytes": batch_bytes}, **options)
    assert side_bytes(base / "out") == sides(texts[False], texts[True], keep_empty=keep_empty)
    assert tokmill.verify(base / "out", sources=True).ok


@pytest.mark.parametrize("n_mib", [1, pytest.param(66, marks=pytest.mark.slow)])
def test_a_document_that_is_cut_or_divided_is_for_validation_as_a_whole(tmp_path: Path, n_mib: int) -> None:
    long = b"Some words, and then more. " * 4_000
    huge = long * ((n_mib << 20) // len(long) + 1)
    train, val = write(tmp_path / "train.txt", [long, b"a"]), write(tmp_path / "val.txt", [long, huge, b"z"])
    run_in_process([train], tmp_path / "out", {"batch_bytes": 20_000, "range_bytes": 1 << 20}, val_input=val)
    counts = load_manifest(tmp_path / "out").counts
    assert (counts.documents_train, counts.documents_val, counts.parts_added) == (2, 3, 0)
    with tokmill.open(tmp_path / "out") as data:
        assert data.n_documents("val") == 3
        assert data.decode_bytes(data.document("val", 0)) == long
        assert len(data.decode_bytes(data.document("val", 1))) == len(huge)
    assert tokmill.verify(tmp_path / "out", sources=True, audit=0).ok


def test_what_is_found_for_both_is_for_validation_alone(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.txt", TRAIN)
    val = write(tmp_path / "in" / "val.txt", VAL)
    os.link(val, tmp_path / "in" / "z.txt")
    for names in ([tmp_path / "in"], [f"{tmp_path}/in/*.txt"], [tmp_path / "in" / "a.txt", val]):
        planned = make_job([str(name) for name in names], PlanOptions(val_input=val), out=str(tmp_path / "out"))
        assert [(Path(each.path).name, bool(each.side)) for each in planned.job.content.inputs] == [
            ("a.txt", False),
            ("val.txt", True),
        ]
        assert any("of --val-input, and so not for training" in notice for notice in planned.notices)
    with pytest.raises(UsageError, match="every input is one for validation"):
        tokmill.tokenize(val, tmp_path / "out", val_input=tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_made_already_it_is_complete_and_another_choice_is_refused(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    train, val = corpus
    out = tmp_path / "out"
    tokmill.tokenize(train, out, val_input=val)
    assert tokmill.tokenize(train, out, val_input=[str(val)]).already_complete
    with pytest.raises(ChangedError, match=r"val\.txt was one of --val-input, and is not"):
        tokmill.tokenize([train, val], out, val_fraction=0.0)
    with pytest.raises(ChangedError, match=r"val\.txt is gone"):
        tokmill.tokenize(train, out, val_fraction=0.0)
    plain = tmp_path / "plain"
    tokmill.tokenize([train, val], plain, val_fraction=0.0)
    with pytest.raises(ChangedError, match=r"val\.txt is one of --val-input, and was not"):
        tokmill.tokenize(train, plain, val_input=val)
    assert load_manifest(out).fingerprint != load_manifest(plain).fingerprint


def test_inputs_of_both_sides_are_appended_and_merged(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    train, val = corpus
    more, more_val = write(tmp_path / "more.txt", TRAIN[5:9]), write(tmp_path / "more_val.txt", VAL[4:8])
    out = tmp_path / "out"
    run_in_process([train], out, TINY, val_input=val)
    append_in_process([more], out, val_input=str(more_val), val_fraction=0.0)
    expected = sides([*TRAIN, *TRAIN[5:9]], [*VAL, *VAL[4:8]])
    assert written(out) == expected
    assert tokmill.verify(out, sources=True).ok
    append_in_process([write(tmp_path / "last.txt", [b"last"])], out, val_fraction=0.0)
    assert written(out) == sides([*TRAIN, *TRAIN[5:9], b"last"], [*VAL, *VAL[4:8]])
    tokmill.tokenize(train, tmp_path / "one", val_input=val)
    tokmill.tokenize(more, tmp_path / "two", val_input=more_val)
    tokmill.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert written(tmp_path / "both") == expected
    assert tokmill.verify(tmp_path / "both", sources=True).ok
    assert tokmill.verify(tmp_path / "both", sources=[str(each) for each in (train, more, val, more_val)]).ok
    tokmill.tokenize(val, tmp_path / "other", val_fraction=0.0)
    with pytest.raises(UsageError, match=r"for validation in one of these outputs.*val\.txt"):
        tokmill.merge([tmp_path / "one", tmp_path / "other"], tmp_path / "wrong")


def test_damage_of_both_sides_is_repaired(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    train, val = corpus
    out = tmp_path / "out"
    run_in_process([train], out, TINY, val_input=val)
    before = written(out)
    for name in ("train.bin", "val.bin"):
        ids = np.fromfile(out / name, np.uint16)
        ids[len(ids) // 2] ^= 1
        ids.tofile(out / name)
    repair_in_process(out)
    assert written(out) == before


def test_the_command_takes_several_after_one_option_and_a_share_beside_them_is_refused(
    corpus: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "second.txt", [b"second"])
    assert app.run(["tokenize", "train.txt", "--val-input", "val.txt", "second.txt", "-o", "out", "--seed", "2"]) == 0
    assert "note: --seed has no effect with --val-input" in capsys.readouterr().out
    assert written(tmp_path / "out") == sides(TRAIN, [*VAL, b"second"])
    assert app.run(["plan", "train.txt", "--val-input=val.txt", "second.txt"]) == 0
    said = capsys.readouterr().out
    assert [line.endswith("for validation") for line in said.splitlines() if ".txt" in line] == [False, False, True]
    assert app.run(["tokenize", "train.txt", "--val-input", "val.txt", "--val-fraction", "0.1", "-o", "o"]) == 2
    assert "next:    tokmill tokenize train.txt --val-input val.txt -o o --val-fraction 0" in capsys.readouterr().err
    for wrong in (["--val-input"], ["--val-input", "-q"], ["--val-input", ""]):
        assert app.run(["tokenize", "train.txt", "-o", "o", *wrong]) == 2
    assert not (tmp_path / "o").exists()


def test_in_a_recipe_inputs_for_validation_are_those_of_a_source(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"other text")
    text = '[tokenize]\nval_fraction = 0\n[sources.a]\ninputs = "train.txt"\nval_input = "val.txt"\n[sources.b]\ninputs = "b.txt"\n'
    (recipe := tmp_path / "recipe.toml").write_text(text)
    tokmill.build(recipe, tmp_path / "out")
    assert written(tmp_path / "out")[1] == sides([], VAL)[1]
    assert load_manifest(tmp_path / "out").counts.documents_train == len(TRAIN) + 1
    for wrong, line in (
        (text.replace("val_fraction = 0\n", "\n"), 6),
        (text.replace("val_fraction = 0\n", "val_fraction = 0.1\n"), 3),
        ('[tokenize]\nval_input = "val.txt"\n[sources.a]\ninputs = "train.txt"\n', 2),
        (text.replace('val_input = "val.txt"', "val_input = []"), 5),
    ):
        recipe.write_text(wrong)
        with pytest.raises(UsageError) as caught:
            tokmill.build(recipe, tmp_path / "other")
        assert str(caught.value.where).endswith(f"line {line}"), caught.value


def test_where_they_hold_no_text_it_is_said(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    summary = tokmill.tokenize(corpus[0], tmp_path / "out", val_input=tmp_path / "empty.txt")
    assert "no document of --val-input was taken: the validation side is empty" in summary.notices
    summary = tokmill.tokenize(corpus[0], tmp_path / "few", val_input=write(tmp_path / "few.txt", [b"few"]))
    assert any("for more, run again with --fresh and more text for --val-input" in notice for notice in summary.notices)
