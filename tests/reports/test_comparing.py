"""Two outputs compared: what they share is what sets of documents in memory share, and the page is a page like the other."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from support.corpora import write_corpus
from support.html_page import Page
from support.outputs import write_output
from support.small_tokenizers import path_of

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import UsageError
from tokmill.core.manifest import load_manifest
from tokmill.reports.shared_documents import DocumentDigests, shared_documents

pytestmark = pytest.mark.usefixtures("workers_in_process")

HOSTILE = "<script>alert('x')</script>\u202e"


def told(digests: DocumentDigests, documents: list[tuple[int, int]], at_once: int) -> DocumentDigests:
    for i in range(0, len(documents), at_once):
        some = documents[i : i + at_once]
        digests.add(np.array([d for d, _ in some], np.uint64), np.array([n for _, n in some], np.int64))
    return digests


# Small numbers for digests: many are equal, and many end in the same bits.
sides = st.lists(
    st.lists(st.tuples(st.integers(0, 40) | st.integers(0, 2**64 - 1), st.integers(0, 5)), max_size=60), min_size=1, max_size=4
)


@given(sides, st.sampled_from([3, 10, 1000]), st.integers(1, 20), st.data())
def test_shared_documents_are_those_of_sets_in_memory(
    made: list[list[tuple[int, int]]], most: int, at_once: int, data: st.DataObject
) -> None:
    comparable = [data.draw(st.integers(0, 1)) for _ in made]
    found, level = shared_documents([told(DocumentDigests(most), documents, at_once) for documents in made], comparable)
    assert level == 0 or most < 1000
    kept = [[d for d, n in documents if n and d % 2**level == 0] for documents in made]
    assert all(len(set(documents)) <= most for documents in kept)
    for i, (own, documents) in enumerate(zip(found, kept, strict=True)):
        assert (own.documents, own.copies) == (len(documents), len(documents) - len(set(documents)))
        assert own.also_in == tuple(
            sum(d in set(other) for d in documents) if i != j and comparable[i] == comparable[j] else None
            for j, other in enumerate(kept)
        )


def test_a_sample_says_about_what_all_would_say() -> None:
    rng = np.random.default_rng(1)
    documents = rng.integers(0, 2**64, 30_000, dtype=np.uint64)
    ones = np.ones(20_000, np.int64)
    a, b = DocumentDigests(1000), DocumentDigests(1000)
    a.add(documents[:20_000], ones)
    b.add(documents[10_000:], ones)
    found, level = shared_documents([a, b], [0, 0])
    assert level >= 4
    assert found[0].documents << level == pytest.approx(20_000, rel=0.2)
    assert (found[0].also_in[1] or 0) / found[0].documents == pytest.approx(0.5, abs=0.06)


DOCUMENTS = [f"{'Words of a document. ' * (i % 9 + 1)}{i}" for i in range(300)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two outputs that have 100 documents in common, in two formats and integer types."""
    top = tmp_path_factory.mktemp("pair")
    first = write_corpus(top / "a.txt", [*DOCUMENTS[:200], *DOCUMENTS[:7], ""])
    second = write_corpus(top / f"{HOSTILE.replace('/', '')}.txt", DOCUMENTS[100:])
    tokmill.tokenize(first, top / "a", val_fraction=0.2, threads=1)
    tokmill.tokenize(second, top / "b", val_fraction=0.2, seed=9, dtype="uint32", format="megatron", threads=1)
    return top / "a", top / "b"


@pytest.fixture(scope="module")
def page(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    made = tokmill.report(pair[0], out, other=pair[1])
    assert made.is_complete
    assert made.missing == []
    return out.read_text()


def rows_of(page: str, caption: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    table = re.search(rf"<caption>{caption}.*?</table>", page, re.DOTALL)
    assert table is not None
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in table[0].split("<tr>")]
    return {row[0]: row[1:] for row in cells if row}


def documents_of(out: Path, side: str) -> list[bytes]:
    with tokmill.open(out) as data:
        found = [np.asarray(data.document(side, i)) for i in range(data.n_documents(side))]
        return [ids[ids != data.eot_id].astype("<u4").tobytes() for ids in found]


def test_the_table_of_shared_documents_is_that_of_sets(pair: tuple[Path, Path], page: str) -> None:
    sides = {
        f"{label} {name}": documents_of(out, name[:5].replace("valid", "val"))
        for label, out in zip("AB", pair, strict=True)
        for name in ("train", "validation")
    }
    rows = rows_of(page, "Exact copies")
    assert list(rows) == list(sides)
    for name, documents in sides.items():
        n, copies, *also = (int(cell.split(" ")[0].replace(",", "")) if cell != "-" else None for cell in rows[name])
        assert (n, copies) == (len(documents), len(documents) - len(set(documents)))
        assert also == [None if other == name else sum(d in set(sides[other]) for d in documents) for other in sides]
    assert sum(n for n in (int(cell.split(" ")[0]) for row in rows.values() for cell in row[2:] if cell != "-")) >= 200
    assert "documents of A validation are also in B train." in page
    assert f"tokmill dedup {pair[0]} --against {pair[1]}" in Page(page).text


def test_numbers_settings_and_tokens_stand_side_by_side(pair: tuple[Path, Path], page: str) -> None:
    counts = [load_manifest(out).counts for out in pair]
    rows = rows_of(page, "-: not known")
    assert rows["documents"] == ["208", "200"]
    assert rows["tokens"] == [f"{each.tokens_train + each.tokens_val:,}" for each in counts]
    differ = rows_of(page, "What decides the bytes")
    assert differ["format"] == ["raw", "megatron"]
    assert "tokenizer" not in differ
    shares = rows_of(page, "Tokens whose shares differ most")
    assert all(float(row[3]) == pytest.approx(float(row[2][:-2]) - float(row[1][:-2]), abs=0.0011) for row in shares.values())
    assert re.search(r"\d+\.\d % of the tokens of one would have to be others", page)


def test_it_is_a_page_like_the_other(page: str) -> None:
    found = Page(page)
    assert found.wrong == []
    assert not {tag for tag, _ in found.elements} & {"script", "img"}
    assert [name for name, n in Counter(a["id"] for _, a in found.elements if "id" in a).items() if n > 1] == []
    assert page.startswith("<!doctype html>\n")
    assert "default-src 'none'" in page


def test_an_output_beside_itself_shares_everything(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tokmill.report(pair[0], tmp_path / "p.html", other=pair[0])
    page = (tmp_path / "p.html").read_text()
    rows = rows_of(page, "Exact copies")
    assert rows["A train"][4].endswith("(100.0 %)")
    assert "0.0 % of the tokens of one would have to be others" in page
    assert "None: all that decides the bytes" in page
    assert "also in B train." not in page


def test_ids_of_two_tokenizers_are_not_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.txt", DOCUMENTS[:50])
    tokmill.tokenize(corpus, tmp_path / "o", tokenizer=str(path_of("llama3")), threads=1)
    made = tokmill.report(pair[0], tmp_path / "p.html", other=tmp_path / "o")
    assert any("two tokenizers" in sentence for sentence in made.missing)
    page = (tmp_path / "p.html").read_text()
    assert rows_of(page, "Exact copies")["A train"][-1] == "-"
    assert "<h2>Tokens</h2>" not in page


def test_without_end_of_text_ids_the_rest_is_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.txt", DOCUMENTS[:50])
    tokmill.tokenize(corpus, tmp_path / "o", eot="none", threads=1)
    made = tokmill.report(pair[0], tmp_path / "p.html", other=tmp_path / "o")
    assert [sentence[:12] for sentence in made.missing] == ["B: Documents"]
    assert "<h2>Tokens</h2>" in (tmp_path / "p.html").read_text()


def test_only_complete_outputs_are_compared_and_nothing_of_them_is_replaced(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "begun" / ".tokmill").mkdir(parents=True)
    with pytest.raises(UsageError):
        tokmill.report(pair[0], tmp_path / "p.html", other=tmp_path / "begun")
    for taken in (pair[1] / "manifest.json", pair[0] / "train.bin", pair[0].parent / "a.txt"):
        with pytest.raises(UsageError, match="would replace"):
            tokmill.report(pair[0], taken, other=pair[1], force=True)


def test_the_command_writes_into_the_working_directory(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["report", *map(str, pair), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "comparison.html")
    assert run(["report", *map(str, pair)]) == 0
    (tmp_path / "comparison.html").write_text("mine")
    assert run(["report", *map(str, pair)]) == 2
    assert (tmp_path / "comparison.html").read_text() == "mine"


def test_an_older_output_is_compared_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", DOCUMENTS[:60]))
    tokmill.report(tmp_path / "o", tmp_path / "p.html", other=pair[0])
    assert Page((tmp_path / "p.html").read_text()).wrong == []
