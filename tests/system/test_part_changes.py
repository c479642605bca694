"""What may change while an output is made in parts, and who is in whose way."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import called
from support.corpora import line_texts, some_documents, write_lines
from support.oracle import plain_tokens
from support.outputs import part_path, side_bytes
from support.runs import SMALL, make_part, plan_parts, run_in_process

import tokmill
from tokmill.check.verification import verify
from tokmill.core.config import Job
from tokmill.core.errors import ChangedError, LockedError, TooManySkippedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.progress import ProgressReporter
from tokmill.output.directory import Output, open_output
from tokmill.output.state_dir import acquire_lock, growing_path, release_lock
from tokmill.run.parts import tokenize
from tokmill.run.parts.finalize import join_parts, parts_store

pytestmark = pytest.mark.usefixtures("workers_in_process")


def make_all(path: Path, out: Path, **options: Any) -> Job:
    job = plan_parts([path], out, 3, **options)
    for index in range(3):
        make_part(job, index)
    return job


def write_oddities(folder: Path) -> list[Path]:
    """Write empty files and row groups, marks of byte order, lines and files that end in every way, archives and tables."""
    folder.mkdir()
    texts = [document.decode() for document in some_documents(24, 120, 21)]
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(texts).encode() + b"\r\n\r\n\r\n")
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps({"text": t}).encode() for t in ["", *texts, "last"]))
    (folder / "d.jsonl").write_bytes(b'\n \n{"text": "\xff"}\n' + json.dumps({"text": "long " * 2000}).encode() + b"\n\n\n")
    (folder / "e.csv").write_text("id,text\n" + "".join(f'{i},"row {i}\n\n, of it"\n' for i in range(60)))
    with tarfile.open(folder / "f.tar", "w") as archive:
        for i, text in enumerate(texts):
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    table = pa.table({"id": range(len(texts)), "text": texts})
    with pq.ParquetWriter(folder / "g.parquet", table.schema) as writer:
        for i in range(0, len(texts), 5):
            writer.write_table(table.slice(i, 0))
            writer.write_table(table.slice(i, 5))
    pq.write_table(table.slice(0, 0), folder / "h.parquet")
    for i in range(40):
        (folder / f"i{i:02}.txt").write_text("small" * (i % 3))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", [3, 60])
@pytest.mark.parametrize("encoding_errors", ["strict", "replace"])
def test_odd_files_of_every_kind_in_parts_are_those_of_one_run(tmp_path: Path, count: int, encoding_errors: str) -> None:
    inputs, out = write_oddities(tmp_path / "in"), tmp_path / "out"
    options: dict[str, Any] = {
        "separator": "\\r\\n\\r\\n",
        "val_fraction": 0.3,
        "on_error": "skip",
        "encoding_errors": encoding_errors,
    }
    job = plan_parts(inputs, out, count, **options)
    for index in range(count):
        make_part(job, index)
    tokmill.finalize(out)
    run_in_process(inputs, tmp_path / "one", SMALL, **options)
    tokmill.merge(out, tmp_path / "merged")
    merged, one = load_manifest(tmp_path / "merged"), load_manifest(tmp_path / "one")
    assert (merged.fingerprint, merged.files) == (one.fingerprint, one.files)
    assert merged.counts.skipped == one.counts.skipped
    assert side_bytes(tmp_path / "merged") == side_bytes(tmp_path / "one")
    assert verify(out, sources=[str(i) for i in inputs]).ok


def test_parts_made_before_a_bad_record_was_met_stay_when_it_is_skipped(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path, 25), tmp_path / "out"
    strict = plan_parts([path], out, 3, val_fraction=0.3)
    make_part(strict, 0)
    make_part(strict, 1)
    with pytest.raises(tokmill.TokmillError, match="not JSON"):
        make_part(strict, 2)
    before = (part_path(out, 0) / "manifest.json").stat().st_ino
    lenient = plan_parts([path], out, 3, val_fraction=0.3, on_error="skip")
    assert make_part(lenient, 0).already_complete
    make_part(lenient, 2)
    assert (part_path(out, 0) / "manifest.json").stat().st_ino == before
    tokmill.finalize(out)
    run_in_process([path], tmp_path / "one", SMALL, val_fraction=0.3, on_error="skip")
    tokmill.merge(out, tmp_path / "merged")
    merged, one = load_manifest(tmp_path / "merged"), load_manifest(tmp_path / "one")
    assert (merged.fingerprint, merged.files) == (one.fingerprint, one.files)
    assert verify(out, sources=[str(path)]).ok


def test_a_part_that_committed_something_goes_on_when_bad_records_are_skipped(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path, 29), tmp_path / "out"
    small = {"batch_bytes": 40, "segment_bytes": 40}
    with pytest.raises(tokmill.TokmillError, match="not JSON"):
        make_part(plan_parts([path], out, 3, small), 2)
    lenient = plan_parts([path], out, 3, small, on_error="skip")
    made = make_part(lenient, 2)
    assert made.resumed
    assert made.counts.skipped == {"invalid_json": 1}


def test_a_plan_that_became_more_lenient_does_not_become_strict_again(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    plan_parts([path], out, 3)
    plan_parts([path], out, 3, encoding_errors="replace")
    with pytest.raises(ChangedError, match="--encoding-errors was replace, is strict") as caught:
        plan_parts([path], out, 3)
    assert f"give up all parts: remove {out / '.tokmill'}" in str(caught.value)
    assert "--fresh" not in str(caught.value)
    with pytest.raises(ChangedError):
        plan_parts([path], out, 3, on_error="skip", encoding_errors="ignore")


def test_what_all_parts_skipped_together_is_held_against_the_limit(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path, 3, 13, 23), tmp_path / "out"
    job = make_all(path, out, on_error="skip")
    parts = parts_store(str(out))
    plan = parts.read_plan()
    assert plan is not None
    with parts.lock():
        with pytest.raises(TooManySkippedError, match="3 bad records"):
            join_parts(parts, plan, ProgressReporter(()), max_skipped=2)
        assert not parts.missing_parts(job.content)
        join_parts(parts, plan, ProgressReporter(()), max_skipped=3)
    assert load_manifest(out).counts.skipped == {"invalid_json": 3}


def test_nothing_is_join_parts_while_a_complete_part_is_made_again(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    job = make_all(path, out)
    again = open_output(part_path(out, 1), tokenize.part_job(job, 1).content, tokmill.__version__, fresh=True)
    assert isinstance(again, Output)
    try:
        with pytest.raises(LockedError):
            tokmill.finalize(out)
        assert not growing_path(out, "manifest.json").exists()
        assert all((part_path(out, i) / "manifest.json").exists() for i in range(3))
    finally:
        again.close()
    tokmill.finalize(out)
    assert side_bytes(out) == plain_tokens(line_texts())


def test_a_part_that_is_being_made_is_not_discarded(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    fresh = msgspec.structs.replace(plan_parts([path], out, 3), fresh=True)
    lock = acquire_lock(part_path(out, 1))

    class Nobody:
        def make_parts(self, *_: object) -> None:
            raise AssertionError("nothing is made")

    with pytest.raises(LockedError, match="another run"):
        tokenize.run_all_parts(fresh, 400, Nobody(), [], force=True)
    assert parts_store(str(out)).read_plan() is not None
    release_lock(part_path(out, 1), lock)


def test_a_part_that_is_being_made_is_not_told_to_be_made(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    job = plan_parts([path], out, 3)
    make_part(job, 0)
    lock = acquire_lock(part_path(out, 1))
    try:
        with pytest.raises(UsageError, match=r"2 parts of 3 are missing: 1 \(being made\), 2") as caught:
            tokmill.finalize(out)
        assert "--part 2/3" in str(caught.value)
        assert "--part 1/3" not in str(caught.value)
        make_part(job, 2)
        with pytest.raises(UsageError, match=r"1 part of 3 is missing: 1 \(being made\)") as caught:
            tokmill.finalize(out)
        assert "wait for those that are being made" in str(caught.value)
    finally:
        release_lock(part_path(out, 1), lock)


def test_what_a_late_part_left_behind_is_taken_away(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    make_all(path, out)
    left = shutil.copytree(part_path(out, 2), tmp_path / "left")
    tokmill.finalize(out)
    shutil.copytree(left, part_path(out, 2))
    assert tokmill.finalize(out).already_complete
    assert not (out / ".tokmill").exists()
    assert verify(out).ok


def test_a_complete_output_is_not_begun_again_by_one_part(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    make_all(path, out)
    tokmill.finalize(out)
    with pytest.raises(UsageError, match="the output is complete"):
        tokmill.tokenize(path, out, part="1/3", fresh=True)
    done = tokmill.tokenize(path, out, part="1/3")
    assert (done.already_complete, done.part, done.notices) == (True, "", [])


def test_a_part_says_what_comes_next_and_the_report_why_there_is_no_history(tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    said = called("tokenize", path, "--out", out, "--part", "0/1")
    assert f"next       tokmill finalize {out}" in said.stdout, said.stderr
    assert "from       1 part\n" in called("finalize", out).stdout
    reported = called("report", out)
    assert "an output that was made in parts has none" in reported.stdout + reported.stderr
