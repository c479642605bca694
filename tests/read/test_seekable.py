"""Remote objects as files with `seek`."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.web import Site, serving

from tokmill.core.errors import ChangedError, DamagedInputError
from tokmill.core.records import Input
from tokmill.read import seekable
from tokmill.read.inputs import find_inputs
from tokmill.read.seekable import RemoteFile, open_seekable

BLOCK = 10_000
DATA = random.Random(0).randbytes(25 * BLOCK + 77)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seekable, "SEEKABLE_BLOCK_BYTES", BLOCK)


def find(name: str) -> Input:
    (found,) = find_inputs([name], glob=None, input_format="text").inputs
    return found


@pytest.mark.parametrize("is_remote", [True, False])
def test_reads_and_seeks_are_those_of_a_file(site: Site, tmp_path: Path, is_remote: bool) -> None:
    (tmp_path / "a.bin").write_bytes(DATA)
    name = site.put("/a.bin", DATA) if is_remote else str(tmp_path / "a.bin")
    truth, rng = io.BytesIO(DATA), random.Random(1)
    with open_seekable(find(name)) as file:
        assert file.seekable()
        for _ in range(100):
            whence = rng.choice([0, 0, 1, 2])
            base = {0: 0, 1: truth.tell(), 2: len(DATA)}[whence]
            offset = rng.randrange(-base, len(DATA) + 100 - base)
            assert file.seek(offset, whence) == truth.seek(offset, whence)
            for _ in range(rng.randrange(4)):
                n = rng.choice([0, 1, 100, BLOCK - 1, BLOCK, 3 * BLOCK, 7 * BLOCK])
                assert file.read(n) == truth.read(n)
                assert file.tell() == truth.tell()


def test_no_more_blocks_are_kept_than_it_says(site: Site) -> None:
    file = RemoteFile(find(site.put("/a.bin", DATA)))
    for at in range(0, len(DATA), BLOCK // 2):
        file.seek(at)
        file.read(10)
        assert len(file._blocks) <= seekable.BLOCKS_KEPT
    n_asked = len(site.log)
    file.seek(len(DATA) - 100)
    file.read()
    assert len(site.log) == n_asked, "what was read just now is kept"
    file.close()


def test_parquet_is_read_over_the_network_without_its_other_columns(site: Site) -> None:
    rng = random.Random(2)
    table = pa.table({"other": [rng.randbytes(3000) for _ in range(400)], "text": [f"text {i}" for i in range(400)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    source = find(site.put("/a.parquet", sink.getvalue()))
    site.forget()
    with open_seekable(source) as file:
        found = pq.ParquetFile(file, pre_buffer=False, buffer_size=4096).read(["text"])
    assert found["text"].to_pylist() == table["text"].to_pylist()
    assert site.sent_bytes < len(sink.getvalue()) / 5


def test_an_object_that_is_replaced_is_refused_through_parquet_too(site: Site) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["text"] * 50_000, "i": range(50_000)}), sink, compression="none", use_dictionary=False)
    source = find(site.put("/a.parquet", sink.getvalue()))
    with open_seekable(source) as file:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=4096)
        site.put("/a.parquet", sink.getvalue()[::-1])
        with pytest.raises(ChangedError):
            parquet.read()


def test_a_local_file_that_is_gone_or_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    source = find(str(path))
    path.write_bytes(DATA[1:])
    with pytest.raises(ChangedError):
        open_seekable(source)
    path.unlink()
    with pytest.raises(ChangedError, match="gone"):
        open_seekable(source)


def test_a_store_that_refuses_is_an_error_of_the_run(site: Site) -> None:
    source = find(site.put("/a.bin", DATA))
    site.fault = lambda handler: handler.status(403)
    with open_seekable(source) as file, pytest.raises(DamagedInputError, match="access denied"):
        file.read(10)
