"""`build`: from texts to a training set; what did not change is not done again, and a mistake is named with its line."""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import PATIENCE_S, clean_environment, wait_until
from support.corpora import some_documents, write_corpus
from support.failures import Died, dying_at, fill_disk, limit_disk
from support.outputs import files_in, ids_of, written
from support.small_tokenizers import path_of

import tokmill
from tokmill.cli.app import run
from tokmill.core.deduplication import Removal
from tokmill.core.errors import ChangedError, DamageError, DiskFullError, LockedError, UsageError
from tokmill.core.events import AnyEvent, Started
from tokmill.core.manifest import load_manifest
from tokmill.formats import Choice
from tokmill.recipe import EXAMPLE, building
from tokmill.recipe.parsing import read_recipe

pytestmark = pytest.mark.usefixtures("workers_in_process")

RECIPE = """\
seed = 3

[tokenize]
val_fraction = 0.1

[sources.one]
inputs = "one"
weight = 0.75

[sources.two]
inputs = ["two/*.txt"]
weight = 0.25
separator = "none"

[output]
format = "raw"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    texts = [text.decode() for text in some_documents(80, 60, 5)]
    for name, part in (
        ("one/a.txt", texts[:20]),
        ("one/b.txt", texts[20:30]),
        ("two/a.txt", texts[30:31]),
        ("two/b.txt", texts[31:32]),
    ):
        write_corpus(tmp_path / name, part)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


class Starts:
    """Counts the steps that do something."""

    def __init__(self) -> None:
        self.n = 0

    def on_event(self, event: AnyEvent) -> None:
        self.n += isinstance(event, Started)


def test_it_is_what_its_steps_are_one_by_one(recipe: Path, tmp_path: Path) -> None:
    tokmill.build(recipe, tmp_path / "out")
    options: dict[str, Any] = {"val_fraction": 0.1, "seed": 3}
    tokmill.tokenize(tmp_path / "one", tmp_path / "t1", **options)
    tokmill.tokenize(tmp_path / "two" / "*.txt", tmp_path / "t2", separator="none", **options)
    tokmill.mix([(tmp_path / "t1", 0.75), (tmp_path / "t2", 0.25)], tmp_path / "m", seed=3)
    assert written(tmp_path / "out") == written(tmp_path / "m")
    assert tokmill.verify(tmp_path / "out").ok
    sources = load_manifest(tmp_path / "out").made_from
    assert [Path(each.path).name.partition("-")[0] for each in sources or ()] == ["one", "two"]


def test_sources_have_the_names_of_the_recipe_wherever_they_are_told(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"mixture +\d.*: (.*)", shown) == ["one", "two"]
    again = tokmill.build(recipe, tmp_path / "out")
    assert again.already_complete
    assert [share.name for share in again.mixture] == ["one", "two"]
    tokmill.convert(tmp_path / "out", tmp_path / "c", format="llmc")
    for out in (tmp_path / "out", tmp_path / "c"):
        with tokmill.open(out) as data:
            assert [each.name for each in data.val_sources()] == ["one", "two"]
    tokmill.report(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>one</td>" in page
    assert ".work" not in page[: page.index("Inputs</h2>")]
    recipe.write_text("\n".join(line for line in RECIPE.splitlines() if "weight" not in line))
    tokmill.build(recipe, tmp_path / "shuffled")
    with tokmill.open(tmp_path / "shuffled") as data:
        assert [each.name for each in data.val_sources()] == ["one", "two"]


def test_the_time_of_a_build_is_that_of_all_steps(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later_s, tokenize, now = 0.0, tokmill.api.tokenize, time.monotonic

    def slowly(*args: Any, **options: Any) -> Any:
        nonlocal later_s
        later_s += 50
        return tokenize(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tokmill.api, "tokenize", slowly)
        patch.setattr(time, "monotonic", lambda: now() + later_s)
        made = tokmill.build(recipe, tmp_path / "out")
    assert made.elapsed_s > 100
    assert made.bytes_per_s < made.bytes_out / 50


def test_without_weights_all_documents_are_shuffled_once(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text("\n".join(line for line in RECIPE.splitlines() if "weight" not in line))
    tokmill.build(recipe, tmp_path / "out")
    steps = [Path(each.path) for each in load_manifest(tmp_path / "out").made_from or ()]
    tokmill.shuffle(steps, tmp_path / "s", seed=3)
    assert ids_of(tmp_path / "out") == ids_of(tmp_path / "s")


def with_copies(tmp_path: Path) -> None:
    """Texts of which some are in both sources, some changed a little."""
    texts = [text.decode() for text in some_documents(30, 300, 5)]
    write_corpus(tmp_path / "one" / "a.txt", texts[:20])
    changed = [text[:30] + " Q " + text[30:] for text in texts[12:20]]
    for i, text in enumerate([*texts[5:10], *changed, *texts[20:]]):
        write_corpus(tmp_path / "two" / f"{i:02}.txt", [text])


@pytest.mark.parametrize("near", [None, 0.7], ids=["copies", "near"])
def test_copies_are_removed_over_all_sources_and_then_they_are_mixed(near: float | None, recipe: Path, tmp_path: Path) -> None:
    with_copies(tmp_path)
    table = "[dedup]\n" + (f"near = {near}\nshortest = 5\n\n" if near else "\n")
    recipe.write_text(RECIPE.replace("[output]", table + "[output]"))
    outcome = tokmill.build(recipe, tmp_path / "out")
    options: dict[str, Any] = {"val_fraction": 0.1, "seed": 3}
    tokmill.tokenize(tmp_path / "one", tmp_path / "t1", **options)
    tokmill.tokenize(tmp_path / "two" / "*.txt", tmp_path / "t2", separator="none", **options)
    given: dict[str, Any] = {"near": near, "shortest": 5} if near else {}
    tokmill.dedup([tmp_path / "t1", tmp_path / "t2"], tmp_path / "u", **given)
    work = sorted((tmp_path / "out.work").iterdir())
    unique = [path for path in work if "-unique-" in path.name]
    assert len(work) == 4
    assert len(unique) == 2
    assert b"".join(ids_of(path)[0] for path in unique) == ids_of(tmp_path / "u")[0]
    assert all(tokmill.verify(path).order_checked for path in unique)
    assert all(tokmill.verify(path).ok for path in unique)
    tokmill.mix([(unique[0], 0.75), (unique[1], 0.25)], tmp_path / "m", seed=3)
    assert written(tmp_path / "out") == written(tmp_path / "m")
    assert any("removed as copies" in notice for notice in outcome.notices)
    # Another weight removes nothing again; other settings of dedup do, and tokenize nothing.
    recipe.write_text(recipe.read_text().replace("0.75", "0.6"))
    weighed = Starts()
    tokmill.build(recipe, tmp_path / "out", fresh=True, observers=[weighed])
    assert weighed.n == 1
    recipe.write_text(recipe.read_text().replace("[dedup]", "[dedup]\nnear = 1.0" if near is None else "[dedup]\nrows = 7"))
    assert not tokmill.build(recipe, tmp_path / "out", fresh=True).already_complete
    assert len(list((tmp_path / "out.work").iterdir())) == 6


def test_the_plan_counts_what_dedup_takes(recipe: Path, tmp_path: Path) -> None:
    plain = tokmill.plan_build(recipe, tmp_path / "out")
    plans = []
    for table in ("[dedup]", "[dedup]\nnear = 0.8"):
        recipe.write_text(RECIPE.replace("[output]", f"{table}\n\n[output]"))
        plans.append(tokmill.plan_build(recipe, tmp_path / "out"))
    assert [plan.passes - plain.passes for plan in plans] == [2, 4]
    n_documents = sum(step.documents for step in plain.steps)
    assert plans[1].scratch_bytes > 2 * 14 * 16 * n_documents
    assert plain.peak_bytes < plans[0].peak_bytes < plans[1].peak_bytes
    tokmill.build(recipe, tmp_path / "out")
    # It is done by then.
    assert tokmill.plan_build(recipe, tmp_path / "out").passes == plain.passes


def test_a_build_that_died_while_copies_were_removed_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_copies(tmp_path)
    recipe.write_text(RECIPE.replace("[output]", "[dedup]\nnear = 0.7\n\n[output]"))
    tokmill.build(recipe, tmp_path / "whole", work=tmp_path / "work")
    made = {path.name: files_in(path) for path in (tmp_path / "work").iterdir()}
    for n in (12, 45, 80):
        for path in (tmp_path / "work").glob("*-unique-*"):
            shutil.rmtree(path)
        with monkeypatch.context() as patch:
            dying_at(n, patch)
            with suppress(Died):
                tokmill.build(recipe, tmp_path / f"out{n}", work=tmp_path / "work")
        tokmill.build(recipe, tmp_path / f"out{n}", work=tmp_path / "work")
        assert {path.name: files_in(path) for path in (tmp_path / "work").iterdir()} == made, n
        assert written(tmp_path / f"out{n}") == written(tmp_path / "whole"), n


def test_a_mistake_in_dedup_is_named_with_its_line(recipe: Path) -> None:
    for line, what in (
        ("near = 2", "no similarity"),
        ("neer = 0.8", "not known"),
        ("rows = 3", "near copies"),
        ("near = 'x'", "no similarity"),
    ):
        recipe.write_text(RECIPE.replace("[output]", f"[dedup]\n{line}\n\n[output]"))
        with pytest.raises(UsageError, match=what) as caught:
            read_recipe(str(recipe))
        assert f"line {recipe.read_text().splitlines().index(line) + 1}" in str(caught.value.where)


def with_a_set_to_be_kept_out(tmp_path: Path) -> Path:
    """An output with some documents of both sources, and near copies of others."""
    texts = [(tmp_path / "two" / f"{i:02}.txt").read_text() for i in range(20)]
    some = [*texts[:3], *(text[:40] + " Q " + text[40:] for text in texts[6:9])]
    write_corpus(tmp_path / "eval.txt", some)
    tokmill.tokenize(tmp_path / "eval.txt", tmp_path / "eval", val_fraction=0.5)
    return tmp_path / "eval"


def test_documents_of_another_output_are_removed_from_all_sources(recipe: Path, tmp_path: Path) -> None:
    with_copies(tmp_path)
    kept_out = with_a_set_to_be_kept_out(tmp_path)
    table = '[dedup]\nnear = 0.7\nshortest = 5\ncompare = true\nagainst = "eval"\n\n'
    recipe.write_text(RECIPE.replace("[output]", table + "[output]"))
    plan = tokmill.plan_build(recipe, tmp_path / "out")
    tokmill.build(recipe, tmp_path / "out")
    options: dict[str, Any] = {"val_fraction": 0.1, "seed": 3}
    tokmill.tokenize(tmp_path / "one", tmp_path / "t1", **options)
    tokmill.tokenize(tmp_path / "two" / "*.txt", tmp_path / "t2", separator="none", **options)
    given: dict[str, Any] = {"near": 0.7, "shortest": 5, "compare": True, "against": kept_out}
    tokmill.dedup([tmp_path / "t1", tmp_path / "t2"], tmp_path / "u", **given)
    tokmill.dedup([tmp_path / "t1", tmp_path / "t2"], tmp_path / "without", near=0.7, shortest=5)
    unique = sorted((tmp_path / "out.work").glob("*-unique-*"))
    assert b"".join(ids_of(path)[0] for path in unique) == ids_of(tmp_path / "u")[0]
    assert len(ids_of(tmp_path / "u")[0]) < len(ids_of(tmp_path / "without")[0])
    removals = [load_manifest(path).removal for path in unique]
    assert [removal.against for removal in removals if isinstance(removal, Removal)] == [(str(kept_out),)] * 2
    assert all(tokmill.verify(path).ok for path in unique)
    # Where it lies decides nothing; what is in it does.
    kept_out.rename(tmp_path / "moved")
    recipe.write_text(recipe.read_text().replace('"eval"', '["mov*"]'))
    assert tokmill.build(recipe, tmp_path / "out").already_complete
    write_corpus(tmp_path / "more.txt", ["another text"])
    tokmill.tokenize(tmp_path / "more.txt", tmp_path / "moved", fresh=True, val_fraction=0)
    assert not tokmill.build(recipe, tmp_path / "out", fresh=True).already_complete
    assert len(list((tmp_path / "out.work").glob("*-unique-*"))) == 4
    recipe.write_text(RECIPE.replace("[output]", "[dedup]\nnear = 0.7\nshortest = 5\n\n[output]"))
    assert plan.passes - tokmill.plan_build(recipe, tmp_path / "other").passes == 1, "to compare"


def test_a_set_that_cannot_be_kept_out_is_refused_before_anything_is_tokenized(recipe: Path, tmp_path: Path) -> None:
    with_copies(tmp_path)
    kept_out = with_a_set_to_be_kept_out(tmp_path)
    (tmp_path / "ids.bin").write_bytes(bytes([5, 0, 7, 0]))
    stated: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": 7}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "other", format="raw", **stated)
    tokmill.tokenize(tmp_path / "two" / "*.txt", tmp_path / "same", separator="none", val_fraction=0.1, seed=3)
    for line, what in (
        ('against = "nowhere"', "no such file"),
        ('against = ["eval", "other"]', "do not fit together"),
        ('against = "same"', "removed from itself"),
        ("against = []", "dedup has no against"),
        ("against = 3", "dedup has no against"),
        ('compare = "yes"', "compare is 'yes'"),
    ):
        recipe.write_text(RECIPE.replace("[output]", f"[dedup]\n{line}\n\n[output]"))
        for call in (tokmill.build, tokmill.plan_build):
            with pytest.raises(UsageError, match=what) as caught:
                call(recipe, tmp_path / "out")
            assert f"line {recipe.read_text().splitlines().index(line) + 1}" in str(caught.value.where)
    recipe.write_text(RECIPE.replace("[output]", '[dedup]\nagainst = "eval"\n\n[output]'))
    with pytest.raises(UsageError, match="the output is one of the sources"):
        tokmill.build(recipe, kept_out)
    assert not (tmp_path / "out.work").exists()


def test_what_did_not_change_is_not_done_again(recipe: Path, tmp_path: Path) -> None:
    tokmill.build(recipe, tmp_path / "out", work=tmp_path / "work")
    again = Starts()
    assert tokmill.build(recipe, tmp_path / "out", work=tmp_path / "work", observers=[again]).already_complete
    assert again.n == 0
    steps = sorted((tmp_path / "work").iterdir())
    assert len(steps) == 2
    # Another weight: mixed again, nothing tokenized.
    recipe.write_text(RECIPE.replace("0.75", "0.6"))
    weighed = Starts()
    tokmill.build(recipe, tmp_path / "out", work=tmp_path / "work", fresh=True, observers=[weighed])
    assert weighed.n == 1
    assert sorted((tmp_path / "work").iterdir()) == steps
    # Another text in one source: that one alone.
    write_corpus(tmp_path / "one" / "c.txt", ["something new"])
    added = Starts()
    tokmill.build(recipe, tmp_path / "out", work=tmp_path / "work", fresh=True, observers=[added])
    assert added.n == 2
    assert len(list((tmp_path / "work").iterdir())) == 3


def test_steps_that_are_not_kept_are_gone_and_the_output_is_still_complete(recipe: Path, tmp_path: Path) -> None:
    tokmill.build(recipe, tmp_path / "out", keep=False)
    assert not (tmp_path / "out.work").exists()
    assert tokmill.build(recipe, tmp_path / "out", keep=False).already_complete


def test_what_went_as_a_copy_is_listed_though_no_step_is_kept(recipe: Path, tmp_path: Path) -> None:
    with_copies(tmp_path)
    recipe.write_text(RECIPE.replace("[output]", "[dedup]\n\n[output]"))
    tokmill.build(recipe, tmp_path / "kept")
    outcome = tokmill.build(recipe, tmp_path / "out", keep=False)
    assert not (tmp_path / "out.work").exists()
    assert any(str(tmp_path / "out.removed") in notice for notice in outcome.notices)
    lists = {path.name: path.read_bytes() for path in (tmp_path / "out.removed").iterdir()}
    assert sorted(lists) == ["one.manifest.json", "two.manifest.json", "two.removed.jsonl"]
    (step,) = (tmp_path / "kept.work").glob("two-unique-*")
    assert lists["two.removed.jsonl"] == (step / "removed.jsonl").read_bytes() != b""
    assert b'"removal"' in lists["two.manifest.json"]
    assert tokmill.build(recipe, tmp_path / "out", keep=False).already_complete
    assert {path.name: path.read_bytes() for path in (tmp_path / "out.removed").iterdir()} == lists


def test_steps_of_a_build_that_is_complete_go_when_they_are_not_kept_and_unused_ones_are_named(
    recipe: Path, tmp_path: Path
) -> None:
    tokmill.build(recipe, tmp_path / "out")
    (old,) = (tmp_path / "out.work").glob("one-*")
    recipe.write_text(RECIPE.replace('inputs = "one"', 'inputs = "one"\nseparator = "none"'))
    outcome = tokmill.build(recipe, tmp_path / "out", fresh=True)
    (notice,) = [each for each in outcome.notices if "not of this recipe" in each]
    assert old.name in notice
    assert "two-" not in notice
    assert tokmill.build(recipe, tmp_path / "out", keep=False).already_complete
    assert [*(tmp_path / "out.work").iterdir()] == [old]


def test_a_complete_training_set_of_which_a_file_is_missing_is_damaged(recipe: Path, tmp_path: Path) -> None:
    tokmill.build(recipe, tmp_path / "out")
    (tmp_path / "out" / "train.bin").unlink()
    with pytest.raises(DamageError, match=r"is missing"):
        tokmill.build(recipe, tmp_path / "out")
    with pytest.raises(UsageError, match="would lie in an output"):
        tokmill.build(recipe, tmp_path / "other", work=tmp_path / "out")
    assert not tokmill.build(recipe, tmp_path / "out", fresh=True).already_complete


def test_notes_of_a_source_are_in_words_of_the_recipe(recipe: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    recipe.write_text(RECIPE.replace("val_fraction = 0.1", "val_fraction = 0.000001"))
    outcome = tokmill.build(recipe, tmp_path / "out", observers=[SimpleNamespace(on_event=lambda each: seen.append(str(each)))])
    of_one = [each for each in outcome.notices if each.startswith("source one: ")]
    assert any("correct the recipe: val_fraction 0." in each for each in of_one)
    assert not any(option in f"{outcome.notices} {seen}" for option in ("--fresh", "--val-fraction"))
    recipe.write_text(RECIPE)
    outcome = tokmill.build(recipe, tmp_path / "other")
    # What a trainer needs is said of the training set alone.
    assert [each.startswith("source") for each in outcome.notices if "nanoGPT" in each] == [False]


def test_texts_with_two_weights_are_refused(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace('["two/*.txt"]', '"one"').replace('separator = "none"\n', ""))
    with pytest.raises(UsageError, match="two has the texts of one") as caught:
        tokmill.build(recipe, tmp_path / "out")
    assert caught.value.where == f"{recipe}, line 11"


DIES = """
import os, signal, sys
import tokmill

class Dies:
    n = 0

    def on_event(self, event):
        self.n += type(event).__name__ == sys.argv[3]
        if self.n == int(sys.argv[4]):
            os.killpg(0, signal.SIGKILL)

tokmill.build(sys.argv[1], sys.argv[2], observers=[Dies()])
"""
"""`build` that kills all its processes at a certain event."""


@pytest.mark.parametrize(("kind", "number"), [("Started", 1), ("Started", 2), ("Started", 3), ("Committed", 3)])
def test_killed_in_any_step_the_same_command_goes_on(kind: str, number: int, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", DIES, str(recipe), str(out), kind, str(number)]
    killed = subprocess.run(words, check=False, env=clean_environment(), timeout=PATIENCE_S, start_new_session=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()

    def goes_on() -> bool:
        # The killed run's processes may need a moment to end.
        with suppress(LockedError):
            return bool(tokmill.build(recipe, out))
        return False

    wait_until(goes_on)
    tokmill.build(recipe, tmp_path / "whole")
    assert written(out) == written(tmp_path / "whole")


def test_the_plan_says_what_it_becomes_and_makes_nothing(recipe: Path, tmp_path: Path) -> None:
    plan = tokmill.plan_build(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()
    outcome = tokmill.build(recipe, tmp_path / "out")
    assert abs(plan.tokens - outcome.tokens_train) < 0.1 * outcome.tokens_train
    assert [step.is_complete for step in tokmill.plan_build(recipe, tmp_path / "out").steps] == [True, True]


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_disk(monkeypatch, 1000)
    with pytest.raises(DiskFullError):
        tokmill.build(recipe, tmp_path / "out")
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "made"])
def test_more_tokens_than_the_sources_have_are_named_with_the_line_of_the_recipe(
    is_planned: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(RECIPE.replace("seed = 3", "seed = 3\ntokens = '1M'"))
    with monkeypatch.context() as patch:
        if not is_planned:
            patch.setattr(building, "_plan", lambda *_: SimpleNamespace(raise_for_disk=lambda: None))
        with pytest.raises(UsageError, match=r"1,000,000 tokens (are more than two|would take each document)") as caught:
            tokmill.build(recipe, tmp_path / "out")
    assert caught.value.where == f"{recipe}, line 2"
    assert caught.value.option is None
    assert "--" not in f"{caught.value.allowed} {caught.value.next_step}"
    assert (tmp_path / "out.work").exists() != is_planned


def test_two_disks_are_asked_each_for_its_own(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tokmill.plan_build(recipe, tmp_path / "out", work=tmp_path / "work")
    (one,) = shared.disks
    assert shared.scratch_bytes == shared.output_bytes
    assert one.needed_bytes == shared.peak_bytes == sum(step.new_bytes for step in shared.steps) + 2 * shared.output_bytes
    (tmp_path / "other").mkdir()
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        fields = list(real(path, **options))
        fields[2] = 7 if path.name == "other" else 8
        return os.stat_result(fields)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        disks = building._disks(tmp_path / "work", 1000, tmp_path / "other" / "out", 600, 0)
        packed = building._disks(tmp_path / "work", 1600, tmp_path / "other" / "out", 600, 300)
        (one,) = building._disks(tmp_path / "work", 1600, tmp_path / "out", 600, 300)
    assert [(disk.path, disk.needed_bytes) for disk in disks] == [(str(tmp_path), 1000), (str(tmp_path / "other"), 600)]
    assert [disk.needed_bytes for disk in packed] == [1600, 600]
    assert one.needed_bytes == 1900


@pytest.mark.parametrize(
    "at",
    ["directory.Output.publish", "packed_run.PackedRun._write_bucket", "directory.publish_files"],
    ids=["tokenized", "packing", "names"],
)
def test_what_a_killed_build_has_written_is_no_reason_to_refuse(
    at: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "one" / "a.txt", [text.decode() for text in some_documents(100, 2000, 5)])
    text = PACKED if "packed" in at else RECIPE
    recipe.write_text(re.sub("weight.*\n", "", text).replace("val_fraction = 0.1", "val_fraction = 0"))
    plan = tokmill.plan_build(recipe, tmp_path / "out", threads=1)
    most = plan.peak_bytes + plan.output_bytes // 2 + (96 << 10)
    fill_disk(monkeypatch, most, tmp_path / "out", tmp_path / "out.work")

    name = f"tokmill.{'output' if 'directory' in at else 'derive'}.{at}"
    real = pkgutil.resolve_name(name)

    def dying(of: Any, *arguments: Any, **named: Any) -> None:
        directory = getattr(of, "directory", of)
        # The sources are tokenized by then.
        if str(directory).startswith(f"{tmp_path / 'out.work'}/"):
            real(of, *arguments, **named)
        else:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(name, dying)
        with pytest.raises(Died):
            tokmill.build(recipe, tmp_path / "out", threads=1)
    assert [load_manifest(step).counts.documents > 0 for step in (tmp_path / "out.work").glob("[ot]*-*")] == [True, True]
    assert tokmill.plan_build(recipe, tmp_path / "out", threads=1).peak_bytes < plan.peak_bytes
    tokmill.build(recipe, tmp_path / "out", threads=1)
    assert tokmill.verify(tmp_path / "out").order_checked


def test_files_of_others_in_the_output_are_told_before_anything_is_tokenized(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.bin").write_bytes(b"mine")
    with pytest.raises(UsageError, match="no tokmill manifest lists it"):
        tokmill.build(recipe, tmp_path / "out")
    assert not (tmp_path / "out.work").exists()
    assert (tmp_path / "out" / "train.bin").read_bytes() == b"mine"


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the recipe is a directory"):
        tokmill.build(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("options", [[], ["--plan"]])
def test_a_recipe_that_is_not_there_is_a_mistake_of_the_command(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", str(tmp_path / "nowhere.toml"), "--out", str(tmp_path / "out"), *options]) == 2
    assert "there is no such recipe" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "recipe.toml").touch()
    assert run(["build", str(tmp_path / "recpie.toml"), "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert "did you mean recipe.toml?" in said
    assert f"next:    tokmill build {tmp_path}/recipe.toml --out" in said


@pytest.mark.parametrize(
    ("text", "by", "line", "what", "allowed"),
    [
        ("weight = 0.25", "wieght = 0.25", 12, "wieght is not known in [sources.two]; did you mean weight?", "inputs, "),
        ("val_fraction = 0.1", "val_fractoin = 0.1", 4, "val_fractoin is not known in [tokenize]; did you mean val_fraction?", ""),
        ("val_fraction = 0.1", "val_fraction = 2", 4, "2 is out of range", ""),
        ("weight = 0.25", "weight = 'a'", 12, "weight is 'a'", "a number"),
        ("weight = 0.25\n", "", 10, "two has no weight", ""),
        ('inputs = "one"', "inputs = 5", 7, "one has no inputs", ""),
        ('format = "raw"', 'format = "lmc"', 16, "'lmc' is not a value of --format; did you mean llmc?", "llmc"),
        ("seed = 3", "seeds = 3", 1, "seeds is not known; did you mean seed?", "dedup, max_epochs, output, "),
        ("[output]", "[outputs]", 15, "outputs is not known; did you mean output?", ""),
        ("seed = 3", "colour = 3", 1, "colour is not known", "dedup, max_epochs"),
        ("seed = 3", "near = 0.8", 1, "near is not known", "in [dedup]"),
        ("val_fraction = 0.1", "val-fraction = 0.1", 4, "val-fraction is not known in [tokenize]; did you mean val_fraction?", ""),
        ("[output]", "[output", 15, "not TOML", ""),
        ("[sources.two]", "[sources.'../x']", 10, "'../x' is no name of a source", ""),
        ("weight = 0.25", "weight = nan", 12, "weight is nan", "a number from 0 on"),
        ("weight = 0.25", "weight = inf", 12, "weight is inf", "a number from 0 on"),
        ("weight = 0.25", "weight = -1", 12, "weight is -1", "a number from 0 on"),
        ("weight = 0.25", "weight = 1\nmax_epochs = 0", 13, "max_epochs is 0", "a number above 0"),
        ("seed = 3", "max_epochs = inf", 1, "max_epochs is inf", "a number above 0"),
        ("seed = 3", "tokens = 'many'", 1, "'many' is not a number of tokens", "a whole number"),
        ("seed = 3", "tokens = true", 1, "True is not a number of tokens", "a whole number"),
        ('format = "raw"', "shard_tokens = 'x'", 16, "'x' is not a number of tokens", "a whole number"),
        ("val_fraction = 0.1", "memory = 1", 4, "memory is not known", "an option of the command"),
        ("val_fraction = 0.1", "threads = 1", 4, "threads is not known", "an option of the command"),
        ("weight = 0.25", "weight = 1\nval_fraction = 0.2", 13, "val_fraction is not that of every source", "in [tokenize]"),
        ("weight = 0.25", "weight = 1\nval_tail = '10%'", 13, "val_tail is not that of every source", "in [tokenize]"),
        ("val_fraction = 0.1", "val_tail = '10%'", 4, "several sources", "val_fraction in [tokenize]"),
        ("val_fraction = 0.1", 'dtype = "uint32"', 4, "dtype is not known", "what the format"),
        ("val_fraction = 0.1", 'eot = "none"', 4, "eot is 'none'", "before or after"),
        ("weight = 0.25", 'weight = 1\neot = "before"', 13, "eot is not known in [sources.two]", "in [tokenize], for all sources"),
        ('separator = "none"', 'separator = """\n[a\n"""\nwieght = 1', 16, "wieght is not known in [sources.two]", ""),
    ],
)
def test_a_mistake_is_named_with_its_line(recipe: Path, text: str, by: str, line: int, what: str, allowed: str) -> None:
    assert text in RECIPE
    recipe.write_text(RECIPE.replace(text, by))
    with pytest.raises(UsageError) as caught:
        tokmill.build(recipe, recipe.parent / "out")
    assert caught.value.where == f"{recipe}, line {line}"
    assert what in caught.value.what
    assert allowed in (caught.value.allowed or "")


@pytest.mark.parametrize("packed", [False, True])
def test_an_id_before_each_document_is_that_of_all_sources(packed: bool, recipe: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("val_fraction = 0.1", 'val_fraction = 0.1\neot = "before"')
    recipe.write_text(text + ("[pack]\nsequence = 64\n" if packed else ""))
    out = tmp_path / "out"
    tokmill.build(recipe, out)
    content = load_manifest(out).content
    assert (content.eot, content.format) == ("before", "raw")
    assert int.from_bytes(ids_of(out)[0][:2], "little") == content.tokenizer.eot_id
    assert tokmill.verify(out).ok


@pytest.mark.parametrize("line", ["tokens = 100", "max_epochs = 2"])
def test_what_has_no_meaning_without_weights_is_refused(line: str, recipe: Path) -> None:
    text = "\n".join(each for each in RECIPE.splitlines() if "weight" not in each)
    recipe.write_text(text.replace("seed = 3", line))
    with pytest.raises(UsageError, match="has no meaning without weights") as caught:
        tokmill.build(recipe, recipe.parent / "out")
    assert caught.value.where == f"{recipe}, line 1"


@pytest.mark.parametrize(
    ("text", "by", "what"),
    [
        ('separator = "none"', 'tokenizer = "{other}"\neot_token = "[SEP]"', "do not fit together"),
        ('format = "raw"', 'format = "mds"\nshard_tokens = 1000', "a shard of 1,000 tokens"),
        ("weight", "weight = 0 #", "no source has a weight above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_tokenized(recipe: Path, text: str, by: str, what: str) -> None:
    assert text in RECIPE
    recipe.write_text(RECIPE.replace(text, by.replace("{other}", str(path_of("wordpiece")))))
    with pytest.raises(UsageError) as caught:
        tokmill.build(recipe, recipe.parent / "out")
    assert what in caught.value.what
    assert not (recipe.parent / "out.work").exists()


@pytest.mark.parametrize("work", ["out", "out/work", "x/../out"])
def test_tokenized_sources_do_not_lie_in_the_output(recipe: Path, tmp_path: Path, work: str) -> None:
    with pytest.raises(UsageError, match="would lie in the output"):
        tokmill.build(recipe, tmp_path / "out", work=tmp_path / work)
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_the_bytes_of_the_dtype(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = tokmill.plan_build(recipe, tmp_path / "out")
    wide = Choice(eot="after", dtype="uint32", shards=None, notices=[])
    monkeypatch.setattr(building, "choose_output", lambda *_, **__: wide)
    assert tokmill.plan_build(recipe, tmp_path / "out").output_bytes == 2 * narrow.output_bytes


def test_an_output_of_another_recipe_is_not_replaced_and_nothing_is_tokenized_for_it(recipe: Path, tmp_path: Path) -> None:
    tokmill.build(recipe, tmp_path / "out")
    steps = sorted((tmp_path / "out.work").iterdir())
    write_corpus(tmp_path / "one" / "c.txt", ["something new"])
    with pytest.raises(ChangedError) as caught:
        tokmill.build(recipe, tmp_path / "out")
    assert "--fresh" in str(caught.value.next_step)
    assert sorted((tmp_path / "out.work").iterdir()) == steps
    # The same mixture in other words is the same.
    (tmp_path / "one" / "c.txt").unlink()
    recipe.write_text(RECIPE.replace("0.75", "3").replace("0.25", "1"))
    assert tokmill.build(recipe, tmp_path / "out").already_complete


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "example.toml").write_text(EXAMPLE)
    made = read_recipe(str(tmp_path / "example.toml"))
    assert [source.name for source in made.sources] == ["web", "books"]
    assert made.is_weighted


PACKED = RECIPE + "\n[pack]\nsequence = 64\n"


def test_a_packed_mixture_is_the_mixture_packed(recipe: Path, tmp_path: Path) -> None:
    tokmill.build(recipe, tmp_path / "m")
    tokmill.pack(tmp_path / "m", tmp_path / "p", sequence=64, seed=3, format="llmc", shard_tokens=640)
    recipe.write_text(PACKED.replace('format = "raw"', 'format = "llmc"\nshard_tokens = 640'))
    plan = tokmill.plan_build(recipe, tmp_path / "out")
    assert plan.sequence == 64
    outcome = tokmill.build(recipe, tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "p")
    assert outcome.packed
    assert any("of 75.00% wished" in notice for notice in outcome.notices)
    assert tokmill.verify(tmp_path / "out").order_checked
    assert tokmill.build(recipe, tmp_path / "out").already_complete
    # Another length: packed again from the mixture that is there.
    recipe.write_text(PACKED.replace("64", "32"))
    again = Starts()
    tokmill.build(recipe, tmp_path / "out", fresh=True, observers=[again], keep=False)
    assert again.n == 2
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize(
    ("wrong", "line", "what"),
    [
        ("sequence = 0", 19, "sequence is 0"),
        ("drop = 'all'\nsequence = 4", 19, "drop is 'all'"),
        ("", 18, "sequence is None"),
        ("sequence = 4\npad_id = 'x'", 20, "pad_id is 'x'"),
        ("sequences = 4", 19, "sequences is not known"),
    ],
    ids=["zero", "drop", "none", "pad", "name"],
)
def test_a_mistake_in_what_is_packed_is_named_with_its_line(recipe: Path, tmp_path: Path, wrong: str, line: int, what: str) -> None:
    recipe.write_text(PACKED.replace("sequence = 64", wrong))
    with pytest.raises(UsageError, match=what) as caught:
        tokmill.build(recipe, tmp_path / "out")
    assert f"line {line}" in str(caught.value.where)
    assert not (tmp_path / "out").exists()


def test_a_build_into_a_store_is_refused_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"built in a directory[^$]*tokmill convert DIR --format NAME --out s3://"):
        tokmill.build(recipe, "s3://user:secret@bucket/one")
    with pytest.raises(UsageError, match="built in a directory") as caught:
        tokmill.plan_build(recipe, "s3://user:secret@bucket/one")
    assert "secret" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
