"""`verify --repair` in every format and with shards: headers, indexes and lists of documents are made again like the ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.corpora import SEP, some_documents
from support.failures import do_damage, flip
from support.runs import SMALL, repair_in_process, tokenize_in_small_segments

import tokmill
from tokmill.check.verification import verify
from tokmill.core.config import BudgetTerms
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.manifest import load_manifest

pytestmark = pytest.mark.usefixtures("workers_in_process")

LAYOUTS: list[dict[str, object]] = [
    {"format": "raw", "shard_tokens": 1500},
    {"format": "raw", "shard_tokens": 1000, "shard_documents": True, "eot": "before"},
    {"format": "raw", "shard_tokens": 1500, "drop_tail": True},
    {"format": "llmc", "shard_tokens": 1500},
    {"format": "megatron"},
    {"format": "megatron", "shard_tokens": 1500},
    {"format": "datatrove", "shard_tokens": 1500},
    {"format": "olmo", "shard_tokens": 1500},
    {"format": "litdata", "shard_tokens": 1500},
    {"format": "mds", "shard_tokens": 2048},
]


class Made:
    """A complete output of many segments, and what is in its files."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.corpus = folder / "corpus"
        self.corpus.mkdir()
        documents = [*some_documents(60, 300, 8), *some_documents(2, 6000, 9), *some_documents(60, 300, 10)]
        (self.corpus / "a.txt").write_bytes(SEP.encode().join(documents))
        (self.corpus / "b.txt").write_bytes(SEP.encode().join(some_documents(30, 300, 11)))
        self.out = folder / "out"
        tokenize_in_small_segments([self.corpus], self.out, SMALL, val_fraction=0.3, **options)
        manifest = load_manifest(self.out)
        assert len(manifest.segments) > 10
        self.names = list(manifest.files)
        self.bytes = {name: (self.out / name).read_bytes() for name in self.names}

    def edges(self) -> list[str]:
        """Of each side and kind of file the first and the last."""
        kinds: dict[str, list[str]] = {}
        for name in self.names:
            kinds.setdefault(name[:3] + Path(name).suffix, []).append(name)
        return [name for names in kinds.values() for name in dict.fromkeys((names[0], names[-1])) if self.bytes[name]]

    def wrong(self, out: Path) -> list[str]:
        found = [name for name, data in self.bytes.items() if (out / name).is_symlink() or (out / name).read_bytes() != data]
        return found + [str(problem) for problem in verify(out).problems]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda options: "-".join(map(str, options.values())))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"), **request.param)


def test_every_file_alone_is_made_again_whatever_befell_it_and_no_other_is_touched(made: Made, tmp_path: Path) -> None:
    out = shutil.copytree(made.out, tmp_path / "out")
    for i, name in enumerate(made.edges()):
        inodes = {other: (out / other).stat().st_ino for other in made.names if other != name}
        others = [("cut", 0.3), ("missing", 0.0), ("longer", 0.0)]
        for kind, where in [("flip", (0.0, 0.5, 1 - 1e-9)[i % 3]), others[i // 2 % 3]]:
            do_damage(out, (name, kind, where, 3))
            assert not verify(out).ok
            assert {each.file for each in repair_in_process(out)} == {name}
            assert made.wrong(out) == [], (name, kind, where)
        assert {other: (out / other).stat().st_ino for other in inodes} == inodes


def test_all_files_together_are_made_again(made: Made, tmp_path: Path) -> None:
    out = shutil.copytree(made.out, tmp_path / "out")
    for name in made.names:
        (out / name).unlink()
    for sub in ("train", "val"):
        if (out / sub).exists():
            (out / sub).rmdir()
    repair_in_process(out, {"batch_bytes": 5000, "terms": BudgetTerms(n_threads=2)})
    assert made.wrong(out) == []
    for name, data in made.bytes.items():
        if data:
            flip(out / name, len(data) // 3)
    repair_in_process(out)
    assert made.wrong(out) == []


def test_another_corpus_is_refused_and_nothing_is_replaced(made: Made, tmp_path: Path) -> None:
    out, corpus = shutil.copytree(made.out, tmp_path / "out"), shutil.copytree(made.corpus, tmp_path / "corpus")
    text = (corpus / "a.txt").read_bytes()
    (corpus / "a.txt").write_bytes(text.replace(SEP.encode(), b" " * len(SEP)))
    for name in made.names:
        (out / name).unlink()
    with pytest.raises(ChangedError, match="no longer gives"):
        repair_in_process(out, sources=[str(corpus)])
    assert [path for path in out.rglob("*") if path.is_file()] == [out / "manifest.json"]


def test_merged_converted_and_appended_outputs_are_mended_like_tokenized_ones(tmp_path: Path) -> None:
    made = Made(tmp_path, format="llmc", shard_tokens=1500, eot="after")
    other = tmp_path / "more.txt"
    other.write_bytes(SEP.encode().join(some_documents(40, 300, 12)))
    tokmill.convert(made.out, tmp_path / "converted", format="megatron")
    tokmill.tokenize(other, tmp_path / "more", format="llmc", shard_tokens=1500, eot="after", val_fraction=0.3)
    tokmill.merge([made.out, tmp_path / "more"], tmp_path / "merged")
    tokmill.tokenize(other, made.out, format="llmc", shard_tokens=1500, eot="after", val_fraction=0.3, append=True)
    for out in (tmp_path / "converted", tmp_path / "merged", made.out):
        files = {name: (out / name).read_bytes() for name in load_manifest(out).files}
        for name, data in files.items():
            flip(out / name, 0)
            flip(out / name, len(data) // 2)
        repair_in_process(out)
        assert {name: (out / name).read_bytes() for name in files} == files
        assert verify(out).ok


def test_what_was_made_of_bare_files_is_refused_by_name(tmp_path: Path) -> None:
    made = Made(tmp_path, format="raw")
    out = tmp_path / "converted"
    tokmill.convert(
        made.out / "train.bin",
        out,
        format="llmc",
        from_format="raw",
        from_dtype="uint16",
        from_eot="after",
        from_eot_id=50256,
        from_tokenizer="gpt2",
    )
    assert repair_in_process(out) == []
    flip(out / "train_000000.bin", 5000)
    with pytest.raises(UsageError, match="bare files") as caught:
        repair_in_process(out)
    assert (caught.value.exit_code, caught.value.where) == (2, "manifest.json")
    assert "--fresh" in str(caught.value.next_step)
