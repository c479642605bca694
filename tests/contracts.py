"""What every implementation of a contract must do. A test module derives a class and says how one is made."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokmill.errors import EngineError
from tokmill.protocols import Encoder

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

    def test_renewing_does_not_change_what_comes_out(self) -> None:
        encoder = self.make()
        before = encoder.encode([PROSE * 50, b"x"])
        encoder.renew()
        after = encoder.encode([PROSE * 50, b"x"])
        assert np.array_equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])

    def test_ids_outlive_the_renewal_and_the_encoder(self) -> None:
        encoder = self.make()
        ids, _ = encoder.encode([PROSE])
        kept = ids.tolist()
        encoder.renew()
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
