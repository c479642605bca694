"""A directory that holds something else than what is asked for: what it holds is said, and the command that would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from support.records import a_content

import tokmill
from tokmill.cli import app
from tokmill.core.config import parse_separator, typed_separator
from tokmill.core.errors import ChangedError
from tokmill.derive import appending
from tokmill.output.config_diff import changed_error, changed_settings_error
from tokmill.run.job import make_job

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers_in_process")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with inputs a, b, c and a complete output of a."""
    base = tmp_path_factory.mktemp("made")
    for name in "abc":
        (base / f"{name}.txt").write_text(f"Some text of {name}.\n" * 9)
    tokmill.tokenize(base / "a.txt", base / "o", val_fraction=0.05, shard_tokens=1000, keep_empty=True)
    return base


SAME: dict[str, Any] = {"val_fraction": 0.05, "shard_tokens": 1000, "keep_empty": True}


def refused(base: Path, names: str, **changes: Any) -> ChangedError:
    options = {key: value for key, value in (SAME | changes).items() if value is not None}
    with pytest.raises(ChangedError) as caught:
        tokmill.tokenize([base / f"{name}.txt" for name in names], base / "o", **options)
    error = caught.value
    assert error.where
    assert error.allowed
    assert error.next_step
    return error


def test_other_inputs_for_a_complete_output_are_told_of_append(made: Path) -> None:
    error = refused(made, "bc")
    assert error.what == "this is a complete output of 1 other input"
    assert str(made / "a.txt") in str(error.where)
    assert "to add these: the same command with --append" in str(error.next_step)
    assert "gone" not in str(error)


def test_more_inputs_for_a_complete_output_are_told_of_append(made: Path) -> None:
    error = refused(made, "ab")
    assert f"1 input of these is not in it: {made / 'b.txt'}" in error.what
    assert "to add what is new: the same command with --append" in str(error.next_step)


def test_other_settings_for_a_complete_output_are_not_told_of_append(made: Path) -> None:
    error = refused(made, "b", seed=3)
    assert "the complete output in this directory was made differently: --seed was 0, is 3" in error.what
    assert "--append" not in str(error.next_step)


@pytest.mark.parametrize(
    ("changes", "next_step"),
    [
        ({"val_fraction": None}, "the same command with --val-fraction 0.05"),
        ({"keep_empty": None}, "the same command with --keep-empty"),
        ({"shard_tokens": None}, "the same command with --shard-tokens 1000"),
        ({"shard_documents": True}, "the same command with --shard-tokens 1000"),
        ({"separator": "none", "seed": 1}, "the same command with --separator '<|endoftext|>' --seed 0"),
        ({"eot": "none", "dtype": "uint32"}, "the same command with --eot after --dtype uint16"),
    ],
)
def test_an_append_with_other_settings_is_told_those_of_the_output(made: Path, changes: dict[str, Any], next_step: str) -> None:
    error = refused(made, "b", append=True, **changes)
    assert error.next_step == next_step
    assert "--fresh" not in str(error)
    assert "inputs" not in str(error.allowed)


def test_a_setting_that_did_not_matter_stays_as_given_and_the_others_are_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    tokmill.tokenize(tmp_path / "a.jsonl", tmp_path / "o", val_fraction=0.05)
    with pytest.raises(ChangedError) as caught:
        tokmill.tokenize(made / "b.txt", tmp_path / "o", append=True, separator="none", seed=3, dtype="uint32", keep_empty=True)
    step = str(caught.value.next_step)
    assert "alone with --val-fraction 0.05 --seed 0 --dtype uint16 and without --keep-empty, with another --out" in step
    assert "--separator" not in step
    tokmill.tokenize(made / "b.txt", tmp_path / "b", separator="none", val_fraction=0.05, seed=0, dtype="uint16")
    tokmill.merge([tmp_path / "o", tmp_path / "b"], tmp_path / "ob")
    with pytest.raises(ChangedError) as caught:
        tokmill.tokenize(made / "b.txt", tmp_path / "o", append=True, separator="none", val_fraction=0.05)
    assert str(caught.value.next_step).startswith("make an output of the new inputs alone with another --out, then join")


def test_who_cannot_append_is_not_told_of_it(made: Path, tmp_path: Path) -> None:
    for name in "ab":
        tokmill.tokenize(made / f"{name}.txt", tmp_path / name)
    tokmill.convert(tmp_path / "a", tmp_path / "converted", format="megatron")
    tokmill.merge([tmp_path / "a"], tmp_path / "merged")
    with pytest.raises(ChangedError) as of_convert:
        tokmill.convert(tmp_path / "b", tmp_path / "converted", format="megatron")
    with pytest.raises(ChangedError) as of_merge:
        tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    for error in (of_convert.value, of_merge.value):
        assert "--append" not in str(error)
        assert error.next_step == "choose another --out, or start over with --fresh"


def test_what_is_only_to_be_left_out_is_named(made: Path, tmp_path: Path) -> None:
    tokmill.tokenize(made / "a.txt", tmp_path / "plain")
    with pytest.raises(ChangedError) as caught:
        tokmill.tokenize(made / "b.txt", tmp_path / "plain", append=True, keep_empty=True, val_fraction=0.5)
    assert caught.value.next_step == "the same command with --val-fraction 0.0005 and without --keep-empty"


def test_another_number_of_ids_of_the_same_tokenizer_is_said(made: Path) -> None:
    """As an earlier tokmill counted them."""
    now = make_job(inputs=[str(made / "a.txt")], out=str(made / "o")).job.content
    before = replace(now, tokenizer=replace(now.tokenizer, n_ids=50000))
    for error in (changed_error(before, now, made / "nothing"), changed_settings_error(before, now, made / "o")):
        assert "the tokenizer had 50,000 ids, has 50,257" in error.what
        assert "--n-ids" not in str(error)
        assert "another --out" in str(error.next_step)


def test_while_an_append_waits_another_command_is_told_of_it(made: Path, tmp_path: Path) -> None:
    tokmill.tokenize(made / "a.txt", tmp_path / "o")
    planned = appending.extend(make_job([str(made / "b.txt")], out=str(tmp_path / "o")))
    appending.copy_old_output(planned.job, ())
    for name, append in (("c", True), ("a", False), ("c", False)):
        with pytest.raises(ChangedError) as caught:
            tokmill.tokenize(made / f"{name}.txt", tmp_path / "o", append=append)
        assert caught.value.what == f"an append of {made / 'b.txt'} to this output was interrupted"
        assert f"with {made / 'b.txt'} --append" in str(caught.value.next_step)
        assert "--append --fresh" in str(caught.value.next_step)


@pytest.mark.parametrize("typed", ["none", "<|endoftext|>", r"\n\n", r"a\\b\t", "\\u200bx", "ü"])
def test_a_separator_is_shown_as_it_is_typed(typed: str) -> None:
    assert typed_separator(parse_separator(typed)) == typed


def test_none_is_not_shown_as_pythons_none(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(made / "o")
    options = ["--val-fraction", "0.05", "--shard-tokens", "1000", "--keep-empty", "--separator", "none"]
    assert app.run(["tokenize", str(made / "a.txt"), "--out", out, *options]) == 12
    assert "--separator was <|endoftext|>, is none" in capsys.readouterr().err


def test_an_input_that_was_there_more_often_is_named_with_its_counts() -> None:
    content = a_content()
    (source,) = content.inputs
    other = replace(source, path="/other.txt")
    before, now = replace(content, inputs=(source, other, source)), replace(content, inputs=(source, other))
    for one, two, words in (
        (before, now, "was there 2 times, is there 1 time"),
        (now, before, "was there 1 time, is there 2 times"),
    ):
        error = changed_error(one, two, "s3://bucket/out")
        assert error.what.endswith(f"input /corpus.txt {words}")
    assert "their order is not" in changed_error(now, replace(content, inputs=(other, source)), "s3://bucket/out").what
