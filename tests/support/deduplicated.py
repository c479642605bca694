"""What an output without copies must be, from documents in memory: sets of Python."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracle import EOT

import tokmill
from tokmill.core.manifest import load_manifest
from tokmill.derive import document_stream, source as sources
from tokmill.derive.deduplication import copying, exact, gathering, marking, scratch


def documents_of(out: Path) -> tuple[list[bytes], list[bytes]]:
    """The two sides of an output, document by document, as the bytes of their ids without end-of-text ids."""
    eot = load_manifest(out).content.eot
    with tokmill.open(out) as data:
        sides = [np.asarray(side) for side in (data.train, data.val)]
    found = []
    for ids in sides:
        marks = np.flatnonzero(ids == EOT).tolist()
        edges = list(itertools.pairwise([*marks, len(ids)] if eot == "before" else [-1, *marks]))
        found.append([ids[a + 1 : b].astype(np.uint16).tobytes() for a, b in edges])
    return found[0], found[1]


def audit_of(out: Path) -> list[dict[str, Any]]:
    path = out / "removed.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@contextlib.contextmanager
def tiny(bucket_bytes: int = 1000, block_tokens: int = 50, commit_bytes: int = 300) -> Iterator[None]:
    """Buckets, blocks and commits so small that a small corpus has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marking, "BUCKET_BYTES", bucket_bytes)
        patch.setattr(marking, "COMMIT_BYTES", commit_bytes)
        patch.setattr(copying, "COMMIT_BYTES", commit_bytes)
        patch.setattr(scratch, "_LEAST_PIECE", 100)
        patch.setattr(scratch, "_READ_RECORDS", 7)
        patch.setattr(gathering, "_PIECE_BYTES", 16)
        patch.setattr(exact, "_LENGTH_BITS", 3)
        patch.setattr(exact, "_MOST_LENGTH", 7)
        patch.setattr(document_stream, "BLOCK_TOKENS", block_tokens)
        patch.setattr(sources, "BLOCK_TOKENS", block_tokens)
        yield


def unique(sides: Sequence[tuple[list[bytes], list[bytes]]], against: Sequence[bytes] = ()) -> tuple[list[bytes], list[int]]:
    """Documents of the training sides that stay, in order, and the numbers of those that go, counted through all training sides.

    sides: of each output, the documents of its training and validation side.
    """
    seen = {*against, *(document for _, val in sides for document in val)}
    stay, go = [], []
    for number, document in enumerate(document for train, _ in sides for document in train):
        if document in seen:
            go.append(number)
        else:
            stay.append(document)
            seen.add(document)
    return stay, go


_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MULTIPLIER = 0xD1342543DE82EF95


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def ngrams(ids: Sequence[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}


def signature(ids: Sequence[int], n: int, length: int) -> list[int]:
    """The smallest products of the hashes of n-grams and each of `length` multipliers."""
    hashes = set()
    for gram in ngrams(ids, n):
        value = 0
        for each in gram:
            value = (value * _MULTIPLIER + each) & _MASK
        hashes.add(_mix((value + _STEP) & _MASK) >> 32)
    # The key of seed 0 and the purpose 8.
    key = _mix((_mix(0) + 9 * _STEP) & _MASK)
    multipliers = [_mix((place * _STEP + key) & _MASK) >> 32 | 1 for place in range(length)]
    return [min(each * multiplier & 0xFFFFFFFF for each in hashes) for multiplier in multipliers]


def near(
    documents: Sequence[Sequence[int]],
    n_protected: int,
    threshold: float,
    n: int,
    bands: int,
    rows: int,
    shortest: int,
    measure: str,
) -> dict[int, tuple[int, int, int]]:
    """Near copies among documents, the first `n_protected` of which stay: by number, which stays, n-grams shared, of how many."""
    grams = [ngrams(ids, n) for ids in documents]
    signed = [signature(ids, n, bands * rows) if len(ids) >= max(shortest, n) else None for ids in documents]
    stay: list[int] = []
    gone: dict[int, tuple[int, int, int]] = {}
    for number in range(len(documents)):
        ours = signed[number]
        if ours is None:
            continue
        shares = {
            other: sum(ours[b * rows : (b + 1) * rows] == theirs[b * rows : (b + 1) * rows] for b in range(bands))
            for other in stay
            if (theirs := signed[other]) is not None
        }
        if number >= n_protected:
            for other in sorted((each for each in shares if shares[each]), key=lambda each: (-shares[each], each)):
                shared = len(grams[number] & grams[other])
                of = len(grams[number] | grams[other]) if measure == "jaccard" else len(grams[number])
                if shared / of >= threshold:
                    gone[number] = (other, shared, of)
                    break
        if number not in gone:
            stay.append(number)
    return gone
