"""What may change while an output in an object store is made in parts, and what is said of what may not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support.commands import clean_environment
from support.corpora import line_texts, write_lines
from support.oracle import plain_tokens
from support.runs import UNWATCHED
from support.s3 import Bucket, failing

import tokmill
from tokmill.core.config import BudgetTerms, Job
from tokmill.core.errors import ChangedError, TokmillError, TooManySkippedError, UsageError
from tokmill.core.events import AnyEvent, Notice
from tokmill.core.manifest import PLAN_NAME
from tokmill.core.options import PlanOptions
from tokmill.output.parts import part_content, part_url
from tokmill.output.remote_parts import RemoteParts
from tokmill.output.staged import Staged
from tokmill.run.job import make_job
from tokmill.run.parts import tokenize
from tokmill.run.supervisor import LocalRunner
from tokmill.store import download

pytestmark = pytest.mark.usefixtures("workers_in_process")

URL = "s3://bucket/sets/one"
KEY = "sets/one/"


def make_part(path: Path, stage: Path, index: int, **options: Any) -> tokmill.Summary:
    return tokmill.tokenize(path, URL, part=f"{index}/3", stage=stage, val_fraction=0.0, **options)


def train_bytes(bucket: Bucket) -> bytes:
    return b"".join(bucket.get(name) for name in bucket.names(f"{KEY}train"))


@pytest.mark.slow
def test_parts_made_before_a_bad_record_was_met_stay_when_it_is_skipped(bucket: Bucket, tmp_path: Path) -> None:
    path, stage = write_lines(tmp_path, 25), tmp_path / "stage"
    make_part(path, stage, 0)
    with pytest.raises(TokmillError, match="not JSON"):
        make_part(path, stage, 2)
    before = bucket.get(f"{KEY}.tokmill/parts/00000/manifest.json")
    make_part(path, stage, 2, on_error="skip")
    assert make_part(path, stage, 0, on_error="skip").already_complete
    assert bucket.get(f"{KEY}.tokmill/parts/00000/manifest.json") == before
    make_part(path, stage, 1, on_error="skip")
    tokmill.finalize(URL, stage=stage)
    assert train_bytes(bucket) == plain_tokens(line_texts(25))[0]
    assert tokmill.verify(URL).ok
    assert not bucket.names(f"{KEY}.tokmill")


def test_a_part_of_which_files_were_sent_is_made_again_when_bad_records_are_skipped(bucket: Bucket, tmp_path: Path) -> None:
    """Its files bear the name of the stricter run, and the part is put together under one name."""
    path, stage = write_lines(tmp_path, 25), tmp_path / "stage"
    for index in (0, 1):
        make_part(path, stage, index, shard_tokens=10)
    strict = part_job_of(path, stage, "stop")
    with pytest.raises(TokmillError, match="not JSON"):
        tokenize.make_part(strict, str(stage), LocalRunner(), [])
    assert bucket.names(f"{KEY}.tokmill/parts/00002/train"), "some were sent"
    lenient = part_job_of(path, stage, "skip")
    assert tokenize.make_part(lenient, str(stage), LocalRunner(), []).counts.skipped == {"invalid_json": 1}
    tokmill.finalize(URL, stage=stage)
    assert train_bytes(bucket) == plain_tokens(line_texts(25))[0]


def part_job_of(path: Path, stage: Path, on_error: str) -> Job:
    """Part 2 of 3, with segments that no person can ask for, agreed on."""
    with Staged(f"{URL}/.tokmill/parts/00002", str(stage)) as place:
        asked = make_job(
            [str(path)],
            PlanOptions(on_error=on_error, val_fraction=0.0, shard_tokens=10),
            out=place.directory,
            destination=place.url,
        ).job
    whole = tokenize.whole_job(asked, 3, RemoteParts(URL))
    resources = msgspec.structs.replace(
        whole.resources, **{**UNWATCHED, "batch_bytes": 60, "segment_bytes": 60, "terms": BudgetTerms(n_threads=1)}
    )
    whole = msgspec.structs.replace(whole, resources=resources)
    assert RemoteParts(URL).agree(whole.content, tokmill.__version__) is None
    content = part_content(whole.content, 2)
    return msgspec.structs.replace(whole, content=content, destination=part_url(URL, 2))


def test_what_stands_in_the_way_is_told_with_a_way_out_that_leads_out(bucket: Bucket, tmp_path: Path) -> None:
    path, stage = write_lines(tmp_path), tmp_path / "stage"
    make_part(path, stage, 0)
    for options in ({"encoding_errors": "replace", "seed": 3}, {"seed": 3, "fresh": True}):
        with pytest.raises(ChangedError, match="the run at this prefix was begun differently") as caught:
            make_part(path, stage, 0, **options)
        assert f"give it up: aws s3 rm --recursive {URL}/.tokmill/" in str(caught.value)
        assert "--fresh" not in str(caught.value)
    for name in bucket.names(f"{KEY}.tokmill/"):
        bucket.delete(name)
    for index in range(3):
        make_part(path, stage, index, seed=3)
    tokmill.finalize(URL, stage=stage)
    with pytest.raises(ChangedError, match="the complete output at this prefix was made differently: --seed was 3, is 4") as caught:
        make_part(path, stage, 0, seed=4, fresh=True)
    assert "--fresh" not in str(caught.value)
    with pytest.raises(UsageError, match="the output is complete"):
        make_part(path, stage, 0, seed=3, fresh=True)
    assert tokmill.verify(URL).ok


def test_what_all_parts_skipped_together_is_held_against_the_limit(bucket: Bucket, tmp_path: Path) -> None:
    path, stage = write_lines(tmp_path, 3, 13, 23), tmp_path / "stage"

    class OneByOne:
        def make_parts(self, job: Job, indexes: Any, _observers: object) -> None:
            for index in indexes:
                content = part_content(job.content, index)
                part = msgspec.structs.replace(job, content=content, destination=part_url(URL, index))
                tokenize.make_part(part, str(stage), LocalRunner(), [])

    def run(limit: int) -> None:
        job = make_job([str(path)], PlanOptions(on_error="skip", max_skipped=limit), out=str(tmp_path / "unused")).job
        tokenize.run_all_parts(job, 300, OneByOne(), [], url=URL, stage=str(stage), force=False)

    with pytest.raises(TooManySkippedError, match="3 bad records") as caught:
        run(2)
    assert caught.value.where == f"{URL}/.tokmill/parts/*/skipped.jsonl"
    assert f"{KEY}manifest.json" not in bucket.names()
    assert f"{KEY}{PLAN_NAME}" in bucket.names()
    run(3)
    assert tokmill.verify(URL).ok


def test_who_reads_an_output_in_parts_is_told_which_are_there(bucket: Bucket, tmp_path: Path) -> None:
    path, out = write_lines(tmp_path), tmp_path / "out"
    for index in (0, 2):
        make_part(path, tmp_path / "stage", index)
        tokmill.tokenize(path, out, part=f"{index}/3")
    look: Any
    for where in (URL, str(out)):
        for look in (tokmill.verify, tokmill.inspect):
            with pytest.raises(UsageError, match="made in parts: 2 of 3 parts are there, missing: 1") as caught:
                look(where)
            assert f"tokmill finalize {where}" in str(caught.value)
    for look in (tokmill.open, tokmill.report):
        with pytest.raises(UsageError, match="made in parts: 2 of 3 parts are there, missing: 1"):
            look(out)
    with pytest.raises(UsageError, match="made in parts: 2 of 3"):
        tokmill.merge([out], tmp_path / "merged")
    with pytest.raises(UsageError, match="made in parts: 2 of 3"):
        tokmill.convert(out, tmp_path / "converted", format="llmc")


def test_a_url_without_a_prefix_or_with_an_endpoint_that_is_none_is_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path)
    for url in ("s3://bucket", "s3://bucket/", "s3://bucket//"):
        with pytest.raises(UsageError, match="no prefix in it"):
            tokmill.tokenize(path, url, stage=tmp_path / "stage")
    assert bucket.names() == []
    with pytest.raises(UsageError, match="not URLs"):
        tokmill.report(URL)
    assert not (tmp_path / "stage").exists()
    bucket.put("a.txt", b"text")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:5999")
    for command in (["verify", URL], ["tokenize", "s3://bucket/a.txt", "--out", str(tmp_path / "out")]):
        done = in_a_process(*command)
        assert done.returncode == 2, done.stderr
        assert "where:   AWS_ENDPOINT_URL" in done.stderr


def test_a_store_that_keeps_failing_is_told_of_before_patience_ends(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokmill.store.transfer.WRITING", download.RetryPolicy(attempts=20, first_s=0.1, most_s=0.1))
    busy = failing("503 Slow Down", "SlowDown", times=12)
    bucket.faulty = {"PUT"}
    bucket.fault = lambda request, start: busy(request, start) if request["PATH_INFO"].endswith(".bin") else None
    told: list[AnyEvent] = []
    observer = SimpleNamespace(on_event=told.append)
    tokmill.tokenize(write_lines(tmp_path), URL, stage=tmp_path / "stage", observers=[observer])
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert "the store does not answer as it should (HTTP 503 SlowDown); trying again" in notices
    assert tokmill.verify(URL).ok


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    typed = [sys.executable, "-m", "tokmill", *arguments]
    return subprocess.run(typed, capture_output=True, text=True, env=clean_environment(), check=False, timeout=100)
