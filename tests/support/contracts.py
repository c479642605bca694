"""What every implementation of a contract must do. A test module derives a class and says how one is made."""

from __future__ import annotations

import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.reading import SpaceCutter, read_all
from support.writing import Sides, a_spec, cut_runs, documents_of, written_files, written_files_of_deaths

from tokmill.check.verification import verify
from tokmill.core.errors import EngineError
from tokmill.core.output_spec import OutputSpec, Shards
from tokmill.core.protocols import Encoder
from tokmill.core.records import Input, Tokens

documents = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).map(str.encode), max_size=8)
inherited = settings(suppress_health_check=[HealthCheck.differing_executors])
"""For properties: each class that derives runs them with encoders of its own."""
PROSE = "It was the best of times, it was the worst of times; don't you think? 1859, 12 345 €. Да. 你好。🤖\n\n".encode()


class EncoderContract(ABC):
    """Of `protocols.Encoder`, for GPT-2's tokenizer."""

    @abstractmethod
    def make(self) -> Encoder: ...

    def encoder(self) -> Encoder:
        """One for the class: loading takes longer than a test."""
        cls = type(self)
        if "made" not in cls.__dict__:
            cls.made = self.make()  # type: ignore[attr-defined]
        made: Encoder = cls.made  # type: ignore[attr-defined]
        return made

    @inherited
    @given(documents)
    def test_arrays_have_the_promised_types_and_bounds(self, texts: list[bytes]) -> None:
        ids, offsets = self.encoder().encode(texts)
        assert ids.dtype == np.uint32
        assert offsets.dtype == np.int64
        assert offsets.shape == (len(texts) + 1,)
        assert offsets[0] == 0
        assert offsets[-1] == len(ids)
        assert ids.flags.c_contiguous

    @inherited
    @given(documents)
    def test_decoding_gives_the_text_back(self, texts: list[bytes]) -> None:
        ids, offsets = self.encoder().encode(texts)
        assert [self.encoder().decode(ids[a:b]) for a, b in itertools.pairwise(offsets)] == texts

    @inherited
    @given(documents)
    def test_documents_do_not_know_of_one_another(self, texts: list[bytes]) -> None:
        ids, offsets = self.encoder().encode(texts)
        for i, text in enumerate(texts):
            assert np.array_equal(self.encoder().encode([text])[0], ids[offsets[i] : offsets[i + 1]])

    @pytest.mark.parametrize("text", [b"<|endoftext|>", b"a<|endoftext|>b", b"<|fim_prefix|> <|endofprompt|>", b"<|endoftext|"])
    def test_text_never_becomes_a_special_token(self, text: bytes) -> None:
        ids, _ = self.encoder().encode([text])
        assert len(ids) > 1
        assert ids.max() < 50256
        assert self.encoder().decode(ids) == text

    def test_any_sequence_of_documents_will_do(self) -> None:
        assert np.array_equal(self.encoder().encode((PROSE, b"a"))[0], self.encoder().encode([PROSE, b"a"])[0])

    def test_a_cache_reset_does_not_change_what_comes_out(self) -> None:
        encoder = self.make()
        before = encoder.encode([PROSE * 50, b"x"])
        encoder.reset_caches()
        after = encoder.encode([PROSE * 50, b"x"])
        assert np.array_equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])

    def test_ids_outlive_the_cache_reset_and_the_encoder(self) -> None:
        encoder = self.make()
        ids, _ = encoder.encode([PROSE])
        kept = ids.tolist()
        encoder.reset_caches()
        del encoder
        assert ids.tolist() == kept

    @pytest.mark.parametrize("bad", [50256, 50257, 2**31, 2**32 - 1])
    def test_an_id_outside_the_vocabulary_is_an_engine_error(self, bad: int) -> None:
        with pytest.raises(EngineError) as caught:
            self.encoder().decode(np.array([0, bad], np.uint32))
        assert caught.value.allowed
        assert caught.value.next_step

    def test_no_ids_are_no_bytes(self) -> None:
        assert self.encoder().decode(np.zeros(0, np.uint32)) == b""


class WriterContract(ABC):
    """Of `protocols.Writer`, in one format: what it writes depends on the tokens alone, and can be read without tokmill."""

    spec: OutputSpec

    @abstractmethod
    def read(self, directory: Path) -> Sides:
        """Both sides, by plain numpy, struct, gzip and json: ids, and documents where the format marks them."""

    def sharded(self) -> list[OutputSpec]:
        """The spec, and with shards so small that all boundaries are met."""
        unit = 2048 if self.spec.format == "mds" else 1
        sizes = [Shards(tokens=n * unit) for n in (1, 3, 7)]
        if self.spec.format in ("megatron", "datatrove", "olmo"):
            sizes = [Shards(tokens=size.tokens, whole_documents=True) for size in sizes]
        elif unit == 1:
            sizes.append(Shards(tokens=5, whole_documents=True))
        return [self.spec, *(a_spec(self.spec, shards=size) for size in sizes)]

    def runs(self, spec: OutputSpec) -> list[Tokens]:
        return cut_runs(documents_of(spec), spec, every=5)

    def test_plain_readers_find_every_token_and_every_document(self, tmp_path: Path) -> None:
        documents = documents_of(self.spec)
        written_files(tmp_path, self.spec, self.runs(self.spec))
        found = self.read(tmp_path)
        for side in ("train", "val"):
            ids, split = found[side]
            wanted = [ids for is_val, ids in documents if is_val == (side == "val")]
            assert ids == list(itertools.chain.from_iterable(wanted))
            assert split is None or split == wanted

    def test_runs_may_be_cut_anywhere(self, tmp_path: Path) -> None:
        for n, spec in enumerate(self.sharded()):
            documents = documents_of(spec)
            ways = [cut_runs(documents, spec, every=every) for every in (1, 2, 9, 10**6)]
            made = [written_files(tmp_path / f"{n}-{i}", spec, runs) for i, runs in enumerate(ways)]
            assert made[1:] == made[:-1], spec.shards

    def test_a_run_that_is_cut_at_any_commit_goes_on_with_the_same_bytes(self, tmp_path: Path) -> None:
        for n, spec in enumerate(self.sharded()):
            runs = self.runs(spec)
            whole = written_files(tmp_path / f"{n}", spec, runs)
            assert written_files_of_deaths(tmp_path / f"{n}-all", spec, runs, range(len(runs) + 1)) == whole, spec.shards
            for at in range(0, len(runs) + 1, 1 + len(runs) // 8):
                assert written_files_of_deaths(tmp_path / f"{n}-{at}", spec, runs, [at]) == whole, (spec.shards, at)

    def test_a_run_that_dies_before_it_publishes_does_not_end_its_files_twice(self, tmp_path: Path) -> None:
        for n, spec in enumerate(self.sharded()):
            whole = written_files(tmp_path / f"{n}", spec, self.runs(spec))
            assert written_files(tmp_path / f"{n}-twice", spec, self.runs(spec), n_deaths=2) == whole, spec.shards

    def test_verify_finds_nothing_wrong(self, tmp_path: Path) -> None:
        for n, spec in enumerate(self.sharded()):
            written_files(tmp_path / f"{n}", spec, self.runs(spec))
            assert verify(tmp_path / f"{n}").problems == [], spec.shards

    def test_verify_finds_every_flipped_bit(self, tmp_path: Path) -> None:
        spec = self.sharded()[-1]
        for name, data in written_files(tmp_path, spec, self.runs(spec)[:12]).items():
            assert flips_found(tmp_path, name, data) == [], name

    def test_a_side_without_a_document_is_no_damage(self, tmp_path: Path) -> None:
        for n, spec in enumerate(self.sharded()):
            runs = [run for run in self.runs(spec) if not run.is_val]
            for some, name in ((runs, "one"), ([], "none")):
                written_files(tmp_path / f"{n}-{name}", spec, some)
                assert verify(tmp_path / f"{n}-{name}").problems == []


def flips_found(directory: Path, name: str, data: bytes) -> Sequence[int]:
    """Bytes of a file, forty of them, in which one bit could be another and nobody would know."""
    missed = []
    for at in range(0, len(data), 1 + len(data) // 40):
        (directory / name).write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        if verify(directory).ok:
            missed.append(at)
    (directory / name).write_bytes(data)
    return missed


class ReaderContract(ABC):
    """Of `protocols.Reader`, for one format: the documents are a plain parser's, for every size of batch and from every cursor."""

    rows: ClassVar[list[str]] = [
        *("", "one", " two\r\n\r\nthree, \"four\"\t'five'", "\0", "é€🤖", "a" * 3000, "word " * 700, "\n", "\ufeffsix"),
        *(f"document {i}" for i in range(16)),
    ]
    """Documents that every format can hold."""

    @abstractmethod
    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        """A corpus with these documents in this order, and what makes it up."""

    @abstractmethod
    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        """The documents, by another parser."""

    @pytest.mark.parametrize("batch_bytes", [1, 64, 1000, 1 << 20])
    @pytest.mark.parametrize("cutter", [None, SpaceCutter()], ids=["whole", "cut"])
    def test_the_documents_are_a_plain_parsers_from_every_cursor(
        self, tmp_path: Path, batch_bytes: int, cutter: SpaceCutter | None
    ) -> None:
        inputs = self.write(tmp_path, self.rows)
        reading = read_all(inputs, cutter, sizes={"batch_bytes": batch_bytes})
        assert reading.texts == [row.encode() for row in self.rows]
        assert reading.texts == self.plain(inputs)
        assert reading.counts.documents == len(self.rows)

    def test_nothing_at_all_is_no_document(self, tmp_path: Path) -> None:
        assert read_all(self.write(tmp_path, [])).texts == self.plain(self.write(tmp_path, []))

    @settings(inherited, max_examples=40)
    @given(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x1e"), max_size=30), max_size=12), st.integers(1, 200)
    )
    def test_any_text_comes_out_as_it_went_in(self, rows: list[str], batch_bytes: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            inputs = self.write(Path(directory), rows)
            assert read_all(inputs, sizes={"batch_bytes": batch_bytes}).texts == self.plain(inputs)

    def test_a_long_document_is_divided_alike_for_every_batch(self, tmp_path: Path) -> None:
        rows = ["short", "word " * 4000, "after"]
        inputs = self.write(tmp_path, rows)
        sizes = {"divide_above_bytes": 9000, "block_bytes": 1000}
        readings = [read_all(inputs, SpaceCutter(), val_fraction=0.5, sizes=sizes | {"batch_bytes": n}) for n in (300, 1000, 2500)]
        assert readings[0] == readings[1] == readings[2]
        assert readings[0].counts.parts_added > 0
        assert sum(map(len, readings[0].texts)) == sum(map(len, rows))
