"""The report of a mixture, and the ranges of its sources on the validation side."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from support.corpora import some_documents
from support.outputs import collect_data
from support.runs import tokenize_documents

import tokmill
from tokmill.core.arrangement import ArrangedSource, Arrangement
from tokmill.core.document_order import copies, copies_by_stretch, order_keys
from tokmill.core.manifest import load_manifest
from tokmill.reports.mixture import mixture_figures, val_table
from tokmill.reports.reporting import make_page

pytestmark = pytest.mark.usefixtures("workers_in_process")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Outputs with names that nobody should draw as they are."""
    top = tmp_path_factory.mktemp("three")
    for i, name in enumerate(("web", "b$x^$oo<ks>", "co\x1bde")):
        tokenize_documents(top / name, some_documents(60, 60, i))
    return [top / "web", top / "b$x^$oo<ks>", top / "co\x1bde"]


def test_each_source_has_its_range_on_the_validation_side(three: list[Path], tmp_path: Path) -> None:
    tokmill.mix([(path, i + 1) for i, path in enumerate(three)], tmp_path / "mix", seed=1)
    tokmill.shuffle(three, tmp_path / "shuffle", seed=1)
    tokmill.merge(three, tmp_path / "merge")
    tokmill.convert(tmp_path / "mix", tmp_path / "converted", format="megatron")
    for name in ("mix", "shuffle", "merge", "converted"):
        with tokmill.open(tmp_path / name) as data:
            ranges = data.val_sources()
            assert [each.path for each in ranges] == [str(path) for path in three]
            for each, path in zip(ranges, three, strict=True):
                with tokmill.open(path) as source:
                    assert len(source.val)
                    assert np.array_equal(data.val[each.begin : each.end], source.val)
            assert ranges[-1].end == len(data.val)
    with tokmill.open(three[0]) as data:
        assert data.val_sources() == []
    tokmill.tokenize(three[0].with_suffix(".txt"), tmp_path / "one")
    with tokmill.open(tmp_path / "one") as data:
        assert data.val_sources() == []


def test_the_report_shows_shares_ranges_and_where_sources_lie(three: list[Path], tmp_path: Path) -> None:
    outcome = tokmill.mix([(path, i + 1) for i, path in enumerate(three)], tmp_path / "mix", seed=1, max_epochs=3)
    manifest = load_manifest(tmp_path / "mix")
    shares, stream = mixture_figures(manifest)
    assert [row[1] for row in shares.table.rows] == ["16.6667", "33.3333", "50.0000"]
    assert [float(row[2]) for row in shares.table.rows] == pytest.approx([100 * e.reached_share for e in outcome.mixture], abs=1e-4)
    assert [row[4] for row in shares.table.rows] == [f"{each.documents:,}" for each in outcome.mixture]
    for figure in (shares, stream):
        ET.fromstring(figure.svg)
    table = val_table(manifest)
    assert [row[1:3] for row in table.rows] == [(f"{e.val_begin:,}", f"{e.val_end:,}") for e in outcome.mixture]
    page = make_page(collect_data(tmp_path / "mix"))
    assert "<h2>The mixture</h2>" in page
    assert "<h2>The validation side</h2>" in page
    assert "\x1b" not in page
    assert "<ks>" not in page


def test_another_output_has_no_mixture(three: list[Path], tmp_path: Path) -> None:
    tokmill.shuffle(three[0], tmp_path / "s", seed=1)
    for path in (three[0], tmp_path / "s"):
        assert mixture_figures(load_manifest(path)) == []
        page = make_page(collect_data(path))
        assert "The mixture" not in page
        assert "<h2>The validation side</h2>" not in page
    assert mixture_figures(None) == []


def test_where_sources_lie_is_counted_as_the_files_have_it() -> None:
    n, n_stretches = 300, 8
    sources = tuple(
        ArrangedSource(fingerprint="", documents=n, tokens=n, times=times, taken_documents=times * n, taken_tokens=times * n)
        for times in (1, 2)
    )
    arrangement = Arrangement(seed=4, sources=sources)
    found = copies_by_stretch(arrangement, n_stretches)
    for number in range(2):
        keys = order_keys(arrangement, copies(arrangement, number, 0, n)[1])
        wanted = np.bincount((keys.astype(object) * n_stretches >> 64).astype(np.int64), minlength=n_stretches)
        assert found[number].tolist() == wanted.tolist()
