"""Which tokenizer a name means, and the files behind it. A `.tiktoken` file is known by the SHA-256 of its content, never by its name:
the file holds ranks alone, and with another encoding's pattern it would give wrong tokens that look right."""

from __future__ import annotations

import hashlib
import os
from importlib.resources import files

import msgspec

from tokmill.errors import ChangedError, UsageError
from tokmill.types import Tokenizer, path_to_text, text_to_path


class Encoding(msgspec.Struct, frozen=True):
    """A published encoding. Source of hashes, patterns and ids: tiktoken's `openai_public.py`."""

    name: str
    sha256: str
    """Of its file of ranks."""
    pattern: str
    eot_id: int
    n_ids: int
    """Largest rank or the EOT id, plus one."""
    engine_pattern: str | None
    """What gigatoken calls the pattern; None where its loader refuses the ranks."""


_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

ENCODINGS = {
    e.name: e
    for e in (
        Encoding("r50k_base", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", _GPT2, 50256, 50257, "gpt2"),
        # gigatoken refuses ranks with a gap, and this file leaves 50256 out.
        Encoding("p50k_base", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", _GPT2, 50256, 50281, None),
        Encoding("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", _CL100K, 100257, 100258, "cl100k"),
        Encoding("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", _O200K, 199999, 200000, "o200k"),
    )
}
_BUILT_IN = {"gpt2": "r50k_base", "r50k_base": "r50k_base"}


def resolve_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a person named: `gpt2`, or the path of a published encoding's `.tiktoken` file. Raises UsageError."""
    if name in _BUILT_IN:
        return _describe(name, str(files("tokmill") / "assets" / f"{_BUILT_IN[name]}.tiktoken"))
    if name.endswith(".tiktoken"):
        return _describe(name, os.path.abspath(name))
    raise UsageError(
        f"there is no tokenizer {name!r}",
        where="--tokenizer",
        allowed=f"{', '.join(_BUILT_IN)}, or the path of a .tiktoken file",
        next_step="--tokenizer gpt2, or --tokenizer ./cl100k_base.tiktoken",
    )


def load_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Token bytes and their ranks. Raises ChangedError when the file is not the one that was resolved."""
    import base64

    data = _read(text_to_path(tokenizer.path))
    check_file(tokenizer, data)
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines() if line)}


def check_file(tokenizer: Tokenizer, data: bytes | None = None) -> None:
    """Raises ChangedError when the tokenizer's file is not the one that was resolved."""
    if hashlib.sha256(_read(text_to_path(tokenizer.path)) if data is None else data).hexdigest() != tokenizer.sha256:
        raise ChangedError(
            "the tokenizer's file changed since the run was planned",
            where=tokenizer.path,
            allowed=f"the file with sha256 {tokenizer.sha256}",
            next_step="put the file back, then run the same command again",
        )


def _describe(name: str, path: str) -> Tokenizer:
    sha256 = hashlib.sha256(_read(path)).hexdigest()
    encoding = next((e for e in ENCODINGS.values() if e.sha256 == sha256), None)
    if encoding is None:
        raise UsageError(
            "the file is not that of a published encoding: its sha256 is " + sha256,
            where=path,
            allowed=", ".join(f"{e.name} ({e.sha256[:12]}...)" for e in ENCODINGS.values()),
            next_step="fetch the file again (it may be damaged), or use --tokenizer gpt2",
        )
    return Tokenizer(
        name=name,
        kind="tiktoken",
        encoding=encoding.name,
        path=path_to_text(path),
        sha256=sha256,
        n_ids=encoding.n_ids,
        eot_id=encoding.eot_id,
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"cannot read the tokenizer's file: {error.strerror}",
            where=path,
            allowed="a readable .tiktoken file",
            next_step="check the path, or use --tokenizer gpt2",
        ) from None
