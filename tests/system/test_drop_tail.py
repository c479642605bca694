"""`--drop-tail` says what it leaves out, and does not leave out everything."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.corpora import SEP, some_documents

import tokmill
from tokmill.core.errors import UsageError

pytestmark = pytest.mark.usefixtures("workers_in_process")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(SEP.encode().join(some_documents(200, 60, 5)))
    return path


def test_what_is_dropped_is_counted_and_a_side_without_a_file_is_named(corpus: Path, tmp_path: Path) -> None:
    whole = tokmill.tokenize(corpus, tmp_path / "whole", val_fraction=0.1)
    size = whole.tokens_val + 1
    summary = tokmill.tokenize(corpus, tmp_path / "out", val_fraction=0.1, shard_tokens=size, drop_tail=True)
    kept = sum(entry.tokens for entry in summary.files.values())
    assert (summary.tokens_train, summary.tokens_val) == (whole.tokens_train, whole.tokens_val)
    assert summary.dropped_tokens_train == whole.tokens_train % size == whole.tokens_train - kept
    assert summary.dropped_tokens_val == whole.tokens_val
    assert any("of training; its files hold" in notice for notice in summary.notices)
    assert any("there is no file for validation" in notice for notice in summary.notices)
    assert (whole.dropped_tokens_train, whole.dropped_tokens_val) == (0, 0)
    assert not any("drop-tail" in notice for notice in whole.notices)
    found = tokmill.inspect(tmp_path / "out").bytes_per_token
    assert found == tokmill.inspect(tmp_path / "whole").bytes_per_token


def test_dropping_everything_is_an_error_and_nothing_is_published(corpus: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UsageError, match="nothing would be left"):
            tokmill.tokenize(corpus, tmp_path / "out", shard_tokens="1M", drop_tail=True)
        assert not (tmp_path / "out" / "manifest.json").exists()
    summary = tokmill.tokenize(corpus, tmp_path / "out", shard_tokens=100, drop_tail=True, fresh=True)
    assert summary.files
