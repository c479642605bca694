"""`--delimiter`: tables whose fields are divided by another character."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.oracle import plain_tokens
from support.outputs import written
from support.runs import TINY, run_in_process

import tokmill
from tokmill.cli import app
from tokmill.core.errors import ChangedError
from tokmill.core.manifest import load_manifest
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

DELIMITERS = (";", "|", "^", "]", "\\", "-", "[", "$", ".", " ", "a", "\t", ",")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rows=st.lists(st.text(alphabet='ab;|^]\\-[$. \t,"\né', max_size=20), min_size=1, max_size=12),
    delimiter=st.sampled_from(DELIMITERS),
    batch_bytes=st.sampled_from([10, 100, 5000]),
    suffix=st.sampled_from(["csv", "tsv"]),
    quoting=st.sampled_from(["double", "none"]),
)
def test_rows_are_those_of_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], delimiter: str, batch_bytes: int, suffix: str, quoting: str
) -> None:
    base = tmp_path_factory.mktemp("any")
    if quoting == "none":
        rows = ["".join(c for c in row if c not in delimiter + '"\n') for row in rows]
    with (base / f"c.{suffix}").open("w", newline="") as file:
        if quoting == "none":
            file.write(f"n{delimiter}text\n".replace("a", "a"))
            file.writelines(f"{i}{delimiter}{row}\n" for i, row in enumerate(rows))
        else:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerows([["n", "text"], *([i, row] for i, row in enumerate(rows))])
    options = {"delimiter": "\\t" if delimiter == "\t" else delimiter, "val_fraction": 0.2, "quoting": quoting}
    run_in_process([base / f"c.{suffix}"], base / "out", TINY | {"batch_bytes": batch_bytes}, **options)
    assert written(base / "out") == plain_tokens([row.encode() for row in rows], val_fraction=0.2)
    assert tokmill.verify(base / "out", sources=True).ok


def test_it_is_proposed_kept_and_said_how_to_make_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text("id;text\n1;one\n2;two\n")
    assert app.run(["tokenize", "c.csv", "-o", "out"]) != 0
    assert "next:    pass --delimiter ';'" in capsys.readouterr().err
    assert app.run(["tokenize", "c.csv", "-o", "out", "--delimiter", ";"]) == 0
    assert load_manifest(tmp_path / "out").counts.documents == 2
    assert "--delimiter ';'" in commands(load_manifest(tmp_path / "out").content, (), "again")
    with pytest.raises(ChangedError, match="--delimiter was ;, is not given"):
        tokmill.tokenize("c.csv", "out")
    (tmp_path / "c.txt").write_text("text")
    assert app.run(["tokenize", "c.txt", "-o", "other", "--delimiter", ";"]) == 0
    assert "--delimiter has no effect: no input is CSV or TSV" in capsys.readouterr().err
    for wrong in ("", ";;", '"', "\n", "é", "\\n"):
        assert app.run(["tokenize", "c.csv", "-o", "wrong", f"--delimiter={wrong}"]) == 2
