"""`dedup`: what stays is what a set in memory says, whatever the memory, the format and the deaths on the way."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import some_documents, write_corpus
from support.deduplicated import audit_of, documents_of, tiny, unique
from support.failures import Died, dying_at, flip
from support.outputs import files_in, ids_of, written
from support.runs import tokenize_documents
from support.turns import in_turns

import tokmill
from tokmill.cli.app import run
from tokmill.cli.render import summary_lines
from tokmill.core.errors import ChangedError, DamageError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.derive import bucket_run
from tokmill.derive.deduplication import copying, marking
from tokmill.output import directory
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
DOCUMENTS = st.lists(st.text(alphabet="ab é", max_size=5).map(str.encode), min_size=1, max_size=40)


@in_turns(2)
@settings(max_examples=10, suppress_health_check=QUICK, deadline=None)
@given(
    first=DOCUMENTS,
    second=DOCUMENTS,
    other=DOCUMENTS,
    eot=st.sampled_from(["after", "before"]),
    compare=st.booleans(),
    bucket_bytes=st.sampled_from([70, 1000, 1 << 20]),
    block_tokens=st.integers(3, 30),
)
def test_what_stays_is_what_a_set_in_memory_says(
    turn: int,
    tmp_path_factory: pytest.TempPathFactory,
    first: list[bytes],
    second: list[bytes],
    other: list[bytes],
    eot: str,
    compare: bool,
    bucket_bytes: int,
    block_tokens: int,
) -> None:
    base = tmp_path_factory.mktemp("dedup")
    for name, documents in (("a", first), ("b", second), ("o", other)):
        tokenize_documents(base / name, documents, eot=eot, keep_empty=True, val_fraction=0.3)
    with tiny(bucket_bytes, block_tokens):
        outcome = tokmill.dedup([base / "a", base / "b"], base / "u", against=base / "o", compare=compare)
    sides, against = [documents_of(base / name) for name in "ab"], documents_of(base / "o")
    stay, go = unique(sides, [*against[0], *against[1]])
    assert documents_of(base / "u") == (stay, [*sides[0][1], *sides[1][1]])
    lines, n_first = audit_of(base / "u"), len(sides[0][0])
    assert [line["document"] + line["source"] * n_first for line in lines] == go
    everything = [sides[0], sides[1], against]
    for line in lines:
        removed = everything[line["source"]][0][line["document"]]
        kept = everything[line["kept_source"]][line["kept_side"] == "val"][line["kept_document"]]
        assert removed == kept
        assert (line["tokens"], line["kept_tokens"], line["similarity"]) == (len(removed) // 2 + 1, len(kept) // 2 + 1, 1.0)
    assert outcome.removal is not None
    assert sum(each.copies for each in outcome.removal.sources) == len(go)
    assert sum(each.copy_tokens for each in outcome.removal.sources) == sum(line["tokens"] for line in lines)
    report = tokmill.verify(base / "u")
    assert report.ok
    assert report.order_checked


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Each has documents of the other, and some twice."""
    documents = [some_documents(60, 60, i) for i in range(2)]
    tokenize_documents(tmp_path / "a", documents[0] + documents[1][:20] + documents[0][:10])
    tokenize_documents(tmp_path / "b", documents[1] + documents[0][30:])
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize(("compare", "step"), [(False, 11), (True, 29)])
def test_died_at_any_call_it_goes_on_to_the_same_bytes(
    compare: bool, step: int, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(out: Path) -> None:
        with tiny(bucket_bytes=3000, commit_bytes=2500):
            tokmill.dedup(two, out, compare=compare)

    make(tmp_path / "whole")
    n = 0
    for n in itertools.count(1, step):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                make(out)
        if calls() < n:
            break
        make(out)
        assert files_in(out) == files_in(tmp_path / "whole"), n
        assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "removed.jsonl", "train.bin", "val.bin"], n
        assert load_manifest(out).removal == load_manifest(tmp_path / "whole").removal
        assert tokmill.verify(out).ok
    assert n > 100


def test_the_bytes_do_not_depend_on_memory_and_merging_first_changes_nothing(two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two, tmp_path / "u", memory="128MiB")
    with tiny(bucket_bytes=500):
        tokmill.dedup(two, tmp_path / "v", compare=True)
    assert files_in(tmp_path / "u") == files_in(tmp_path / "v")
    tokmill.merge(two, tmp_path / "ab")
    tokmill.dedup(tmp_path / "ab", tmp_path / "w")
    assert written(tmp_path / "w") == written(tmp_path / "u")


def test_nothing_is_left_to_remove(two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two, tmp_path / "u")
    again = tokmill.dedup(tmp_path / "u", tmp_path / "v")
    assert written(tmp_path / "v") == written(tmp_path / "u")
    assert again.removal is not None
    assert not audit_of(tmp_path / "v")
    assert again.removal.sources[0].copies == 0


@pytest.mark.parametrize("trainer", ["llmc", "megatron", "datatrove", "olmo", "litdata", "mds"])
def test_from_any_format_through_any_other_the_ids_are_the_same(trainer: str, two: list[Path], tmp_path: Path) -> None:
    shards = {} if trainer in ("megatron", "datatrove", "olmo") else {"shard_tokens": 2048 if trainer == "mds" else 1000}
    tokmill.convert(two[0], tmp_path / "f", format=trainer, **shards)  # type: ignore[arg-type]
    tokmill.dedup(tmp_path / "f", tmp_path / "fu")
    tokmill.dedup(two[0], tmp_path / "u")
    tokmill.convert(tmp_path / "u", tmp_path / "uf", format=trainer, **shards)  # type: ignore[arg-type]
    for name in ("fu", "uf"):
        report = tokmill.verify(tmp_path / name)
        assert report.ok
        assert report.order_checked
    if trainer not in ("litdata", "mds"):
        assert ids_of(tmp_path / "fu")[0] == ids_of(tmp_path / "uf")[0]


@pytest.mark.parametrize("way", ["convert", "reshard", "merge"])
def test_the_list_of_what_went_comes_along(way: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokmill.dedup(two, tmp_path / "u", format="llmc" if way == "reshard" else None)

    def make() -> None:
        if way == "convert":
            tokmill.convert(tmp_path / "u", tmp_path / "c", format="llmc", shard_tokens=1000)
        elif way == "reshard":
            tokmill.reshard(tmp_path / "u", tmp_path / "c", shard_tokens=1000)
        else:
            tokmill.merge([tmp_path / "u"], tmp_path / "c")

    def die(*_: object, **__: object) -> None:
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr("tokmill.derive.copiers._complete_lists", die)
        with pytest.raises(_StopError):
            make()
    make()
    assert len(audit_of(tmp_path / "u")) > 40
    assert audit_of(tmp_path / "c") == audit_of(tmp_path / "u")
    assert load_manifest(tmp_path / "c").removal == load_manifest(tmp_path / "u").removal
    assert tokmill.verify(tmp_path / "c").ok
    page = Path(tokmill.report(tmp_path / "c", tmp_path / "page.html").path).read_text()
    assert "largest groups" in page
    assert f">{two[1]}<" in page


@pytest.mark.parametrize("options", [{}, {"near": 0.9, "shortest": 0}], ids=["exact", "near"])
def test_a_digest_that_two_documents_share_removes_only_what_is_the_same_when_both_are_read(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize_documents(tmp_path / "a", [b"one", b"two", b"one", b"three", b"one"], val_fraction=0)
    train, _ = documents_of(tmp_path / "a")
    monkeypatch.setattr("xxhash.xxh3_128_digest", lambda _: b"the same for all")
    tokmill.dedup(tmp_path / "a", tmp_path / "loose", **options)
    careful = tokmill.dedup(tmp_path / "a", tmp_path / "careful", compare=True, **options).removal
    monkeypatch.undo()
    assert documents_of(tmp_path / "loose")[0] == train[:1]
    assert documents_of(tmp_path / "careful")[0] == [train[0], train[1], train[3]]
    assert careful is not None
    assert careful.sources[0].copies == 2


@pytest.mark.parametrize("is_near", [False, True], ids=["exact", "near"])
@pytest.mark.parametrize("compare", [False, True], ids=["begun_without", "begun_with"])
def test_another_choice_of_comparing_is_refused_in_every_pass(
    is_near: bool, compare: bool, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which passes there are depends on it; the choice as it was goes on to the same bytes."""
    options: dict[str, Any] = {"near": 0.5, "shortest": 5} if is_near else {}
    passes = ["_find_copies", *(["_gather_copies", "_compare_copies"] if compare else [])]
    passes += ["_take_bands", "_find_candidates", "_gather_candidates", "_compare_candidates", "_follow"] if is_near else []
    tokmill.dedup(two, tmp_path / "whole", compare=compare, **options)
    for name in passes:
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(marking.Marking, name, _named(name))
            with pytest.raises(_StopError):
                tokmill.dedup(two, out, compare=compare, **options)
        with pytest.raises(ChangedError, match="was begun with") as caught:
            tokmill.dedup(two, out, compare=not compare, **options)
        assert caught.value.option == "--compare"
        assert not (out / "manifest.json").exists()
        tokmill.dedup(two, out, compare=compare, **options)
        assert files_in(out) == files_in(tmp_path / "whole"), name


def test_a_dry_run_makes_nothing_and_the_same_command_goes_on_with_it(two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two, tmp_path / "u")
    found = tokmill.dedup(two, tmp_path / "v", dry_run=True, audit=tmp_path / "lines.jsonl")
    assert [p.name for p in (tmp_path / "v").iterdir()] == [".tokmill"]
    assert (tmp_path / "lines.jsonl").read_bytes() == (tmp_path / "u" / "removed.jsonl").read_bytes()
    made = tokmill.dedup(two, tmp_path / "v")
    assert made.resumed
    assert files_in(tmp_path / "v") == files_in(tmp_path / "u")
    assert (found.removal, found.tokens_train, found.dry_run) == (made.removal, made.tokens_train, True)
    with pytest.raises(UsageError, match="complete already"):
        tokmill.dedup(two, tmp_path / "v", dry_run=True)
    tokmill.dedup(two, tmp_path / "w", dry_run=True)
    with pytest.raises(ChangedError, match="begun without --compare"):
        tokmill.dedup(two, tmp_path / "w", compare=True)
    assert tokmill.dedup(two, tmp_path / "w", compare=True, fresh=True).removal == made.removal


def refused(directories: Any, out: Path, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        tokmill.dedup(directories, out, **options)
    return caught.value


def test_what_cannot_be_is_refused(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "u"
    tokmill.shuffle(two, tmp_path / "s", seed=1)
    tokmill.mix([(two[0], 1), (two[1], 1)], tmp_path / "m", seed=1)
    tokmill.merge([tmp_path / "m"], tmp_path / "mm")
    assert "shuffle's seed" in refused(tmp_path / "s", out).what
    assert "on purpose" in refused([two[0], tmp_path / "mm"], out).what
    assert refused(two[0], out, against=[two[1], two[0]]).option == "--against"
    tokmill.tokenize(tmp_path / "a.txt", tmp_path / "t", shuffle=1)
    tokmill.merge([two[0], tmp_path / "t"], tmp_path / "tm", allow_other_split=True)
    assert "shuffle's seed" in refused(tmp_path / "tm", out).what
    (tmp_path / "link").symlink_to(two[0])
    shutil.copytree(two[0], tmp_path / "copy")
    assert "given twice" in refused([two[0], tmp_path / "link"], out).what
    for other in ("link", "copy"):
        assert refused(two[0], out, against=[two[1], tmp_path / other]).option == "--against"
    assert refused(two[0], out, audit=tmp_path / "x").option == "--audit"
    assert refused(two[0], out, audit=two[1] / "train.bin", dry_run=True).option == "--audit"
    assert refused(two[0], out, memory="1MiB").option == "--memory"
    assert "no output was given" in refused([], out).what
    assert not out.exists()
    tokmill.dedup(two[0], out)
    with pytest.raises(ChangedError, match="other outputs"):
        tokmill.dedup(two, out)
    with pytest.raises(UsageError, match="documents were removed"):
        tokmill.tokenize(tmp_path / "a.txt", out, append=True)


def test_a_source_that_is_damaged_is_named_and_so_is_a_file_of_work_in_progress(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(two[1] / "train.bin", 100)
    with pytest.raises(DamageError, match="a source is damaged") as caught:
        tokmill.dedup(two, tmp_path / "out")
    assert str(two[1] / "train.bin") in str(caught.value.where)
    flip(two[1] / "train.bin", 100)
    real = copying.Copying.run

    def damaging(self: copying.Copying) -> None:
        path = next((tmp_path / "out" / ".tokmill").glob("removals_*.part"))
        path.write_bytes(path.read_bytes()[:-3])
        real(self)

    monkeypatch.setattr(copying.Copying, "run", damaging)
    with pytest.raises(DamageError, match="work in progress"):
        tokmill.dedup(two, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_tokenized_and_deduplicated_in_one_command_is_one_after_the_other(tmp_path: Path) -> None:
    texts = [text.decode() for text in some_documents(200, 60, 1)]
    corpus = write_corpus(tmp_path / "corpus.txt", texts + texts[50:90])
    options: dict[str, Any] = {"val_fraction": 0.1, "format": "llmc", "shard_tokens": 2000}
    tokmill.tokenize(corpus, tmp_path / "t", **options)
    tokmill.dedup(tmp_path / "t", tmp_path / "u", shard_tokens=2000)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying.Copying, "run", _stop)
        with pytest.raises(_StopError):
            tokmill.tokenize(corpus, out, dedup=True, **options)
    assert not (out / "manifest.json").exists()
    summary = tokmill.tokenize(corpus, out, dedup=True, **options)
    assert files_in(out) == files_in(tmp_path / "u")
    assert summary.documents_train == load_manifest(out).counts.documents_train
    assert tokmill.verify(out).order_checked
    assert not (out / ".tokmill").exists()
    plain = tokmill.tokenize(corpus, tmp_path / "t", **options)
    again = tokmill.tokenize(corpus, out, dedup=True, **options)
    assert again.already_complete
    for each in (summary, again):
        assert each.removal is not None
        n = each.removal.sources[0].copies
        assert n > 0
        for field in ("bytes_in", "bytes_text", "skipped", "audited_documents", "documents_val"):
            assert getattr(each, field) == getattr(plain, field)
        assert min(plain.bytes_in, plain.bytes_text, plain.audited_documents) > 0
        assert (each.documents, each.documents_train) == (plain.documents - n, plain.documents_train - n)
        told = summary_lines(each)
        density = plain.bytes_text / (plain.tokens_train + plain.tokens_val)
        assert f"{density:.2f} bytes per token" in told
        assert f"{n} of {plain.documents_train} documents ({n} copies" in told
    assert tokmill.inspect(out).bytes_text is None
    for other in ({"dedup": False}, {"dedup": False, "shuffle": 8}, {"keep_empty": True}):
        with pytest.raises(ChangedError):
            tokmill.tokenize(corpus, out, **(options | {"dedup": True} | other))
    with pytest.raises(UsageError, match="do not go together") as caught:
        tokmill.tokenize(corpus, tmp_path / "both", dedup=True, shuffle=8, **options)
    assert "tokmill shuffle" in str(caught.value.next_step)


class _StopError(Exception):
    pass


def _stop(_self: object) -> None:
    raise _StopError


def _named(name: str) -> Callable[[object], None]:
    """What stops in place of a pass, whose name is kept in the state."""

    def stop(_self: object) -> None:
        raise _StopError

    stop.__name__ = name
    return stop


@pytest.mark.parametrize(("option", "value"), [("dedup", True), ("shuffle", 1)])
def test_what_can_be_compared_with_the_source_is_said_where_the_tokenized_output_is_gone(
    option: str, value: object, two: list[Path], tmp_path: Path
) -> None:
    corpus, made = tmp_path / "a.txt", {option: value}
    tokmill.tokenize(corpus, tmp_path / "t", **made)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        tokmill.verify(tmp_path / "t", sources=corpus)
    assert f"tokenize the inputs again without --{option} into another directory" in str(caught.value.next_step)
    assert "made_from" not in str(caught.value.next_step)
    tokmill.dedup(two, tmp_path / "u")
    with pytest.raises(UsageError, match="cannot be compared") as caught:
        tokmill.verify(tmp_path / "u", sources=corpus)
    assert "made_from in its manifest" in str(caught.value.next_step)


@pytest.mark.parametrize("trainer", ["raw", "llmc"])
def test_the_commands_that_a_report_shows_make_the_same_again(trainer: str, two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two[0], tmp_path / "u", against=two[1], near=0.7, shortest=7, format=trainer, offsets=trainer == "raw")
    tokmill.tokenize(tmp_path / "a.txt", tmp_path / "t", dedup=True, format=trainer)
    for name in ("u", "t"):
        manifest = load_manifest(tmp_path / name)
        shown = commands(manifest.content, manifest.made_from, str(tmp_path / f"{name}-again"), manifest.removal)
        assert run(shlex.split(shown.replace("\\\n", " "))[1:]) == 0, shown
        assert files_in(tmp_path / f"{name}-again") == files_in(tmp_path / name)


@pytest.mark.parametrize("command", ["shuffle", "dedup"])
def test_died_between_the_manifest_and_the_end_it_is_complete(
    command: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the work had on the disk must not look like a run to be resumed."""

    def make() -> tokmill.Outcome:
        with tiny(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(bucket_run, "_SCATTERED_BYTES", 300)
            patch.setattr(bucket_run, "_SCATTERED_BYTES_EACH", 1)
            options = {"seed": 1} if command == "shuffle" else {}
            return getattr(tokmill, command)(two, tmp_path / "out", **options)  # type: ignore[no-any-return]

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(directory, "remove_state", die)
        with pytest.raises(Died):
            make()
    assert (tmp_path / "out" / ".tokmill" / "journal").exists()
    assert make().already_complete


def test_where_documents_begin_is_written_too_if_asked_for(two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two, tmp_path / "u", near=0.9, offsets=True)
    assert tokmill.verify(tmp_path / "u").ok
    offsets = np.load(tmp_path / "u" / "train_document_offsets.npy")
    lengths = [len(document) // 2 + 1 for document in documents_of(tmp_path / "u")[0]]
    assert np.diff(offsets).tolist()[: len(lengths)] == lengths[: len(np.diff(offsets))]
    assert len(offsets) in (len(lengths), len(lengths) + 1)
