"""The fast engine: gigatoken.

The difficulty is memory: its cache of pieces has no bound in 0.10.0, and only dropping the tokenizer frees it (`reset_caches`).
One tokenizer a thread with `parallel=False`, as two with a cache each are a third faster than the engine's own pool on one.
Documents that lie in one buffer go in as that buffer and are parted by the engine (a tenth faster than a list of them). Ids that
the engine would panic at are checked first; a panic that comes anyway becomes an EngineError.

Results come as an awkward array: importing awkward takes 0.15 s and making the array 0.8 ms a batch, a tenth of the encoding. In
a process of our own `encode.disable_awkward` puts a few lines in its place; elsewhere awkward is what it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gigatoken import BytesSource, Tokenizer as Engine

from tokmill.core.documents import NO_BYTE, DocumentBuffer
from tokmill.core.errors import EngineError, UsageError
from tokmill.encode.engines import engine_error, unknown_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_PRETOKENIZERS = {"r50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}
"""Gigatoken's names of the encodings' patterns. Not p50k_base: its ranks lack 50256, and the loader wants them dense."""


class GigatokenEncoder:
    """Implements `protocols.Encoder`."""

    _is_byte_level = True

    def __init__(self, encoding: str, pattern: str, ranks: Callable[[], str]) -> None:  # noqa: ARG002  it has the patterns built in
        """ranks: checks the file of ranks and returns its path. Raises UsageError, and what `ranks` raises."""
        if encoding not in _PRETOKENIZERS:
            raise UsageError(
                f"gigatoken cannot load {encoding}",
                option="--engine",
                allowed=f"gigatoken for {', '.join(_PRETOKENIZERS)}; tiktoken for every encoding",
                next_step="run again with --engine tiktoken (the same ids, slower)",
            )
        # Without special tokens no text can become one.
        make = partial(Engine.from_tiktoken, pretokenizer=_PRETOKENIZERS[encoding], special_tokens={})
        self._begin(ranks, make)

    def _begin(self, load: Callable[[], Any], make: Callable[[Any], Engine]) -> None:
        """load: checks the file and returns what `make` takes."""
        self._load = load
        self._make = make
        self._engine: Engine | None = None
        self.reset_caches()

    def encode(
        self,
        documents: Sequence[bytes],
        raw: memoryview | None = None,  # noqa: ARG002  the contract's
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """See the contract. The arrays are memory of the engine's result, which no later call touches. Raises EngineError."""
        if not documents:
            return np.zeros(0, np.uint32), np.zeros(1, np.int64)
        try:
            ids, offsets = _arrays(
                self._loaded().encode_batch(_texts(documents, is_byte_level=self._is_byte_level), parallel=False)
            )
        except BaseException as error:
            raise _failed(error) from error
        if ids.dtype != np.uint32 or len(offsets) != len(documents) + 1 or offsets[0] or offsets[-1] != len(ids):
            raise EngineError(
                f"gigatoken returned {len(offsets) - 1:,} documents of {len(ids):,} {ids.dtype} ids",
                where="a batch of the engine",
                allowed=f"{len(documents):,} documents of uint32 ids",
                next_step="pip install gigatoken==0.10.0, then run the same command again",
                resumes=True,
            )
        return ids, offsets

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """See the contract. Raises EngineError."""
        engine = self._loaded()
        if len(ids) and int(ids.max()) >= engine.vocab_size:
            raise unknown_id(f"no token has the id {int(ids.max()):,}", f"ids below {engine.vocab_size:,}")
        try:
            return bytes(engine.decode(np.ascontiguousarray(ids, np.uint32)))
        except BaseException as error:
            raise _failed(error) from error

    def reset_caches(self) -> None:
        """Drop the tokenizer with its cache and load it again: 40 ms, and the next 60 MB run at a quarter of the speed."""
        source = self._load()
        self._engine = None  # before the new one is loaded, so that there are never two
        try:
            self._engine = self._make(source)
        except BaseException as error:
            raise _failed(error) from error

    def _loaded(self) -> Engine:
        if self._engine is None:
            self.reset_caches()
        assert self._engine is not None
        return self._engine


class GigatokenJsonEncoder(GigatokenEncoder):
    """The same for a tokenizer.json of a family that is proven. Implements `protocols.Encoder`."""

    def __init__(self, load: Callable[[], bytes], *, is_byte_level: bool) -> None:
        """Load the file.

        load: checks the file and returns it in the form for this engine. is_byte_level: whether the vocabulary is of bytes; over
        characters (SentencePiece), the engine does not part documents at a byte that is no character.

        Raises EngineError, and what `load` raises.
        """
        self._is_byte_level = is_byte_level
        self._begin(load, Engine.from_json)


def _texts(documents: Sequence[bytes], *, is_byte_level: bool) -> list[bytes] | BytesSource:
    """Return the documents in the form that the engine takes."""
    if isinstance(documents, DocumentBuffer) and (is_byte_level or NO_BYTE not in documents.separator):
        return BytesSource(documents.data, documents.separator)
    return documents if isinstance(documents, list) else list(documents)


def _arrays(result: Any) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the ids and offsets of the engine's result, an awkward array or what `disable_awkward` makes of it."""
    if isinstance(result, tuple):
        ids, lengths = result
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return ids, offsets
    ids, offsets = np.asarray(result.layout.content.data), np.asarray(result.layout.offsets.data)
    return ids[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0]


def _failed(error: BaseException) -> BaseException:
    """Return what to raise for what the engine raised."""
    return engine_error(
        error,
        "gigatoken",
        (ValueError, TypeError, RuntimeError, OSError),
        "any text",
        "run again with another --engine and --fresh (the same ids, slower), and report the document",
    )
