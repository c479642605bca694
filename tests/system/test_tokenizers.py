"""A run with any kind of tokenizer writes what the reference says, and is verified, opened, planned and resumed like any other."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.outputs import rewrite_manifest
from support.records import a_content, a_tokenizer
from support.small_tokenizers import MAKERS, TEXTS, path_of, rewritten, true_ids, truth

import tokmill
from tokmill.cli import app
from tokmill.core.errors import ChangedError, MemoryBudgetError, UsageError
from tokmill.core.events import AnyEvent, Notice
from tokmill.core.manifest import encode_manifest, load_manifest
from tokmill.dataset.token_files import files_of
from tokmill.encode.loading import cutter_of, is_lossless
from tokmill.encode.resolve import resolve_tokenizer

pytestmark = pytest.mark.usefixtures("workers_in_process")

OFTEN = ("llama3", "qwen2+nfc", "sentencepiece", "unigram")
"""One of each way: plain, with a normalizer and added tokens, without cuts, and of no family."""
everyone = pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in MAKERS])


def documents() -> list[str]:
    draw = random.Random(1)
    # Where special tokens are entries of the vocabulary, the reference takes them from text even if told not to.
    words = [word for text in TEXTS for word in text.replace("<s> </s>", "").split(" ") if word]
    return [" ".join(draw.choices(words, k=draw.randint(1, 120))) for _ in range(150)]


def corpus(directory: Path) -> Path:
    path = directory / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    return path


def eot_of(name: str) -> str | None:
    return "</s>" if name == "wordpiece" else None


def run(name: str, source: Path, out: Path, **options: object) -> tokmill.Summary:
    given = dict(tokenizer=str(path_of(name)), eot_token=eot_of(name), val_fraction=0.0) | options
    return tokmill.tokenize(source, out, **given)  # type: ignore[arg-type]


@everyone
def test_a_run_writes_the_ids_of_the_reference(name: str, tmp_path: Path) -> None:
    summary = run(name, corpus(tmp_path), tmp_path / "out", threads=2)
    eot = load_manifest(tmp_path / "out").content.tokenizer.eot_id
    expected = [i for text in documents() for i in [*true_ids(name, text), eot]]
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == expected
    assert summary.audited_documents or name in ("unigram", "wordpiece")
    report = tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl"))
    assert (report.problems, report.compared_documents) == ([], 150)
    with tokmill.open(tmp_path / "out") as data:
        ids = data.document("train", 7)
        assert data.decode(ids) == truth(name).decode(ids.tolist(), skip_special_tokens=False)
    assert app.run(["inspect", str(tmp_path / "out")]) == 0


@everyone
def test_a_file_without_separator_has_the_tokens_of_the_whole_text(name: str, tmp_path: Path) -> None:
    text = "".join(TEXTS).replace("<s> </s>", "") * (
        9000 if cutter_of(resolve_tokenizer(str(path_of(name)), eot_of(name))) else 500
    )
    (tmp_path / "book.txt").write_text(text)
    run(name, tmp_path / "book.txt", tmp_path / "out", separator="none", eot="none")
    ids = np.fromfile(tmp_path / "out" / "train.bin", np.uint16)
    if len(text) < 500_000:
        assert ids.tolist() == true_ids(name, text)
        return
    # Three million characters are too many for the reference: the text repeats itself, and so do its ids.
    period = true_ids(name, text[: len(text) // 1000])
    short = np.fromfile(tmp_path / "out" / "train.bin", np.uint16, len(period) - 50)
    assert short.tolist() == period[:-50]
    with tokmill.open(tmp_path / "out") as data:
        assert not is_lossless(load_manifest(tmp_path / "out").content.tokenizer) or data.decode(data.train[:]) == text


@pytest.mark.parametrize("name", ["qwen2+nfc", "sentencepiece", "unigram"])
def test_verify_finds_ids_that_are_not_those_of_the_source(name: str, tmp_path: Path) -> None:
    """Of tokenizers that do not give the text back; digests are made anew, so that only the comparison can speak."""
    from support.outputs import reseal

    run(name, corpus(tmp_path), tmp_path / "out", val_fraction=0.3)
    for side in ("train", "val"):
        path = tmp_path / "out" / f"{side}.bin"
        ids = np.fromfile(path, np.uint16)
        for at in (0, len(ids) // 2, len(ids) - 2):
            changed = ids.copy()
            changed[at] = 100 + (ids[at] == 100)
            changed.tofile(path)
            reseal(tmp_path / "out")
            problems = tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl")).problems
            assert [(p.file, p.begin_byte, p.end_byte) for p in problems] == [(path.name, 2 * at, 2 * at + 2)]
            assert "the ids differ from those of the source" in problems[0].what
        ids.tofile(path)
        reseal(tmp_path / "out")


@pytest.mark.parametrize("name", ["gpt2", "unigram"])
@pytest.mark.parametrize("format_", ["llmc", "datatrove", "olmo", "litdata"])
def test_shards_of_every_format_are_compared_with_the_source(name: str, format_: str, tmp_path: Path) -> None:
    from support.outputs import reseal

    run(name, corpus(tmp_path), tmp_path / "out", val_fraction=0.3, format=format_, shard_tokens=500)
    report = tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl"))
    assert (report.problems, report.compared_documents) == ([], 150)
    manifest = load_manifest(tmp_path / "out")
    shards = list(files_of(tmp_path / "out", manifest)["train"])
    assert len(shards) > 2
    path, at = shards[1].path, shards[1].header_bytes + 20
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    reseal(tmp_path / "out")
    (problem,) = tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl")).problems
    assert (problem.file, problem.begin_byte) == (str(path.relative_to(tmp_path / "out")), at)


@pytest.mark.parametrize("name", ["gpt2", "unigram"])
def test_a_side_without_a_file_is_compared_too(name: str, tmp_path: Path) -> None:
    """The manifest is changed so that all documents belong where there are none."""
    run(name, corpus(tmp_path), tmp_path / "out", format="llmc")
    path = tmp_path / "out" / "manifest.json"
    manifest = load_manifest(tmp_path / "out")
    content = msgspec.structs.replace(manifest.content, val_fraction=0.999999)
    path.write_bytes(encode_manifest(msgspec.structs.replace(manifest, content=content, fingerprint=content.fingerprint())))
    (problem,) = tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl")).problems
    assert (problem.file, problem.begin_byte) == ("val", 0)


@pytest.mark.parametrize("name", ["qwen2+nfc", "sentencepiece", "unigram"])
def test_a_damaged_output_is_repaired_with_its_tokenizer(name: str, tmp_path: Path) -> None:
    run(name, corpus(tmp_path), tmp_path / "out", val_fraction=0.3)
    path = tmp_path / "out" / "train.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert not tokmill.verify(tmp_path / "out").ok
    report = tokmill.repair(tmp_path / "out")
    assert (report.ok, [problem.file for problem in report.repaired or []]) == (True, ["train.bin"])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["qwen2+nfc", "sentencepiece", "unigram"])
def test_documents_of_a_text_file_have_the_ids_of_the_reference(name: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("<|endoftext|>".join([*documents(), "", "last"]))
    run(name, tmp_path / "corpus.txt", tmp_path / "out")
    eot = load_manifest(tmp_path / "out").content.tokenizer.eot_id
    expected = [i for text in [*documents(), "last"] for i in [*true_ids(name, text), eot]]
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == expected
    assert tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.txt")).ok


def test_verify_finds_sources_that_end_too_early_or_go_on(tmp_path: Path) -> None:
    source = corpus(tmp_path)
    run("unigram", source, tmp_path / "out")
    lines = source.read_text().splitlines(keepends=True)
    other = tmp_path / "other.jsonl"
    for kept in (lines[:-1], [*lines, '{"text": "more"}\n']):
        other.write_text("".join(kept))
        with pytest.raises(ChangedError, match="these sources are not those that were tokenized"):
            tokmill.verify(tmp_path / "out", sources=str(other))


@pytest.mark.parametrize("name", ["sentencepiece", "unigram"])
def test_a_document_that_cannot_be_cut_and_is_too_large_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("word " * 8_000_000)
    with pytest.raises(MemoryBudgetError, match="no document can be cut") as caught:
        run(name, tmp_path / "book.txt", tmp_path / "out", separator="none", memory="512MiB", threads=1)
    error = caught.value
    assert "book.txt" in (error.where or "")
    assert error.allowed
    assert error.next_step


def test_ids_beyond_65535_are_uint32(tmp_path: Path) -> None:
    spec = json.loads(path_of("gpt2").read_text())
    n = len(spec["model"]["vocab"])
    more = {f"\u0120\u0120{i}": n + i for i in range(70_000)}
    added = [{"id": n + 70_000, "content": "<|endoftext|>", "special": True}]
    path = rewritten("gpt2", tmp_path, model={"vocab": spec["model"]["vocab"] | more}, added_tokens=added)
    assert tokmill.tokenize(corpus(tmp_path), tmp_path / "out", tokenizer=str(path)).dtype == "uint32"
    assert tokmill.verify(tmp_path / "out").ok
    with pytest.raises(UsageError, match="do not fit into uint16"):
        tokmill.tokenize(corpus(tmp_path), tmp_path / "out", tokenizer=str(path), dtype="uint16", fresh=True)


def test_a_notice_says_that_the_reference_is_used_and_how_much_slower(tmp_path: Path) -> None:
    heard: list[str] = []

    class Ear:
        def on_event(self, event: AnyEvent) -> None:
            heard.extend([event.text] if isinstance(event, Notice) else [])

    run("unigram", corpus(tmp_path), tmp_path / "out", observers=[Ear()])
    assert any("Hugging Face tokenizers is used instead: exact, some 100 times slower" in text for text in heard)
    heard.clear()
    run("llama3", corpus(tmp_path), tmp_path / "other", observers=[Ear()])
    assert not any("instead" in text for text in heard)


@pytest.mark.parametrize("engine", ["gigatoken", "tokenizers"])
def test_both_engines_write_the_same(engine: str, tmp_path: Path) -> None:
    run("qwen2+nfc", corpus(tmp_path), tmp_path / "out", engine=engine)
    expected = [i for text in documents() for i in [*true_ids("qwen2+nfc", text), truth("qwen2+nfc").token_to_id("<|endoftext|>")]]
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == expected


def test_the_plan_is_made_with_the_tokenizer(tmp_path: Path) -> None:
    plan = tokmill.plan(corpus(tmp_path), tokenizer=str(path_of("sentencepiece")))
    assert plan.totals is not None
    assert plan.totals.tokens.value == sum(len(true_ids("sentencepiece", text)) + 1 for text in documents())


def test_another_tokenizer_is_another_output(tmp_path: Path) -> None:
    run("llama3", corpus(tmp_path), tmp_path / "out")
    with pytest.raises(ChangedError, match="--tokenizer was"):
        run("qwen2+nfc", tmp_path / "corpus.jsonl", tmp_path / "out")


def test_the_file_is_the_tokenizer_wherever_it_lies(tmp_path: Path) -> None:
    path = rewritten("llama3", tmp_path)
    tokmill.tokenize(corpus(tmp_path), tmp_path / "out", tokenizer=str(path))
    moved = path.rename(tmp_path / "elsewhere.json")
    assert tokmill.tokenize(tmp_path / "corpus.jsonl", tmp_path / "out", tokenizer=str(moved)).already_complete
    with pytest.raises(UsageError, match="cannot read the tokenizer's file"):
        tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl"))
    manifest = load_manifest(tmp_path / "out")
    there = msgspec.structs.replace(manifest.content.tokenizer, name=str(moved), path=str(moved))
    rewrite_manifest(tmp_path / "out", manifest, content=msgspec.structs.replace(manifest.content, tokenizer=there))
    assert tokmill.verify(tmp_path / "out", sources=str(tmp_path / "corpus.jsonl")).ok


def test_outputs_of_published_encodings_keep_their_fingerprint() -> None:
    """Of 0.1.0: an output that was begun with it is resumed."""
    assert a_content(tokenizer=a_tokenizer()).fingerprint() == "ca17fcd3cfb7301ed5af85497fc86828"


def test_a_begin_of_text_id_stands_before_each_document_where_it_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("sentencepiece", corpus(tmp_path), out, eot_token="<s>", eot="before")
    begin = truth("sentencepiece").token_to_id("<s>")
    wanted = [[begin, *true_ids("sentencepiece", text)] for text in documents()]
    with tokmill.open(out) as data:
        assert [data.document("train", i).tolist() for i in (0, 1, 149)] == [wanted[i][1:] for i in (0, 1, 149)]
        assert np.asarray(data.train).tolist() == [i for ids in wanted for i in ids]
    assert tokmill.verify(out, sources=True).ok


@pytest.mark.parametrize("name", ["sentencepiece", "unigram"])
def test_where_validation_and_the_output_end_is_compared_with_the_sources_of_any_tokenizer(name: str, tmp_path: Path) -> None:
    run(name, corpus(tmp_path), tmp_path / "out", max_tokens=3000, val_tokens=300, val_fraction=0.3)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.cut_short is True
    assert 300 <= manifest.counts.tokens_val < 3000 <= manifest.counts.tokens_train + manifest.counts.tokens_val
    report = tokmill.verify(tmp_path / "out", sources=True)
    assert (report.ok, report.compared_documents) == (True, manifest.counts.documents_train + manifest.counts.documents_val)
