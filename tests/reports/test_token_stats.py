"""What is told of ids by reading them once is what a plain loop over documents finds, wherever blocks end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, strategies as st

from tokmill.core.errors import DamageError
from tokmill.core.records import EotPlacement
from tokmill.dataset.id_reader import IdReader
from tokmill.dataset.token_files import TokenFile
from tokmill.reports import token_stats
from tokmill.reports.shared_documents import DocumentDigests
from tokmill.reports.token_stats import SideStatistics, TokenStatistics

EOT = 7
SIZES = np.array([1, 2, 3, 4, 5, 6, 9, 0], np.int64)


def tallied(
    ids: list[int], eot: EotPlacement, directory: Path, block: int, n_files: int = 1, digests: DocumentDigests | None = None
) -> tuple[SideStatistics, list[int]]:
    files = []
    for i, part in enumerate(np.array_split(np.array(ids, "<u2"), n_files)):
        path = directory / f"{i}.bin"
        path.write_bytes(b"head" + part.tobytes())
        files.append(TokenFile(name=path.name, path=path, header_bytes=4, n_tokens=len(part)))
    statistics = TokenStatistics(8, EOT, eot, SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_stats, "BLOCK_TOKENS", block)
        *_, (_, found) = statistics.read_side(IdReader.of_files("train", files, "uint16"), digests)
    assert statistics.frequencies is not None
    return found, statistics.frequencies.tolist()


documents = st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=12)


@given(documents, st.sampled_from(["after", "before"]), st.integers(1, 9), st.integers(1, 3))
def test_documents_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, made: list[list[int]], eot: EotPlacement, block: int, n_files: int
) -> None:
    ids = [i for d in made for i in ([EOT, *d] if eot == "before" else [*d, EOT])]
    found, frequencies = tallied(ids, eot, tmp_path_factory.mktemp("side"), block, n_files)
    full = [d for d in made if d]
    assert (found.n_documents, found.n_empty, found.n_in_documents) == (len(made), len(made) - len(full), sum(map(len, made)))
    assert found.longest == max(map(len, made), default=0)
    lengths = np.zeros_like(found.lengths)
    densities = np.zeros_like(found.densities)
    for d in full:
        lengths[next(i for i in range(token_stats.LENGTH_BINS) if 2 ** ((i + 1) / 2) > len(d) + 1e-9)] += 1
        densities[int(sum(SIZES[i] for i in d) / len(d) / token_stats.DENSITY_STEP)] += 1
    assert found.lengths.tolist() == lengths.tolist()
    assert found.densities.tolist() == densities.tolist()
    assert int(found.window_bytes.sum()) == sum(int(SIZES[i]) for i in ids)
    assert frequencies == np.bincount(ids, minlength=8).tolist() if ids else sum(frequencies) == 0


@given(documents, st.sampled_from(["after", "before"]), st.integers(1, 9), st.booleans())
def test_digests_are_those_of_whole_documents_wherever_blocks_end(
    tmp_path_factory: pytest.TempPathFactory, made: list[list[int]], eot: EotPlacement, block: int, is_open: bool
) -> None:
    ids = [i for d in made for i in ([EOT, *d] if eot == "before" else [*d, EOT])]
    if is_open and eot == "after" and made and made[-1]:
        ids.pop()
    digests = DocumentDigests()
    tallied(ids, eot, tmp_path_factory.mktemp("side"), block, digests=digests)
    expected: dict[int, list[int]] = {}
    for d in filter(None, made):
        expected.setdefault(xxhash.xxh3_64_intdigest(np.array(d, "<u4").tobytes()), []).append(len(d))
    assert digests.rows(0).tolist() == [(digest, len(n), sum(n)) for digest, n in sorted(expected.items())]


def test_a_last_document_without_its_end_is_counted(tmp_path: Path) -> None:
    found, _ = tallied([1, 2, EOT, 3], "after", tmp_path, 2)
    assert (found.n_documents, found.longest) == (2, 2)


def test_windows_follow_the_corpus(tmp_path: Path) -> None:
    found, _ = tallied([0] * 3000 + [5] * 3000, "none", tmp_path, 999)
    assert found.window_tokens == 20
    assert found.window_bytes.tolist() == [20] * 150 + [120] * 150


def test_half_of_the_documents_are_as_long_as_half_of_them_are(tmp_path: Path) -> None:
    found, _ = tallied([i for n in (4, 64, 64, 64, 500) for i in [1] * n + [EOT]], "after", tmp_path, 100)
    assert 64 <= found.quantile(0.5) <= 64 * 2**0.5
    alike, _ = tallied([i for n in (65, 65, 65) for i in [1] * n + [EOT]], "after", tmp_path, 100)
    assert alike.quantile(0.5) == 65


def test_an_id_beyond_the_vocabulary_is_damage_that_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match=r"id 9(.|\n)*0\.bin"):
        tallied([1, 9], "after", tmp_path, 10)


def test_a_file_that_ends_too_soon_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(b"\1\0")
    ids = IdReader.of_files("train", [TokenFile(name="cut.bin", path=path, header_bytes=0, n_tokens=4)], "uint16")
    with pytest.raises(DamageError, match="3 ids too soon"):
        list(TokenStatistics(8, EOT, "after", None).read_side(ids))
