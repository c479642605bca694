"""Estimates from samples: unbiased windows, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import json
import random
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from support.oracle import gpt2

from tokmill.core.errors import MemoryBudgetError
from tokmill.core.options import PlanOptions
from tokmill.core.protocols import Encoder
from tokmill.core.records import Input, Tokenizer
from tokmill.encode.loading import load_encoder
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.run.estimate import sampler
from tokmill.run.estimate.sampler import Sampler
from tokmill.run.estimate.statistics import Group, SampleRequest, SampleResult, Totals, Window, totals
from tokmill.run.job import NOWHERE, make_job

SEP = "<|endoftext|>"
LANGUAGES = [
    *(
        words.split()
        for words in (
            "the quick brown fox jumps over a lazy dog and then sleeps under its tree until evening comes",
            "собака бежит через большое поле и потом долго спит под старым деревом у реки",
        )
    ),
    ["你好世界", "这是中文，", "日本語です。", "天气很好，", "我们走吧。", "東京都"],
    ["0x3fa9", "9f8e7d6c", "deadbeef,", "1048576", "-0.00271,", "{}", "();"],
    ["def", "return", "self.value", "for i in range(10):\n        ", "import", "None\n\n", "x += 1\n    "],
]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@functools.cache
def encoder() -> Encoder:
    return load_encoder(resolve_tokenizer("gpt2"), "gigatoken")


@pytest.fixture
def small_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid sixteen times as fine, so that small corpora have many windows; and the engine is loaded once."""
    monkeypatch.setattr(sampler, "WINDOW_BYTES", 4096)
    monkeypatch.setattr(sampler, "REACH_BYTES", 8192)
    monkeypatch.setattr(sampler, "_RESOURCES", msgspec.structs.replace(sampler._RESOURCES, batch_bytes=4096))

    def load(_tokenizer: Tokenizer, _engine: str) -> Encoder:
        return encoder()

    monkeypatch.setattr(sampler, "load_encoder", load)


def ask(*paths: Path, sample_bytes: int, decode_s: float = 5.0, **options: object) -> tuple[SampleResult, Totals]:
    job = make_job([str(p) for p in paths], PlanOptions(**options), out=NOWHERE).job  # type: ignore[arg-type]
    question = SampleRequest(job=job, sample_bytes=sample_bytes, decode_s=decode_s, encode_s=60.0)
    answer = Sampler(question).answer()
    assert answer.totals is not None
    return answer, answer.totals


def mixed_text(seed: int, n_bytes: int = 500_000) -> list[str]:
    """Documents of regions in different languages, each as long as chance will have it."""
    rng = random.Random(seed)
    documents, size = [], 0
    while size < n_bytes:
        words = rng.choice(LANGUAGES)
        for _ in range(rng.randrange(1, 30)):
            documents.append(" ".join(rng.choices(words, k=rng.randrange(1, 800))))
            size += len(documents[-1].encode()) + len(SEP)
    return documents


def count_tokens(documents: list[str]) -> int:
    """With an end-of-text id for each."""
    ids, _ = encoder().encode([d.encode() for d in documents])
    return len(ids) + len(documents)


@pytest.mark.usefixtures("small_places")
@pytest.mark.parametrize(("input_format", "n"), [("text", 100), ("jsonl", 50), pytest.param("jsonl", 100, marks=pytest.mark.slow)])
def test_the_interval_holds_the_truth_in_at_least_90_of_100_mixed_corpora(tmp_path: Path, input_format: str, n: int) -> None:
    held = held_documents = 0
    errors = []
    for seed in range(n):
        documents = mixed_text(seed)
        if input_format == "text":
            path = write(tmp_path / "c.txt", SEP.join(documents))
        else:
            path = write(tmp_path / "c.jsonl", "".join(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents)))
        answer, found = ask(path, sample_bytes=200_000)
        assert not answer.is_exact
        truth = count_tokens(documents)
        held += found.tokens.low <= truth <= found.tokens.high
        held_documents += found.documents.low <= len(documents) <= found.documents.high
        errors.append(abs(found.tokens.value - truth) / truth)
        # An interval that holds everything says nothing.
        assert found.tokens.high - found.tokens.low < 0.5 * truth
    assert held >= 0.9 * n
    assert held_documents >= 0.85 * n
    assert sorted(errors)[n // 2] < 0.05


def cover(path: Path) -> list[Window]:
    """All windows of a file."""
    job = make_job([str(path)], out=NOWHERE).job
    one = Sampler(SampleRequest(job=job, sample_bytes=1, decode_s=1, encode_s=1))
    return [one._window(job.content.inputs[0], begin) for begin in range(0, path.stat().st_size, sampler.WINDOW_BYTES)]


@pytest.mark.parametrize("window_bytes", [997, 4096])
def test_windows_of_text_cover_every_byte_once_and_their_tokens_are_nearly_those_of_the_whole(
    tmp_path: Path, window_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "WINDOW_BYTES", window_bytes)
    monkeypatch.setattr(sampler, "REACH_BYTES", 2048)
    documents = [*mixed_text(3, 60_000), "", "x" * 3000, ""]
    data = SEP.join(documents).encode()
    found = cover(write(tmp_path / "c.txt", data))
    assert sum(w.raw_bytes for w in found) == len(data)
    assert sum(w.documents for w in found) == len(documents) - 1
    # Before encoding these are the ends of texts.
    assert sum(w.tokens for w in found) == len([d for d in documents if d])
    texts = [text.decode() for w in found for text in w.texts]
    assert "".join(texts) == "".join(documents)
    n_cuts = len(texts) - len([d for d in documents if d])
    truth = sum(len(gpt2().encode_ordinary(d)) for d in documents)
    assert truth <= sum(len(gpt2().encode_ordinary(t)) for t in texts) <= truth + 2 * n_cuts


def test_windows_of_json_lines_cover_every_byte_once_also_of_lines_longer_than_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "WINDOW_BYTES", 4096)
    monkeypatch.setattr(sampler, "REACH_BYTES", 8192)
    long = 'A story of many words, with "quotes", \\ and ünïcödé, goes on. ' * 1500
    texts = ["short", "", long, "middle " * 300, long[:50_000], "last"]
    data = "".join(json.dumps({"meta": "m", "text": t}) + "\n" for t in texts).encode()[:-1]
    found = cover(write(tmp_path / "c.jsonl", data))
    assert sum(w.raw_bytes for w in found) == len(data)
    assert sum(w.documents for w in found) == len(texts)
    n_text = sum(len(text) for w in found for text in w.texts)
    truth = sum(len(t.encode()) for t in texts)
    assert abs(n_text - truth) < 0.005 * truth
    assert sum(not w.documents for w in found) > 30


@pytest.mark.usefixtures("small_places")
def test_a_corpus_of_long_lines_is_estimated_without_bias(tmp_path: Path) -> None:
    texts = [" ".join(mixed_text(seed, 120_000)) for seed in range(12)]
    path = write(tmp_path / "c.jsonl", "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))
    _, found = ask(path, sample_bytes=300_000)
    truth = count_tokens(texts)
    assert abs(found.tokens.value - truth) < 0.05 * truth
    assert found.tokens.low <= truth <= found.tokens.high


@pytest.mark.usefixtures("small_places")
def test_compressed_records_longer_than_a_window_are_estimated_without_bias(tmp_path: Path) -> None:
    texts = [" ".join(mixed_text(seed, 20_000 + 1000 * seed)) for seed in range(60)]
    lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    _, found = ask(write(tmp_path / "c.jsonl.gz", gzip.compress(lines.encode(), 1)), sample_bytes=600_000)
    truth = count_tokens(texts)
    assert abs(found.tokens.value - truth) < 0.2 * truth
    assert found.tokens.low <= truth <= found.tokens.high < 2 * truth


def test_a_small_corpus_is_counted_to_the_last_token(tmp_path: Path) -> None:
    documents = [*mixed_text(1, 50_000), "", "end"]
    path = write(tmp_path / "a.txt", SEP.join(documents) + SEP)
    lines = write(tmp_path / "b.jsonl", "\n".join(json.dumps({"text": t}) for t in ["one", "", "two"]))
    answer, found = ask(path, lines, sample_bytes=1 << 20)
    truth = sum(len(gpt2().encode_ordinary(d)) + 1 for d in [*documents, "one", "two"] if d)
    assert answer.is_exact
    assert found.tokens.low == found.tokens.value == found.tokens.high == truth
    assert found.documents.value == len(documents) + 1 + 3
    without, _ = ask(path, lines, sample_bytes=1 << 20, eot="none")
    n_eot = len([d for d in documents if d]) + 2
    assert without.totals is not None
    assert without.totals.tokens.value == truth - n_eot


@pytest.mark.parametrize(("keep_empty", "n_tokens"), [(False, 2), (True, 3)])
def test_empty_files_are_documents(tmp_path: Path, keep_empty: bool, n_tokens: int) -> None:
    _, found = ask(write(tmp_path / "a.txt", ""), write(tmp_path / "b.txt", "one"), sample_bytes=1 << 20, keep_empty=keep_empty)
    assert (found.documents.value, found.tokens.value) == (2, n_tokens)


@pytest.mark.usefixtures("small_places")
def test_of_many_small_files_only_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [d for d in mixed_text(7, 900_000) if d]
    for i, document in enumerate(documents):
        write(tmp_path / f"{i:05}.txt", document)
    opened: set[str] = set()
    read = sampler._read

    def noted(source: Input, begin: int, end: int) -> bytes:
        opened.add(source.path)
        return read(source, begin, end)

    monkeypatch.setattr(sampler, "_read", noted)
    _, found = ask(tmp_path, sample_bytes=120_000)
    assert len(opened) < len(documents) / 2
    assert found.documents.value == len(documents)
    truth = count_tokens(documents)
    assert found.tokens.low <= truth <= found.tokens.high
    assert abs(found.tokens.value - truth) < 0.15 * truth


@pytest.mark.usefixtures("small_places")
def test_a_compressed_file_that_can_be_decoded_in_time_is_looked_at_throughout(tmp_path: Path) -> None:
    documents = mixed_text(5, 2_000_000)
    data = SEP.join(documents).encode()
    answer, found = ask(write(tmp_path / "c.txt.gz", gzip.compress(data, 1)), sample_bytes=250_000)
    assert answer.decompressed == {0: (len(data), True)}
    assert answer.notices == []
    assert 20 < found.n_windows < 70
    truth = count_tokens(documents)
    assert found.tokens.low <= truth <= found.tokens.high
    assert abs(found.tokens.value - truth) < 0.15 * truth


@pytest.mark.usefixtures("small_places")
def test_a_compressed_file_that_cannot_is_said_to_be_known_from_its_head_with_a_wider_bar(tmp_path: Path) -> None:
    documents = mixed_text(5, 6_000_000)
    data = SEP.join(documents).encode()
    path = write(tmp_path / "c.txt.gz", gzip.compress(data, 1))
    _, whole = ask(path, sample_bytes=250_000)
    answer, head = ask(path, sample_bytes=250_000, decode_s=0.0)
    assert "only the beginning" in answer.notices[0]
    assert answer.decompressed[0][1] is False
    assert head.tokens.high - head.tokens.low > 1.5 * (whole.tokens.high - whole.tokens.low)
    assert head.tokens.low <= count_tokens(documents) <= head.tokens.high


@pytest.mark.usefixtures("small_places")
@pytest.mark.parametrize("input_format", ["parquet", "arrow"])
def test_a_table_that_cannot_be_read_in_time_is_not_read_to_its_end(tmp_path: Path, input_format: str) -> None:
    documents = mixed_text(5, 3_000_000)
    table = pa.table({"text": documents})
    path = tmp_path / f"c.{input_format}"
    if input_format == "parquet":
        pq.write_table(table, path)
    else:
        feather.write_feather(table, str(path), compression="uncompressed", chunksize=100)
    answer, found = ask(path, sample_bytes=250_000, decode_s=0.0)
    assert "only the beginning" in answer.notices[0]
    assert found.tokens.low <= count_tokens(documents) <= found.tokens.high
    assert abs(found.bytes_in.value - sum(len(d.encode()) for d in documents)) < 0.1 * found.bytes_in.value


@pytest.mark.usefixtures("small_places")
def test_a_parquet_file_in_which_one_language_follows_another_is_sampled_all_over(tmp_path: Path) -> None:
    english, chinese = (
        [" ".join(random.Random(i).choices(words, k=400)) for i in range(2500)] for words in (LANGUAGES[0], LANGUAGES[2])
    )
    pq.write_table(pa.table({"text": english + chinese}), tmp_path / "c.parquet", row_group_size=50)
    answer, found = ask(tmp_path / "c.parquet", sample_bytes=250_000, decode_s=0.0)
    assert "only the beginning" in answer.notices[0]
    assert found.tokens.low <= count_tokens(english + chinese) <= found.tokens.high
    _, found = ask(tmp_path / "c.parquet", sample_bytes=250_000)
    assert found.tokens.low <= count_tokens(english + chinese) <= found.tokens.high
    assert found.bytes_in.low <= sum(len(d.encode()) for d in english + chinese) <= found.bytes_in.high


@pytest.mark.usefixtures("small_places")
@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_bytes_of_other_columns_are_not_taken_for_text(tmp_path: Path, compression: str) -> None:
    documents = mixed_text(5, 3_000_000)
    other = random.Random(0).randbytes(9_000)
    table = pa.table({"text": documents, "picture": [other[i:] + other[:i] for i in range(len(documents))]})
    feather.write_feather(table, str(tmp_path / "c.arrow"), compression=compression, chunksize=100)
    for decode_s in (0.0, 5.0):
        _, found = ask(tmp_path / "c.arrow", sample_bytes=250_000, decode_s=decode_s)
        assert found.tokens.low <= count_tokens(documents) <= found.tokens.high


@pytest.mark.usefixtures("small_places")
def test_bad_records_end_with_no_token_even_if_empty_documents_do(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "some words here" if i % 2 else None}) for i in range(20_000)]
    path = write(tmp_path / "a.jsonl", "\n".join(lines) + "\n")
    _, found = ask(path, sample_bytes=50_000, keep_empty=True, on_error="skip")
    assert found.tokens.low <= 10_000 * 4 <= found.tokens.high


@pytest.mark.usefixtures("small_places")
def test_a_window_that_is_drawn_twice_makes_the_sample_no_larger(tmp_path: Path) -> None:
    documents = mixed_text(7, 600_000)
    for i, document in enumerate(documents):
        write(tmp_path / f"{i:04}.txt", document[:2000])
    _, found = ask(tmp_path, sample_bytes=400_000)
    n_bytes = sum(len(d[:2000].encode()) for d in documents)
    assert found.sampled_bytes < n_bytes
    assert found.tokens.low <= count_tokens([d[:2000] for d in documents]) <= found.tokens.high


def test_nothing_is_said_of_pipes_and_bad_lines_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"body": "two"}\n')
    job = make_job([str(path), "-"], out=NOWHERE).job
    answer = Sampler(SampleRequest(job=job, sample_bytes=1 << 20, decode_s=5.0, encode_s=60.0)).answer()
    assert (answer.totals, answer.is_exact) == (None, False)
    assert "1 bad record " in answer.notices[0]
    assert "tokenize will stop at the first" in answer.notices[0]


def test_windows_of_a_few_bytes_say_nothing_about_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window takes a second here."""
    seconds = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["small", "word " * 300_000, "more"]}), path)
    assert ask(path, sample_bytes=4 << 20)[0].engine_bytes_per_s == 1_500_000


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_what_does_not_fit_ends_the_plan_as_it_ends_the_run(tmp_path: Path, on_error: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["small", "word " * 30_000]}), path)
    job = make_job([str(path)], PlanOptions(on_error=on_error), out=NOWHERE).job
    resources = msgspec.structs.replace(job.resources, budget_bytes=100_000, max_piece_bytes=1000)
    request = SampleRequest(job=msgspec.structs.replace(job, resources=resources), sample_bytes=1 << 20, decode_s=1.0, encode_s=1.0)
    if on_error == "stop":
        with pytest.raises(MemoryBudgetError, match="the text of a row") as caught:
            Sampler(request).answer()
        assert caught.value.where == f"{path}, row 2"
    else:
        assert "1 bad record" in Sampler(request).answer().notices[0]


@pytest.mark.parametrize("n_bytes", [2_600_000, 2_400_000])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_long_line_in_which_a_window_ends_is_followed_to_see_whether_the_run_can_hold_it(
    tmp_path: Path, n_bytes: int, on_error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_PART_BYTES", 300_000)
    lines = [json.dumps({"text": text}) for text in ("before", "word " * (n_bytes // 5), "after")]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    job = make_job([str(path)], PlanOptions(on_error=on_error), out=NOWHERE).job
    resources = msgspec.structs.replace(job.resources, budget_bytes=25_000_000, max_piece_bytes=1000)
    request = SampleRequest(job=msgspec.structs.replace(job, resources=resources), sample_bytes=1 << 20, decode_s=1.0, encode_s=1.0)
    if n_bytes > 2_500_000 and on_error == "stop":
        with pytest.raises(MemoryBudgetError, match="a line is longer than the 2,500,000 bytes") as caught:
            Sampler(request).answer()
        assert str(caught.value.where).startswith(str(path))
    else:
        text_bytes = sum(len(json.loads(line)["text"]) for line in lines) if n_bytes < 2_500_000 else 11
        totals = Sampler(request).answer().totals
        assert totals is not None
        assert totals.bytes_text.value == pytest.approx(text_bytes, rel=0.02, abs=20)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    job = make_job([str(path)], out=NOWHERE).job
    path.unlink()
    question = SampleRequest(job=job, sample_bytes=1000, decode_s=1, encode_s=1)
    with pytest.raises(Exception, match="it is gone") as caught:
        Sampler(question).answer()
    assert str(path) in str(caught.value)


def a_group(windows: list[Window], **changes: object) -> Group:
    fields: dict[str, object] = dict(windows=windows, seen_bytes=1_000_000)
    return Group(**(fields | changes))  # type: ignore[arg-type]


def test_the_estimator_weighs_a_window_by_the_chance_of_drawing_it() -> None:
    # Two kinds of file: of 1,000 bytes with 0.5 tokens a byte, of 100 with 0.1; drawn in proportion to their size.
    windows = [Window(1000, 1000, 1000, 500, 1), Window(100, 100, 100, 10, 1)] * 20
    found = totals([a_group(windows)])
    assert found.tokens.value == 300_000
    assert found.bytes_text.value == 1_000_000
    assert found.documents.value == 5_500


def test_the_interval_shrinks_with_the_sample_and_is_a_point_when_all_was_counted() -> None:
    rng = random.Random(4)
    windows = [Window(100, 100, 100, rng.randrange(20, 40), 1) for _ in range(400)]
    few, many = totals([a_group(windows[:25])]).tokens, totals([a_group(windows)]).tokens
    assert 2.5 < (few.high - few.low) / (many.high - many.low) < 6.5
    whole = totals([a_group(windows, is_whole=True)]).tokens
    assert whole.low == whole.value == whole.high == sum(w.tokens for w in windows)


def test_what_was_not_seen_widens_the_interval_by_a_tenth_at_least() -> None:
    windows = [Window(100, 100, 100, 25, 1)] * 50
    seen = totals([a_group(windows)]).tokens
    half = totals([a_group(windows, seen_bytes=500_000, unseen_bytes=500_000)])
    assert seen.value == half.tokens.value == 250_000
    assert half.tokens.high - half.tokens.value >= 12_500
    assert half.bytes_in.high == 1_050_000


def test_groups_add_up() -> None:
    one = a_group([Window(100, 100, 100, 25, 1)] * 50)
    two = dataclasses.replace(one, seen_bytes=3_000_000, extra_documents=10)
    assert totals([one, two]).tokens.value == 1_000_000
    assert totals([one, two]).documents.value == 40_010
    assert totals([]).tokens.high == 0
