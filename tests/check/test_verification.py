"""`verify` finds every kind of damage, says where, and has no complaint about what is sound."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from support.corpora import write_corpus
from support.failures import flip
from support.oracle import EOT
from support.outputs import reseal, rewrite_manifest, write_output

import tokmill
from tokmill.check import compare
from tokmill.check.repairing.start import repair_job
from tokmill.core.errors import ChangedError, DamageError, MemoryBudgetError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.read.inputs import find_inputs, source_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokmill.core.records import EotPlacement

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = [f"Document {i}. {'Some words, then more. ' * (i % 11)}Ünïcödé 漢字 <|endoftext\n" for i in range(60)]
TEXTS[7] = TEXTS[8] = ""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", TEXTS)


@pytest.fixture
def out(tmp_path: Path, corpus: Path) -> Path:
    write_output(tmp_path / "out", corpus)
    return tmp_path / "out"


def put_id(path: Path, index: int, value: int) -> None:
    ids = np.fromfile(path, np.uint16)
    ids[index] = value
    ids.tofile(path)


@pytest.mark.parametrize("eot", ["after", "before", "none"])
@pytest.mark.parametrize("keep_empty", [False, True])
def test_what_is_sound_is_sound_with_and_without_sources(tmp_path: Path, corpus: Path, eot: EotPlacement, keep_empty: bool) -> None:
    write_output(tmp_path / "o", corpus, eot=eot, keep_empty=keep_empty)
    report = tokmill.verify(tmp_path / "o", sources=str(corpus))
    assert report.problems == []
    assert report.ok
    assert report.sources_compared
    assert report.compared_documents == len(TEXTS) - 2 * (not keep_empty)
    assert report.bytes_checked == sum((tmp_path / "o" / name).stat().st_size for name in ("train.bin", "val.bin"))
    report.raise_for_damage()


def test_one_flipped_bit_anywhere_is_found_and_its_segment_named(out: Path) -> None:
    path = out / "train.bin"
    spans = [s.files["train.bin"].end for s in load_manifest(out).segments if "train.bin" in s.files]
    for at in range(0, path.stat().st_size, 61):
        flip(path, at, at % 8)
        problem = tokmill.verify(out).problems[0]
        assert (problem.file, problem.end_byte) == ("train.bin", next(end for end in spans if end > at))
        assert problem.begin_byte is not None
        assert problem.begin_byte <= at
        flip(path, at, at % 8)
    assert tokmill.verify(out).ok


def cut(out: Path) -> None:
    with (out / "val.bin").open("r+b") as file:
        file.truncate(11)


def lengthen(out: Path) -> None:
    with (out / "val.bin").open("ab") as file:
        file.write(b"\0\0")


def link(out: Path) -> None:
    (out / "val.bin").rename(out.parent / "elsewhere")
    (out / "val.bin").symlink_to(out.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "val.bin, bytes 11 to .*the file is cut"),
        (lengthen, "val.bin.*2 bytes too many"),
        (lambda out: (out / "val.bin").unlink(), "val.bin: the file is missing"),
        (lambda out: (out / "extra.bin").write_bytes(b""), "extra.bin: the manifest does not list"),
        (link, "val.bin: .*link"),
    ],
)
def test_missing_cut_longer_foreign_and_linked_files_are_damage(out: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(out)
    report = tokmill.verify(out)
    assert not report.ok
    with pytest.raises(DamageError, match=words) as caught:
        report.raise_for_damage()
    assert caught.value.exit_code == 10


def merged(top: Path, corpus: Path) -> None:
    write_output(top / "a", corpus)
    tokmill.tokenize(corpus, top / "b", val_fraction=0.1, threads=1)
    tokmill.merge([top / "a", top / "b"], top / "o", allow_other_split=True)


def converted(top: Path, corpus: Path) -> None:
    write_output(top / "a", corpus)
    tokmill.convert(
        top / "a" / "train.bin",
        top / "o",
        format="raw",
        from_format="raw",
        from_dtype="uint16",
        from_eot="after",
        from_tokenizer="gpt2",
    )


@pytest.mark.parametrize("make", [merged, converted])
def test_what_cannot_be_repaired_is_to_be_made_again(make: Callable[[Path, Path], None], tmp_path: Path, corpus: Path) -> None:
    make(tmp_path, corpus)
    flip(tmp_path / "o" / "train.bin", 9, 1)
    with pytest.raises(DamageError) as caught:
        tokmill.verify(tmp_path / "o").raise_for_damage()
    command = "merge" if make is merged else "convert"
    assert caught.value.next_step is not None
    assert "--repair" not in caught.value.next_step
    assert f"made_from in its manifest): tokmill {command} ... --out {tmp_path / 'o'} --fresh" in caught.value.next_step
    with pytest.raises(UsageError, match="cannot be repaired") as refused:
        tokmill.repair(tmp_path / "o")
    assert refused.value.where == str(tmp_path / "o" / "manifest.json")


def test_a_converted_output_of_a_run_can_be_repaired_and_says_so(tmp_path: Path, corpus: Path) -> None:
    write_output(tmp_path / "a", corpus)
    tokmill.convert(tmp_path / "a", tmp_path / "o", format="raw", to_dtype="uint32")
    flip(tmp_path / "o" / "train.bin", 9, 1)
    with pytest.raises(DamageError, match=f"verify {tmp_path / 'o'} --repair.*: tokmill convert ... --out"):
        tokmill.verify(tmp_path / "o").raise_for_damage()
    assert tokmill.repair(tmp_path / "o").ok


def test_hidden_files_and_the_report_are_no_damage(out: Path) -> None:
    (out / ".DS_Store").write_bytes(b"x")
    (out / "report.html").write_bytes(b"x")
    assert tokmill.verify(out).ok


def test_an_id_that_the_tokenizer_does_not_have_is_found_with_its_place(out: Path) -> None:
    put_id(out / "train.bin", 5, 60000)
    reseal(out)
    (problem,) = tokmill.verify(out).problems
    assert (problem.begin_byte, problem.end_byte) == (10, 12)
    assert "60,000" in problem.what


def test_a_forged_document_boundary_is_found_without_sources(out: Path) -> None:
    put_id(out / "train.bin", 5, EOT)
    reseal(out)
    (problem,) = tokmill.verify(out).problems
    assert "end-of-text ids, but" in problem.what


def test_an_edited_manifest_is_damage(out: Path) -> None:
    path = out / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(DamageError, match="checksum"):
        tokmill.verify(out)


def test_sums_of_a_resealed_manifest_are_held_against_the_files(out: Path) -> None:
    manifest = load_manifest(out)
    counts = msgspec.structs.replace(manifest.counts, tokens_train=manifest.counts.tokens_train + 1)
    rewrite_manifest(out, manifest, counts=counts)
    assert "tokens in the files of train" in str(tokmill.verify(out).problems[0])
    rewrite_manifest(out, manifest, segments=manifest.segments[:-1])
    assert any("segments" in problem.what for problem in tokmill.verify(out).problems)


def test_a_directory_without_manifest_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        tokmill.verify(tmp_path)


def test_the_list_of_problems_is_bounded_and_the_rest_is_counted(out: Path) -> None:
    for i in range(150):
        (out / f"x{i}.bin").write_bytes(b"")
    report = tokmill.verify(out)
    assert (len(report.problems), report.n_problems) == (100, 150)
    with pytest.raises(DamageError, match="and 50 more"):
        report.raise_for_damage()


def same_source(out: Path, path: Path, texts: list[str]) -> Path:
    """A corpus that says something else, of which the manifest says that it is the one that was tokenized."""
    write_corpus(path, texts)
    manifest = load_manifest(out)
    status = path.stat()
    source = msgspec.structs.replace(
        manifest.content.inputs[0], path=str(path), size_bytes=status.st_size, mtime_ns=status.st_mtime_ns
    )
    content = msgspec.structs.replace(manifest.content, inputs=(source,))
    rewrite_manifest(out, manifest, content=content, fingerprint=content.fingerprint())
    return path


def other_text(texts: list[str]) -> None:
    texts[30] = texts[30].replace("words", "sword", 1)


def swap(texts: list[str]) -> None:
    texts[20], texts[21] = texts[21], texts[20]


def move_boundary(texts: list[str]) -> None:
    texts[40], texts[41] = texts[40][:-1], texts[40][-1] + texts[41]


def one_more(texts: list[str]) -> None:
    texts.append("one document more")


def one_less(texts: list[str]) -> None:
    texts.pop()


@pytest.mark.parametrize("eot", ["after", "before", "none"])
@pytest.mark.parametrize("change", [other_text, swap, one_more, one_less])
def test_any_other_corpus_is_found_out(tmp_path: Path, out: Path, change: Callable[[list[str]], None], eot: EotPlacement) -> None:
    write_output(out, tmp_path / "corpus.txt", eot=eot, val_fraction=0.0)
    texts = list(TEXTS)
    change(texts)
    report = tokmill.verify(out, sources=str(same_source(out, tmp_path / "other.txt", texts)))
    assert report.n_problems == 1
    assert report.problems[0].file == "train.bin"
    with pytest.raises(DamageError, match="path, size and time of the sources are those of the run"):
        report.raise_for_damage()


def other_file(corpus: Path) -> list[Path]:
    return [write_corpus(corpus.with_name("other.txt"), TEXTS[:30])]


def modified(corpus: Path) -> list[Path]:
    write_corpus(corpus, [*TEXTS[:-1], TEXTS[-1][::-1]])
    os.utime(corpus, ns=(1, 1))
    return [corpus]


def one_too_many(corpus: Path) -> list[Path]:
    return [corpus, write_corpus(corpus.with_name("more.txt"), ["more"])]


def not_text(corpus: Path) -> list[Path]:
    corpus.with_name("latin.txt").write_bytes("é".encode("latin-1"))
    return [corpus.with_name("latin.txt")]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (other_file, r"corpus.txt \(9,521 bytes\) was tokenized and is not given\n.*other.txt .* is given and was not tokenized"),
        (modified, "corpus.txt was modified"),
        (one_too_many, "more.txt .4 bytes. is given and was not tokenized"),
        (not_text, "latin.txt .1 byte. is given and was not tokenized"),
    ],
)
def test_other_sources_are_named_and_are_no_damage(
    out: Path, corpus: Path, sources: Callable[[Path], list[Path]], words: str
) -> None:
    with pytest.raises(ChangedError, match=words) as caught:
        tokmill.verify(out, sources=[str(path) for path in sources(corpus)])
    assert "the output itself is as it was written" in caught.value.what
    again = f"tokmill verify {out} --source {corpus}"
    # The command that failed is no help when it is the file that has changed.
    put_back = f"put back what was tokenized, with its size and time, then: {again}; or make the output again with --fresh"
    assert caught.value.next_step == (put_back if sources is modified else again)


def test_another_order_and_a_forgotten_pattern_are_named(tmp_path: Path) -> None:
    names = [write_corpus(tmp_path / "in" / f"{i}.txt", [f"text {i}"]) for i in range(4)]
    more = [write_corpus(tmp_path / "in" / f"{i}.log", [f"log {i}"]) for i in range(4)]
    tokmill.tokenize(str(tmp_path / "in"), str(tmp_path / "o"), glob="*")
    assert tokmill.verify(tmp_path / "o", sources=str(tmp_path / "in"), glob="*").sources_compared
    with pytest.raises(ChangedError, match=r"0.log \(5 bytes\) was tokenized and is not given") as caught:
        tokmill.verify(tmp_path / "o", sources=str(tmp_path / "in"))
    assert "--glob" in str(caught.value.next_step)
    with pytest.raises(ChangedError, match="their order or number is not"):
        tokmill.verify(tmp_path / "o", sources=[str(path) for path in names + more])


def test_a_forgotten_input_format_is_named_with_what_to_type(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"text": "one"}\n{"text": "two"}\n')
    tokmill.tokenize(str(lines), str(tmp_path / "o"), input_format="jsonl")
    with pytest.raises(ChangedError, match="was read as jsonl/none, is now text/none") as caught:
        tokmill.verify(tmp_path / "o", sources=str(lines))
    assert str(caught.value.next_step).endswith(" --input-format jsonl")


def test_a_copy_of_the_corpus_elsewhere_is_as_good(tmp_path: Path, out: Path) -> None:
    copy = write_corpus(tmp_path / "copy" / "c.txt", TEXTS)
    os.utime(copy, (1, 1))
    assert tokmill.verify(out, sources=str(copy)).ok


@pytest.mark.parametrize("eot", ["after", "before"])
def test_a_boundary_that_moved_is_found_out(tmp_path: Path, out: Path, eot: EotPlacement) -> None:
    write_output(out, tmp_path / "corpus.txt", eot=eot, val_fraction=0.0)
    texts = list(TEXTS)
    move_boundary(texts)
    report = tokmill.verify(out, sources=str(same_source(out, tmp_path / "other.txt", texts)))
    assert "end-of-text id is elsewhere" in report.problems[0].what


def test_a_difference_is_named_by_document_byte_and_source(tmp_path: Path, out: Path) -> None:
    write_output(out, tmp_path / "corpus.txt", val_fraction=0.0)
    texts = list(TEXTS)
    other_text(texts)
    (problem,) = tokmill.verify(out, sources=str(same_source(out, tmp_path / "other.txt", texts))).problems
    at = texts[30].encode().index(b"sword")
    # Two documents before it are empty and were not written.
    assert f"document 28, byte {at:,} of its text" in problem.what
    assert "other.txt, document 31" in problem.what
    ids = np.fromfile(out / "train.bin", np.uint16)
    assert problem.begin_byte is not None
    before = ids[: problem.begin_byte // 2]
    assert np.count_nonzero(before == EOT) == 28
    with tokmill.open(out) as data:
        start = int(np.flatnonzero(before == EOT)[-1]) + 1
        assert len(data.decode_bytes(before[start:])) <= at < len(data.decode_bytes(ids[start : problem.begin_byte // 2 + 1]))


def test_blocks_of_any_size_compare_the_same(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "o", corpus, keep_empty=True, eot="before")
    for block in (1, 2, 3, 7, 64):
        monkeypatch.setattr(compare, "_BLOCK_TOKENS", block)
        report = tokmill.verify(tmp_path / "o", sources=str(corpus))
        assert report.problems == []
        assert report.compared_documents == len(TEXTS)


def test_a_document_on_the_wrong_side_is_found_out(tmp_path: Path, corpus: Path) -> None:
    manifest = write_output(tmp_path / "o", corpus, val_fraction=0.0)
    content = msgspec.structs.replace(manifest.content, val_fraction=0.3)
    rewrite_manifest(tmp_path / "o", manifest, content=content, fingerprint=content.fingerprint())
    assert tokmill.verify(tmp_path / "o").ok
    assert not tokmill.verify(tmp_path / "o", sources=str(corpus)).ok


def test_sources_are_read_within_the_memory_given(out: Path, corpus: Path) -> None:
    assert tokmill.verify(out, sources=str(corpus), memory="512MiB").ok
    with pytest.raises(MemoryBudgetError):
        tokmill.verify(out, sources=str(corpus), memory="1MiB")


def test_sources_that_are_not_found_are_told_the_options_that_the_run_needed(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for name in "ab":
        (corpus / f"{name}.log").write_text('{"text": "some words"}\n')
    options: dict[str, Any] = {"glob": "*.log", "input_format": "jsonl"}
    tokmill.tokenize(corpus, out, val_fraction=0.0, **options)
    moved = corpus.rename(tmp_path / "moved")
    with pytest.raises(UsageError) as caught:
        tokmill.verify(out, sources=[str(moved)])
    assert caught.value.next_step == "the same command with --glob '*.log' --input-format jsonl"
    with pytest.raises(UsageError) as caught:
        tokmill.repair(out, sources=[str(moved)])
    assert caught.value.next_step == "the same command with --glob '*.log'"
    assert tokmill.verify(out, sources=[str(moved)], **options).ok
    (moved / "c.log").write_text("")
    with pytest.raises(ChangedError, match="3 inputs found; the output was made from 2") as changed:
        tokmill.repair(out, sources=[str(moved)], glob="*.log")
    assert f"tokmill verify {out} --repair" in str(changed.value)


@pytest.mark.parametrize(
    ("names", "input_format", "options"),
    [
        (["a.txt", "b.jsonl.gz"], None, []),
        (["a.txt", "b.log"], "text", ["--glob '*.log'", "--glob '*.txt'"]),
        (["a.dat"], "jsonl", ["--glob '*.dat'", "--input-format jsonl"]),
        (["a.txt"], "jsonl", ["--input-format jsonl"]),
        (["README"], "text", []),
    ],
)
def test_of_the_options_for_sources_those_are_named_that_their_names_need(
    tmp_path: Path, names: list[str], input_format: str | None, options: list[str]
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = find_inputs([str(tmp_path / name) for name in names], glob=None, input_format=input_format)
    assert source_options(found.inputs) == options


def test_an_input_that_a_merged_output_has_twice_is_compared_twice(tmp_path: Path) -> None:
    paths = [write_corpus(tmp_path / f"{name}.txt", [f"text of {name}"]) for name in "abc"]
    for path, name in zip(paths, ("one", "two"), strict=False):
        write_output(tmp_path / name, path)
    tokmill.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    tokmill.merge([tmp_path / "both", tmp_path / "one"], out := tmp_path / "out")
    for sources in (paths[:2], [*paths[:2], paths[0]]):
        assert tokmill.verify(out, sources=[str(path) for path in sources]).compared_documents == 3
    with pytest.raises(ChangedError, match=r"c\.txt"):
        tokmill.verify(out, sources=[str(path) for path in paths])
    moved = [str(path.rename(tmp_path / path.name.upper())) for path in paths[:2]]
    job = repair_job(out, moved, glob=None, memory=None, threads=None)
    assert [each.path for each in job.content.inputs] == [moved[0], moved[1], moved[0]]


def test_the_command_that_repairs_can_be_pasted(tmp_path: Path) -> None:
    write_output(out := tmp_path / "my tokens", write_corpus(tmp_path / "corpus.txt", ["one", "two"]), val_fraction=0.0)
    flip(out / "train.bin", 1)
    with pytest.raises(DamageError) as caught:
        tokmill.verify(out).raise_for_damage()
    assert f"tokmill verify '{out}' --repair" in str(caught.value)
    assert f"--out '{out}' --fresh" in str(caught.value)


def test_without_paths_the_inputs_that_the_manifest_names_are_compared(tmp_path: Path) -> None:
    corpus = tmp_path / "in"
    for name, text in (("a.log", '{"body": "one"}\n{"body": "two"}\n'), ("b[1].log", '{"body": "three"}\n')):
        corpus.mkdir(exist_ok=True)
        (corpus / name).write_text(text)
    out = tmp_path / "out"
    tokmill.tokenize(corpus, out, glob="*.log", input_format="jsonl", text_key="body", val_fraction=0.0)
    assert tokmill.verify(out, sources=True).compared_documents == 3
    os.utime(corpus / "a.log", (1, 1))
    assert tokmill.verify(out, sources=True).compared_documents == 3, "only the text counts"
    (corpus / "a.log").write_text('{"body": "one"}\n{"body": "TWO"}\n')
    with pytest.raises(ChangedError, match=r"a\.log was modified"):
        tokmill.verify(out, sources=True)
    moved = corpus.rename(tmp_path / "moved")
    with pytest.raises(ChangedError, match="the inputs are not where they were") as caught:
        tokmill.verify(out, sources=True)
    assert str(corpus / "b[1].log") in str(caught.value.where)
    moved.rename(corpus)
    assert tokmill.repair(out, sources=True).repaired == []


def test_without_paths_an_input_that_a_merged_output_has_twice_is_compared_twice(tmp_path: Path, out: Path) -> None:
    tokmill.merge([out, out], tmp_path / "both")
    assert tokmill.verify(tmp_path / "both", sources=True).compared_documents == 2 * (len(TEXTS) - 2)


@pytest.mark.parametrize("source", [{"path": "-", "size_bytes": None}, {"path": "/dev/fd/63", "size_bytes": None}])
def test_a_pipe_is_not_there_to_be_compared_without_paths(out: Path, source: dict[str, Any]) -> None:
    manifest = load_manifest(out)
    content = msgspec.structs.replace(manifest.content, inputs=(msgspec.structs.replace(manifest.content.inputs[0], **source),))
    rewrite_manifest(out, manifest, content=content, fingerprint=content.fingerprint())
    with pytest.raises(UsageError, match="made from a pipe") as caught:
        tokmill.verify(out, sources=True)
    assert str(caught.value.next_step).endswith("--source -")
