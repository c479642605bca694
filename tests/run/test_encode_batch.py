"""One batch from text to tokens: EOT ids, sides, ranges, policy, counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import xxhash
from hypothesis import given, strategies as st
from support.records import ByteEncoder, a_batch, a_content, a_tokenizer

from tokmill.core.errors import AuditError, BadTextError, EngineError
from tokmill.core.records import EncodedBatch
from tokmill.run.audit import Auditor
from tokmill.run.encode_batch import EncodeStage

EOT = 50256


def run(documents: list[bytes], *, batch: dict[str, object] | None = None, **content: object) -> EncodedBatch:
    stage = EncodeStage(a_content(**content), ByteEncoder(), Auditor(ByteEncoder, None, 0.0))
    return stage.run(a_batch(documents, **(batch or {})))


def side(encoded: EncodedBatch, *, is_val: bool) -> tuple[list[int], list[int]]:
    """Ids and ends of one side, ends counted from its first id."""
    ids: list[int] = []
    ends: list[int] = []
    for tokens in encoded.runs:
        if tokens.is_val == is_val:
            ends += [len(ids) + e for e in tokens.ends.tolist()]
            ids += tokens.ids.tolist()
    return ids, ends


@given(
    documents=st.lists(st.binary(max_size=6).map(lambda b: bytes(c & 0x7F for c in b)), max_size=600),
    eot=st.sampled_from(["before", "after", "none"]),
    val_fraction=st.sampled_from([0.0, 0.01, 0.5, 0.99]),
    keep_empty=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_tokens_ends_and_counts_are_those_of_a_plain_loop(
    documents: list[bytes], eot: str, val_fraction: float, keep_empty: bool, seed: int
) -> None:
    encoded = run(documents, eot=eot, val_fraction=val_fraction, keep_empty=keep_empty, seed=seed)
    ids: tuple[list[int], list[int]] = ([], [])
    ends: tuple[list[int], list[int]] = ([], [])
    for document in documents:
        if document or keep_empty:
            to = xxhash.xxh3_64_intdigest(document, seed) < val_fraction * 2**64
            ids[to].extend([EOT] * (eot == "before") + list(document) + [EOT] * (eot == "after"))
            ends[to].append(len(ids[to]))
    assert side(encoded, is_val=False) == (ids[0], ends[0])
    assert side(encoded, is_val=True) == (ids[1], ends[1])
    counts = encoded.counts
    assert (counts.tokens_train, counts.tokens_val) == (len(ids[0]), len(ids[1]))
    assert (counts.documents_train, counts.documents_val) == (len(ends[0]), len(ends[1]))
    assert counts.documents == counts.documents_train + counts.documents_val + sum(counts.skipped.values())


@pytest.mark.parametrize("is_val", [False, True])
@pytest.mark.parametrize(
    ("eot", "head", "tail", "ids", "ends"),
    [
        ("after", False, True, [97, 98], []),
        ("after", True, True, [97, 98], []),
        ("after", True, False, [97, 98, EOT], [3]),
        ("before", False, True, [EOT, 97, 98], []),
        ("before", True, False, [97, 98], [2]),
        ("none", True, False, [97, 98], [2]),
    ],
)
def test_a_piece_of_a_document_has_its_eot_at_the_documents_edge_only(
    is_val: bool, eot: str, head: bool, tail: bool, ids: list[int], ends: list[int]
) -> None:
    encoded = run([b"ab"], eot=eot, batch={"is_val": is_val, "head_open": head, "tail_open": tail})
    assert side(encoded, is_val=is_val) == (ids, ends)
    assert side(encoded, is_val=not is_val) == ([], [])


def test_an_empty_piece_still_ends_its_document() -> None:
    encoded = run([b""], batch={"is_val": False, "head_open": True})
    assert side(encoded, is_val=False) == ([EOT], [1])


class HighEncoder(ByteEncoder):
    """Returns one id that is too large, or the EOT id."""

    def __init__(self, bad_id: int) -> None:
        super().__init__()
        self._bad_id = bad_id

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = super().encode(documents, raw)
        ids[-1] = self._bad_id
        return ids, offsets


@pytest.mark.parametrize("bad_id", [50256, 50257, 65535, 65536, 2**32 - 1])
def test_an_id_that_does_not_fit_or_forges_an_eot_is_an_error_never_a_wrap(bad_id: int) -> None:
    stage = EncodeStage(a_content(), HighEncoder(bad_id), Auditor(ByteEncoder, None, 0.0))
    with pytest.raises(EngineError, match=f"{bad_id:,}") as caught:
        stage.run(a_batch([b"abc"]))
    assert caught.value.next_step == "run again with --engine tiktoken --fresh (slow, exact); if it stays, report it"


def test_the_advice_about_an_id_fits_the_kind_of_tokenizer() -> None:
    content = a_content(tokenizer=a_tokenizer(kind="huggingface"))
    stage = EncodeStage(content, HighEncoder(50256), Auditor(ByteEncoder, None, 0.0))
    with pytest.raises(EngineError, match="50,256") as caught:
        stage.run(a_batch([b"abc"]))
    assert "--engine tokenizers --fresh" in str(caught.value.next_step)
    assert "--eot-token" in str(caught.value.next_step)


def test_ids_above_65535_are_kept_in_uint32() -> None:
    content = a_content(tokenizer=a_tokenizer(n_ids=100277, eot_id=100257), dtype="uint32")
    encoded = EncodeStage(content, HighEncoder(100276), Auditor(ByteEncoder, None, 0.0)).run(a_batch([b"abc"]))
    assert encoded.runs[0].ids.tolist() == [97, 98, 100276, 100257]
    assert encoded.runs[0].ids.dtype == np.uint32


BROKEN = [b"good", b"b\xffd", "é".encode(), b"\xe2\x82"]


def raw_batch(documents: list[bytes]) -> dict[str, object]:
    return {"raw": memoryview(b"|".join(documents))}


def test_strict_names_document_and_byte() -> None:
    with pytest.raises(BadTextError) as caught:
        run(BROKEN, batch=raw_batch(BROKEN))
    assert "0xff at byte 1 of the document" in caught.value.what
    assert "document 2" in str(caught.value.where)
    assert "--encoding-errors replace" in str(caught.value.next_step)


@pytest.mark.parametrize("policy", ["replace", "ignore"])
def test_replace_and_ignore_are_those_of_python_and_counted(policy: str) -> None:
    encoded = run(BROKEN, batch=raw_batch(BROKEN), encoding_errors=policy, val_fraction=0.0, eot="none")
    expected = b"".join(d.decode("utf-8", policy).encode() for d in BROKEN)
    assert side(encoded, is_val=False)[0] == list(expected)
    assert encoded.counts.invalid_utf8_documents == 2
    assert encoded.counts.invalid_utf8_bytes == 3


def test_skipped_text_is_counted_and_recorded() -> None:
    encoded = run(BROKEN, batch=raw_batch(BROKEN), on_error="skip", val_fraction=0.0)
    assert encoded.counts.skipped == {"invalid_utf8": 2}
    assert [(s.record, s.reason) for s in encoded.skips] == [(2, "invalid_utf8"), (4, "invalid_utf8")]
    assert encoded.counts.documents_train == 2


class WrongEncoder(ByteEncoder):
    """Differs from the reference in one byte value."""

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = super().encode(documents, raw)
        ids[ids == ord("q")] = 7
        return ids, offsets


def test_the_audit_stops_a_wrong_engine_and_names_the_document() -> None:
    auditor = Auditor(ByteEncoder, None, 1.0, "tokenizers")
    encoded = EncodeStage(a_content(), WrongEncoder(), auditor).run(a_batch([b"fine", b"a queue"]))
    auditor.check(encoded.samples[0])
    with pytest.raises(AuditError) as caught:
        auditor.check(encoded.samples[1])
    assert "document 2" in str(caught.value.where)
    assert "[97, 32, 7, 117, 101]" in caught.value.what
    assert "--engine tokenizers --fresh" in (caught.value.next_step or "")


def test_the_first_document_of_a_run_is_always_audited() -> None:
    stage = EncodeStage(a_content(), ByteEncoder(), Auditor(ByteEncoder, None, 1e-12))
    assert stage.run(a_batch([b"abc", b"def"])).counts.audited_documents == 1
    assert stage.run(a_batch([b"abc", b"def"], index=1)).counts.audited_documents == 0


def test_the_sample_is_about_the_fraction_of_the_bytes_for_short_and_long_documents() -> None:
    class EveryByte:
        def last(self, text: bytes | bytearray, limit: int) -> int:
            return min(limit, len(text) - 1)

        def first(self, text: bytes | bytearray, start: int) -> int:
            return start

    rng = np.random.default_rng(1)
    for n_documents, size in ((4000, 500), (200, 400_000)):
        documents = [rng.integers(97, 122, size, np.uint8).tobytes() for _ in range(n_documents)]
        auditor = Auditor(ByteEncoder, EveryByte(), 0.01)
        stage = EncodeStage(a_content(), ByteEncoder(), auditor)
        counts = stage.run(a_batch(documents, index=1)).counts
        share = counts.audited_bytes / (n_documents * size)
        # The weight of a long document assumes four bytes a token; here a token is a byte.
        assert 0.004 < share < 0.08, (size, share)
