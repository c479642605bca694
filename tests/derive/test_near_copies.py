"""`dedup --near`: what goes is what a plain program in memory says, and pairs are found as the curve says."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from support.commands import command
from support.corpora import some_documents
from support.deduplicated import audit_of, documents_of, near, ngrams, signature, tiny
from support.failures import Died, dying_at, full_from
from support.faults import mounted, needs
from support.oracle import EOT
from support.outputs import files_in, written
from support.runs import tokenize_documents

import tokmill
from tokmill.core.deduplication import NearRule
from tokmill.core.errors import DiskFullError, MemoryBudgetError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.derive.deduplication import comparison, marking, signatures
from tokmill.derive.deduplication.candidates import Clusters, FlatClusters
from tokmill.derive.deduplication.gathering import Gathering
from tokmill.derive.deduplication.scratch import Records
from tokmill.derive.deduplication.signatures import Signer

QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
WORDS = st.lists(st.sampled_from(["aa", "bb", "cc", "dd", " ee"]), max_size=14).map(lambda words: "\n".join(words).encode())
DOCUMENTS = st.lists(WORDS, min_size=1, max_size=25)


def ids_of(documents: Sequence[bytes]) -> list[list[int]]:
    return [np.frombuffer(each, np.uint16).tolist() for each in documents]


@settings(max_examples=15, suppress_health_check=QUICK, deadline=None)
@given(
    first=DOCUMENTS,
    second=DOCUMENTS,
    threshold=st.sampled_from([0.01, 0.5, 0.8, 1.0]),
    n=st.integers(1, 4),
    shape=st.sampled_from([(3, 1), (4, 2), (20, 1)]),
    shortest=st.sampled_from([0, 6]),
    measure=st.sampled_from(["jaccard", "containment"]),
    bucket_bytes=st.sampled_from([3000, 1 << 20]),
)
def test_what_goes_is_what_a_plain_program_says(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[bytes],
    second: list[bytes],
    threshold: float,
    n: int,
    shape: tuple[int, int],
    shortest: int,
    measure: str,
    bucket_bytes: int,
) -> None:
    base = tmp_path_factory.mktemp("near")
    for name, documents in (("a", first), ("b", second)):
        tokenize_documents(base / name, documents, keep_empty=True, val_fraction=0.3)
    bands, rows = shape
    options: dict[str, Any] = {"ngram": n, "bands": bands, "rows": rows, "shortest": shortest, "measure": measure}
    with tiny(bucket_bytes, 1000):
        outcome = tokmill.dedup([base / "a", base / "b"], base / "u", near=threshold, **options)
    sides = [documents_of(base / name) for name in "ab"]
    val, train = [*sides[0][1], *sides[1][1]], [*sides[0][0], *sides[1][0]]
    # Copies go first.
    seen, left = {document: number - len(val) for number, document in reversed([*enumerate(val)])}, []
    for number, document in enumerate(train):
        if seen.setdefault(document, number) == number:
            left.append(number)
    gone = near(ids_of([*val, *(train[i] for i in left)]), len(val), threshold, n, bands, rows, shortest, measure)
    wanted = {
        left[number - len(val)]: (other if other < len(val) else len(val) + left[other - len(val)], round(shared / of, 4))
        for number, (other, shared, of) in gone.items()
    }
    # A copy of a document that went as a near copy is one of the same document.
    wanted |= {number: wanted[seen[document]] for number, document in enumerate(train) if seen[document] in wanted}
    lines = [line for line in audit_of(base / "u") if line["kind"] == "near"]
    begins = {(0, "val"): 0, (1, "val"): len(sides[0][1]), (0, "train"): len(val), (1, "train"): len(val) + len(sides[0][0])}
    found = {
        begins[line["source"], "train"] + line["document"] - len(val): (
            begins[line["kept_source"], line["kept_side"]] + line["kept_document"],
            line["similarity"],
        )
        for line in lines
    }
    assert found == wanted
    assert documents_of(base / "u") == ([train[i] for i in left if i not in wanted], val)
    assert outcome.removal is not None
    assert outcome.removal.unexamined == 0
    assert outcome.removal.compared_pairs >= len(gone)
    assert sum(each.near_copies for each in outcome.removal.sources) == len(wanted)
    assert sum(each.copies for each in outcome.removal.sources) == len(train) - len({*left} | {*wanted})
    assert tokmill.verify(base / "u").ok


def changed(document: bytes, every: int, by: bytes = b"zq") -> bytes:
    """A document in which every n-th word is another one."""
    words = document.split(b" ")
    words[::every] = [by] * len(words[::every])
    return b" ".join(words)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Outputs with copies and near copies of their own documents and of each other's."""
    documents = some_documents(30, 400, 1)
    tokenize_documents(tmp_path / "a", [*documents, *(changed(each, 60) for each in documents[:10])], val_fraction=0.1)
    more = [*documents[5:15], *(changed(each, 45) for each in documents[10:25]), *some_documents(9, 400, 2)]
    tokenize_documents(tmp_path / "b", more, val_fraction=0.1)
    return [tmp_path / "a", tmp_path / "b"]


def test_died_at_any_call_it_goes_on_to_the_same_bytes(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path) -> None:
        with tiny(bucket_bytes=20_000, block_tokens=700, commit_bytes=9000):
            tokmill.dedup(two, out, near=0.6, shortest=5)

    make(tmp_path / "whole")
    assert {line["kind"] for line in audit_of(tmp_path / "whole")} == {"copy", "near"}
    n = 0
    for n in itertools.count(1, 37):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                make(out)
        if calls() < n:
            break
        make(out)
        assert files_in(out) == files_in(tmp_path / "whole"), n
        assert load_manifest(out).removal == load_manifest(tmp_path / "whole").removal, n
    assert n > 100


def test_a_disk_that_is_full_in_any_pass_is_one_error_and_more_room_resumes(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(out: Path) -> None:
        with tiny(bucket_bytes=20_000, block_tokens=700, commit_bytes=9000):
            tokmill.dedup(two, out, near=0.6, shortest=5)

    make(tmp_path / "whole")
    n = 0
    for n in itertools.count(1, 31):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = full_from(n, patch)
            with contextlib.suppress(DiskFullError):
                make(out)
        if calls() < n:
            break
        assert not (out / "manifest.json").exists(), n
        make(out)
        assert files_in(out) == files_in(tmp_path / "whole"), n
    assert n > 60


@pytest.mark.parametrize("options", [["--compare"], ["--near", "0.5", "--ngram", "1", "--shortest", "0"]], ids=["compare", "near"])
def test_many_tiny_documents_stay_within_the_least_memory(options: list[str], tmp_path: Path) -> None:
    """In a fresh process. With every tenth document a copy of another."""
    ids = np.random.default_rng(0).integers(0, EOT, 600_000, dtype=np.uint16)
    ids[2::3] = EOT
    ids[::30], ids[1::30] = 7, np.arange(20_000) % 500
    ids.tofile(tmp_path / "ids.bin")
    given: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", **given)
    done = command("dedup", tmp_path / "a", "--out", tmp_path / "u", "--memory", "128MiB", "--json", *options)
    made = json.loads(done.stdout)
    assert made["peak_rss_bytes"] < 128 << 20, done.stderr
    # Some are copies of a near copy.
    (source,) = made["removal"]["sources"]
    assert source["copies"] + source.get("near_copies", 0) >= 19_500
    assert source["copies"] >= 19_000


@pytest.mark.parametrize(
    ("n", "tail", "options"),
    [
        (1_000_000, 0, []),
        pytest.param(1_000_000, 0, ["--compare"], marks=pytest.mark.slow),
        (60_000, 3, ["--near", "0.5", "--ngram", "1", "--shortest", "0", "--bands", "20", "--rows", "1"]),
        pytest.param(300_000, 3, ["--near", "0.5", "--ngram", "1", "--shortest", "0"], marks=pytest.mark.slow),
    ],
    ids=["digests", "compared", "near", "very_many_near"],
)
def test_many_documents_that_are_alike_stay_within_the_least_memory(n: int, tail: int, options: list[str], tmp_path: Path) -> None:
    """In a fresh process. All are the same but for the ids at their ends; with --near some share less than that, and stay."""
    ids = np.full((n, 17 + tail), 7, np.uint16)
    ids[:, :16] = np.arange(1, 17)
    rng = np.random.default_rng(0)
    ids[:, 16 : 16 + tail] = rng.integers(100, 40_000, (n, tail))
    n_other = n // 500 if tail else 0
    ids[:n_other, 5:-1] = rng.integers(100, 40_000, (n_other, 11 + tail))
    ids[:, -1] = EOT
    ids.tofile(tmp_path / "ids.bin")
    given: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", **given)
    done = command("dedup", tmp_path / "a", "--out", tmp_path / "u", "--memory", "128MiB", "--json", *options)
    made = json.loads(done.stdout)
    assert made["peak_rss_bytes"] < 128 << 20, done.stderr
    (source,) = made["removal"]["sources"]
    # The usual bands overlook some of these pairs.
    assert (0.97 if n == 300_000 else 1) * (n - n_other - 1) <= source["near_copies" if tail else "copies"] < n - n_other


def test_a_group_that_does_not_fit_is_refused_and_more_memory_goes_on(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"near": 0.9, "shortest": 5, "bands": 100, "rows": 1, "ngram": 2}
    tokmill.dedup(two, tmp_path / "u", **options)
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_BAND_COST", 1 << 20)
        with pytest.raises(MemoryBudgetError, match="bands connect") as caught:
            tokmill.dedup(two, tmp_path / "v", memory="128MiB", **options)
        assert caught.value.resumes
    made = tokmill.dedup(two, tmp_path / "v", **options)
    assert made.resumed
    assert files_in(tmp_path / "u") == files_in(tmp_path / "v")


@pytest.mark.parametrize("most", [1, 5, 40])
def test_documents_of_a_bucket_that_is_too_large_are_read_group_by_group(
    most: int, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"near": 0.5, "shortest": 5, "bands": 40, "rows": 2, "compare": True}
    tokmill.dedup(two, tmp_path / "u", **options)
    real = Gathering.bucket
    monkeypatch.setattr(Gathering, "bucket", lambda self, number, held, _: real(self, number, held, most))
    with tiny(1 << 20, 1000):
        tokmill.dedup(two, tmp_path / "v", **options)
    assert files_in(tmp_path / "u") == files_in(tmp_path / "v")
    assert load_manifest(tmp_path / "u").removal == load_manifest(tmp_path / "v").removal


def test_no_byte_depends_on_memory_threads_or_blocks(two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two, tmp_path / "u", near=0.6, shortest=5)
    for name, threads, bucket_bytes in (("v", 1, 1 << 20), ("w", 3, 5000)):
        with tiny(bucket_bytes, 900), pytest.MonkeyPatch.context() as patch:
            patch.setattr(marking, "usable_cores", lambda n=threads: n)
            patch.setattr(signatures, "_HASHED", 7)
            patch.setattr(signatures, "_COLUMNS", 5)
            tokmill.dedup(two, tmp_path / name, near=0.6, shortest=5)
        assert files_in(tmp_path / name) == files_in(tmp_path / "u")
        assert load_manifest(tmp_path / name).removal == load_manifest(tmp_path / "u").removal


def test_signatures_are_these_for_ever() -> None:
    """Whoever changes them changes bytes of outputs."""
    ids = np.array([*range(40), 65535], np.uint16)
    signer = Signer(NearRule(threshold=0.8, bands=2, rows=3), 1)
    found = signer.signatures(ids, np.array([0, 3]), np.array([41, 30]))
    assert found.tolist() == [signature(ids.tolist(), 5, 6), signature(ids[3:30].tolist(), 5, 6)]
    assert [f"{key:x}" for key in signer.bands(found)[0].tolist()] == ["bdf9a6b94e1b83f8", "301c4ef4a083784"]


def made_pair(rng: np.random.Generator, similarity: float, n_grams: int, ngram: int = 5) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two documents whose n-grams have this Jaccard similarity: the second continues a part of the first otherwise."""
    n_shared = round(2 * n_grams * similarity / (1 + similarity))
    first = rng.integers(0, 50_000, n_grams + ngram - 1, dtype=np.uint16)
    second = rng.integers(0, 50_000, n_grams + ngram - 1, dtype=np.uint16)
    second[: n_shared + ngram - 1] = first[: n_shared + ngram - 1]
    return first, second


@pytest.mark.parametrize(
    "similarity", [0.7, 0.8, 0.9, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.6, 0.75, 0.85, 0.95))]
)
def test_pairs_are_found_as_the_curve_says(similarity: float) -> None:
    """Within two points, at any length; 8,000 pairs have a standard error of 0.56 points at most."""
    rule = NearRule(threshold=0.8)
    signer, rng = Signer(rule, 2), np.random.default_rng(int(similarity * 100))
    for n_grams in (60, 200, 700):
        n_pairs, n_found = 8000, 0
        for _ in range(n_pairs // 100):
            pairs = [made_pair(rng, similarity, n_grams) for _ in range(100)]
            ids = np.concatenate([each for pair in pairs for each in pair])
            ends = np.cumsum([len(each) for pair in pairs for each in pair])
            begins = np.concatenate([[0], ends[:-1]])
            keys = signer.bands(signer.signatures(ids, begins, ends))
            n_found += int(np.count_nonzero((keys[::2] == keys[1::2]).any(axis=1)))
        a, b = pairs[0]
        grams = ngrams(a.tolist(), 5), ngrams(b.tolist(), 5)
        true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        expected = 1 - (1 - true**rule.rows) ** rule.bands
        assert abs(n_found / n_pairs - expected) < 0.02, (n_grams, n_found / n_pairs, expected)


@pytest.mark.parametrize("compare", [False, True], ids=["digests", "compared"])
def test_a_copy_of_a_near_copy_goes_for_the_document_that_stays(compare: bool, tmp_path: Path) -> None:
    text = some_documents(1, 400, 1)[0]
    near_copy = changed(text, 60)
    tokenize_documents(tmp_path / "a", [text, near_copy, text, near_copy, near_copy], val_fraction=0)
    removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.6, shortest=5, compare=compare).removal
    lines = audit_of(tmp_path / "u")
    assert [(line["document"], line["kept_document"], line["kind"]) for line in lines] == [
        (1, 0, "near"),
        (2, 0, "copy"),
        (3, 0, "near"),
        (4, 0, "near"),
    ]
    assert len({line["similarity"] for line in lines if line["kind"] == "near"}) == 1
    assert {line["kept_tokens"] for line in lines} == {lines[1]["tokens"]}
    assert removal is not None
    assert (removal.sources[0].copies, removal.sources[0].near_copies) == (1, 3)


@pytest.mark.parametrize(("near", "n_near"), [(0.55, 1), (0.5500001, 0)])
def test_a_document_that_is_as_similar_as_asked_goes(near: float, n_near: int, tmp_path: Path) -> None:
    """55 of 100 n-grams: 0.55 * 100 is more than 55 in floats."""
    ids = np.array([*range(75), EOT, *range(55), *range(100, 125), EOT], np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    given: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", **given)
    removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=near, ngram=1, shortest=0, bands=100, rows=1).removal
    assert removal is not None
    assert removal.compared_pairs == 1
    assert removal.sources[0].near_copies == n_near


def test_documents_that_share_only_ids_of_0_are_no_candidates(tmp_path: Path) -> None:
    """As padding or unknown ids are: the least number of every signature must not be theirs."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50_000, (50, 201), dtype=np.uint16)
    ids[:, 20:40], ids[:, -1] = 0, EOT
    ids.tofile(tmp_path / "ids.bin")
    given: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", **given)
    removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.8).removal
    assert removal is not None
    assert removal.clusters == 0


def test_a_chain_of_near_copies_is_not_one_copy(tmp_path: Path) -> None:
    """Each is like its neighbours; those further apart are not. Only what is like a document that stays goes."""
    words = [f"w{i}" for i in range(900)]
    documents = [" ".join(words[i * 40 : i * 40 + 300]).encode() for i in range(15)]
    tokenize_documents(tmp_path / "a", documents, val_fraction=0)
    tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.7, bands=60, rows=3)
    lines = audit_of(tmp_path / "u")
    gone = {line["document"] for line in lines}
    assert gone == set(range(1, 15, 2))
    assert all(line["kept_document"] not in gone for line in lines)


def test_documents_of_the_validation_side_stay_and_their_near_copies_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MOST_COMPARED", 1000)
    documents = some_documents(40, 400, 3)
    tokenize_documents(tmp_path / "a", [*documents, *(changed(each, 80) for each in documents)], val_fraction=0.3)
    train, val = documents_of(tmp_path / "a")
    # With so many bands nearly every pair is a candidate.
    outcome = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.7, bands=100, rows=2, shortest=5)
    assert documents_of(tmp_path / "u")[1] == val
    lines = audit_of(tmp_path / "u")
    assert any(line["kept_side"] == "val" for line in lines)
    left = documents_of(tmp_path / "u")[0]
    grams = [ngrams(np.frombuffer(each, np.uint16).tolist(), 5) for each in left]
    for each in val:
        ours = ngrams(np.frombuffer(each, np.uint16).tolist(), 5)
        assert all(len(ours & theirs) < 0.7 * len(ours | theirs) for theirs in grams)
    assert outcome.removal is not None
    assert outcome.removal.unexamined == 0
    assert len(train) - len(left) == len(lines)


@pytest.mark.parametrize(
    "text", ["古池や蛙飛び込む水の音。", "def f(x):\n    return x + 1  # ", "Жили-были старик со старухой. ", "نص عربي قصير هنا. "]
)
def test_other_languages_and_code_are_compared_like_all(text: str, tmp_path: Path) -> None:
    base = [f"{text}{i} " * 3 + text * (i % 3) for i in range(60)]
    documents = ["".join(base[i : i + 20]) for i in range(0, 60, 20)]
    documents += [each.replace("1 ", "1! ", 1) for each in documents]
    tokenize_documents(tmp_path / "a", [each.encode() for each in documents], val_fraction=0)
    tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.9)
    assert {line["document"] for line in audit_of(tmp_path / "u")} == {3, 4, 5}


def test_short_documents_and_long_ones_are_left_alone_and_counted(tmp_path: Path) -> None:
    short = ["Page not found", "Page not found.", "", "a", "Log in or register to post", "Log in or register to post."]
    long = some_documents(1, 9000, 5)[0]
    documents = [*(each.encode() for each in short), long, long + b" end"]
    tokenize_documents(tmp_path / "a", documents, val_fraction=0, keep_empty=True)
    with tiny(1 << 20, 1500):
        removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.5).removal
    assert removal is not None
    assert (removal.short, removal.long) == (6, 2)
    assert not audit_of(tmp_path / "u")
    assert len(audit_of_near(tmp_path, shortest=0)) == 3


def audit_of_near(tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    tokmill.dedup(tmp_path / "a", tmp_path / "v", near=0.5, ngram=2, bands=100, rows=2, **options)
    return audit_of(tmp_path / "v")


def test_a_licence_in_front_of_different_texts_is_no_copy(tmp_path: Path) -> None:
    """Templates: what is the same is found, and is not enough."""
    licence = some_documents(1, 150, 7)[0]
    documents = [licence + b"\n" + each for each in some_documents(99, 900, 8) if len(each) > 400]
    tokenize_documents(tmp_path / "a", documents, val_fraction=0)
    removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.8, bands=100, rows=2).removal
    assert removal is not None
    assert removal.compared_pairs > 50
    assert not audit_of(tmp_path / "u")


def test_what_is_not_compared_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    licence = some_documents(1, 150, 7)[0]
    documents = [licence + b"\n" + each for each in some_documents(99, 900, 8) if len(each) > 400]
    tokenize_documents(tmp_path / "a", documents, val_fraction=0)
    monkeypatch.setattr(comparison, "MOST_COMPARED", 3)
    removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.8, bands=100, rows=2).removal
    assert removal is not None
    assert len(documents) / 2 < removal.unexamined < len(documents)
    assert removal.compared_pairs <= 3 * len(documents)


@pytest.mark.parametrize("is_flat", [False, True], ids=["searched", "flattened"])
def test_clusters_are_those_of_a_union_in_memory(is_flat: bool, tmp_path: Path) -> None:
    (tmp_path / ".tokmill").mkdir()
    rng = np.random.default_rng(1)
    pairs = np.sort(rng.integers(0, 3000, (1500, 2)), axis=1)
    clusters = Clusters(tmp_path, 3000, 0)
    for some in np.array_split(pairs, 7):
        clusters.join(some[:, 0].astype(np.uint64), some[:, 1].astype(np.uint64))
    parents = list(range(3000))

    def find(node: int) -> int:
        while parents[node] != node:
            node = parents[node]
        return node

    for a, b in pairs.tolist():
        low, high = sorted((find(a), find(b)))
        parents[high] = low
    nodes = np.unique(pairs)
    found: Clusters | FlatClusters = clusters
    if is_flat:
        clusters.flatten()
        clusters.sync()
        found = FlatClusters(tmp_path, 3000)
    for part in np.array_split(nodes.astype(np.uint64), 5):
        assert found.firsts(part).tolist() == [find(node) for node in part.tolist()]
    assert clusters.count() == len({find(node) for node in nodes.tolist()})
    clusters.remove()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounts need root")
@needs("mount", "umount")
def test_clusters_that_do_not_fit_on_the_disk_are_an_error_and_no_signal() -> None:
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs") as top:
        (top / ".tokmill").mkdir()
        with pytest.raises(DiskFullError):
            Clusters(top, 1_000_000, 0)
        clusters = Clusters(top, 100_000, 0)
        clusters.join(np.arange(50_000, dtype=np.uint64), np.arange(50_000, 100_000, dtype=np.uint64))
        assert clusters.count() == 50_000
        clusters.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC], ids=["unsupported", "full"])
def test_room_for_clusters_is_taken_before_they_are_written(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system cannot do it at once."""

    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / ".tokmill").mkdir()
    first, second = (np.array([each], np.uint64) for each in (3, 1_500_000))
    clusters = Clusters(tmp_path, 2_000_000, 0)
    clusters.join(first, second)
    clusters.close()
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    if code == errno.ENOSPC:
        with pytest.raises(DiskFullError):
            Clusters(tmp_path, 2_000_000, 0)
        return
    again = Clusters(tmp_path, 3_000_000, 0)
    assert again.firsts(second).tolist() == [3]
    path = next((tmp_path / ".tokmill").glob("clusters*"))
    assert path.stat().st_size == 12_000_000
    assert path.stat().st_blocks * 512 >= 12_000_000
    again.remove()


def test_an_output_without_documents_stays_one(tmp_path: Path) -> None:
    tokenize_documents(tmp_path / "a", [], val_fraction=0)
    removal = tokmill.dedup(tmp_path / "a", tmp_path / "u", near=0.8).removal
    assert removal is not None
    assert removal.clusters == 0
    assert load_manifest(tmp_path / "u").counts.documents == 0


def test_options_that_cannot_be_are_refused(two: list[Path], tmp_path: Path) -> None:
    for options, option in (
        ({"near": 0}, "--near"),
        ({"near": 1.01}, "--near"),
        ({"near": float("nan")}, "--near"),
        ({"near": 0.8, "measure": "cosine"}, "--measure"),
        ({"ngram": 5}, "--ngram"),
        ({"near": 0.8, "ngram": 0}, "--ngram"),
        ({"near": 0.8, "rows": 1.5}, "--rows"),
        ({"near": 0.8, "bands": 200, "rows": 200}, "--bands"),
    ):
        with pytest.raises(UsageError) as caught:
            tokmill.dedup(two, tmp_path / "u", **options)
        assert caught.value.option == option
    assert not (tmp_path / "u").exists()


def test_near_copies_of_another_output_go(two: list[Path], tmp_path: Path) -> None:
    tokmill.dedup(two[1], tmp_path / "u", against=two[0], near=0.6, shortest=5)
    lines = audit_of(tmp_path / "u")
    assert {line["kept_source"] for line in lines if line["kind"] == "near"} >= {1}
    tokmill.dedup(tmp_path / "u", tmp_path / "v", against=two[0], near=0.6, shortest=5)
    assert written(tmp_path / "v") == written(tmp_path / "u")
    assert json.loads((tmp_path / "u" / "manifest.json").read_text())["removal"]["against"] == [str(two[0])]


@pytest.mark.slow
def test_the_work_in_one_large_cluster_grows_with_its_documents(tmp_path: Path) -> None:
    """100,000 near copies of one text."""
    rng = np.random.default_rng(1)
    text = rng.integers(97, 122, 250, dtype=np.uint8).tobytes().decode()
    took = []
    for n in (10_000, 100_000):
        documents = [f"{text} {i} {i * 7919 % 1_000_003}".encode() for i in range(n)]
        tokenize_documents(tmp_path / f"a{n}", documents, val_fraction=0)
        began_s = time.process_time()
        removal = tokmill.dedup(tmp_path / f"a{n}", tmp_path / f"u{n}", near=0.8).removal
        took.append(time.process_time() - began_s)
        assert removal is not None
        assert removal.sources[0].near_copies > 0.99 * n
        assert removal.compared_pairs < 2 * n
    assert took[1] < 20 * took[0]


def test_buckets_that_are_too_large_are_read_in_parts(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there may not be so many buckets as memory would ask for."""
    tokmill.dedup(two, tmp_path / "u", near=0.6, shortest=5)
    real, sizes = Records.parts, []

    def few(self: Records, bucket: int, fields: tuple[str, ...], most: int) -> Iterator[NDArray[Any]]:
        assert most > 1000
        for part in real(self, bucket, fields, 20):
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(Records, "parts", few)
    with tiny(3000, 1000):
        tokmill.dedup(two, tmp_path / "v", near=0.6, shortest=5)
    assert files_in(tmp_path / "u") == files_in(tmp_path / "v")
    assert len(sizes) > 20
    assert max(sizes) < 60
