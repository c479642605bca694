"""`--name`: what the names of files begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import SEP, some_documents
from support.outputs import files_in, ids_of
from support.runs import TINY, append_in_process, make_parts, repair_in_process, run_in_process

import tokmill
from tokmill.cli import app
from tokmill.core.errors import ChangedError
from tokmill.core.manifest import load_manifest
from tokmill.formats.registry import is_written
from tokmill.output.prefix import is_ours
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

DOCUMENTS = some_documents(60, 60, 1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.txt"
    path.write_bytes(SEP.encode().join(DOCUMENTS))
    return path


@pytest.mark.parametrize("options", [{}, {"shard_tokens": 500}, {"format": "llmc", "shard_tokens": 500}, {"offsets": True}])
@pytest.mark.parametrize("n_parts", [0, 3])
def test_the_files_are_the_usual_ones_by_other_names(tmp_path: Path, corpus: Path, options: dict[str, Any], n_parts: int) -> None:
    for out in ("plain", "named"):
        given: dict[str, Any] = {"val_fraction": 0.2, **options, "name": "fine-web.1" if out == "named" else None}
        # Offsets of parts would all begin at 0.
        if n_parts and not options.get("offsets"):
            make_parts([corpus], tmp_path / out, n_parts, **given)
            tokmill.finalize(tmp_path / out)
        else:
            run_in_process([corpus], tmp_path / out, TINY, **given)
    plain, named = files_in(tmp_path / "plain"), files_in(tmp_path / "named")
    assert named == {f"fine-web.1_{name}" if name.endswith(".bin") else name: data for name, data in plain.items()}
    assert all(map(is_written, named))
    assert ids_of(tmp_path / "named") == ids_of(tmp_path / "plain")
    assert tokmill.verify(tmp_path / "named", sources=True).ok


def test_it_stays_when_an_output_is_extended_repaired_shuffled_merged_and_converted(tmp_path: Path, corpus: Path) -> None:
    options: dict[str, Any] = {"val_fraction": 0.2, "name": "fineweb"}
    run_in_process([corpus], tmp_path / "out", TINY, **options)
    path = tmp_path / "out" / "fineweb_train.bin"
    before, ids = path.read_bytes(), np.fromfile(path, np.uint16)
    ids[len(ids) // 2] ^= 1
    ids.tofile(path)
    assert not tokmill.verify(tmp_path / "out").ok
    repair_in_process(tmp_path / "out")
    assert path.read_bytes() == before
    tokmill.shuffle(tmp_path / "out", tmp_path / "shuffled", seed=1)
    tokmill.merge([tmp_path / "out", tmp_path / "shuffled"], tmp_path / "both")
    tokmill.convert(tmp_path / "out", tmp_path / "llmc", format="llmc")
    tokmill.convert(tmp_path / "out", tmp_path / "megatron", format="megatron")
    for out in ("out", "shuffled", "both"):
        assert {*files_in(tmp_path / out)} == {"fineweb_train.bin", "fineweb_val.bin"}
    assert {*files_in(tmp_path / "llmc")} == {"fineweb_train_000000.bin", "fineweb_val_000000.bin"}
    assert {*files_in(tmp_path / "megatron")} == {"train.bin", "train.idx", "val.bin", "val.idx"}
    (tmp_path / "more.txt").write_bytes(b"one more")
    append_in_process([tmp_path / "more.txt"], tmp_path / "out", name="fineweb")
    assert {*files_in(tmp_path / "out")} == {"fineweb_train.bin", "fineweb_val.bin"}
    assert len(path.read_bytes()) > len(before)
    tokmill.tokenize(corpus, tmp_path / "mixed", shuffle=1, **options)
    assert ids_of(tmp_path / "mixed") == ids_of(tmp_path / "shuffled")
    assert {*files_in(tmp_path / "mixed")} == {"fineweb_train.bin", "fineweb_val.bin"}


def test_another_name_is_another_output_and_what_cannot_be_one_is_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tokmill.tokenize(corpus, out, name="fineweb", val_fraction=0.2)
    assert tokmill.tokenize(corpus, out, name="fineweb", val_fraction=0.2).already_complete
    with pytest.raises(ChangedError, match="--name was fineweb, is not given"):
        tokmill.tokenize(corpus, out, val_fraction=0.2)
    assert "--name fineweb" in commands(load_manifest(out).content, (), "again")
    tokmill.tokenize(corpus, out, val_fraction=0.2, fresh=True)
    assert {*files_in(out)} == {"train.bin", "val.bin"}
    for wrong in ("", ".hidden", "a/b", "a b", "train", "val_2", "x" * 65, "é", "-a", "a\n"):
        assert app.run(["tokenize", str(corpus), "-o", str(tmp_path / "o"), f"--name={wrong}"]) == 2, wrong
    assert app.run(["tokenize", str(corpus), "-o", str(tmp_path / "o"), "--name=a", "--format", "megatron"]) == 2
    assert "with the formats raw, llmc" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_other_files_are_not_taken_for_files_of_an_output() -> None:
    assert is_ours("fineweb_train_000001.bin")
    assert is_ours("fineweb_val_00003_000001.bin")
    for name in ("my_train.csv", "trainer.bin", "my_training.bin", "x_train_a.bin", "a/fineweb_train.bin", "_train.bin"):
        assert not is_ours(name), name
