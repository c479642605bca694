"""Texts to learn from: .txt and .jsonl files, plain, .gz or .zst; by default the interpreter's own library sources."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

SEPARATOR = b"<|endoftext|>"


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        from isal import igzip

        return bytes(igzip.decompress(data))  # type: ignore[no-untyped-call]
    if path.suffix == ".zst":
        from backports import zstd

        return bytes(zstd.decompress(data))
    return data


def _jsonl_texts(data: bytes, key: str) -> bytes:
    return b"\n".join(json.loads(line)[key].encode("utf-8", "ignore") for line in data.splitlines() if line.strip())


def _text_of(path: Path, key: str) -> bytes:
    """The text of one file, separators turned into newlines; empty when it is not UTF-8."""
    data = _decompressed(path)
    text = _jsonl_texts(data, key) if ".jsonl" in path.suffixes else data.replace(SEPARATOR, b"\n")
    try:
        text.decode()
    except UnicodeDecodeError:
        print(f"{path}: not UTF-8, left out", file=sys.stderr)
        return b""
    return text


def library_sources() -> list[Path]:
    """The Python files of the interpreter's library, sorted; what was installed beside it is left out."""
    return [path for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")) if "site-packages" not in path.parts]


def load(paths: Iterable[Path], key: str, limit_bytes: int) -> bytes:
    """The texts of all files, one after the other, at most about limit_bytes (cut at a newline)."""
    texts: list[bytes] = []
    room = limit_bytes
    for path in paths:
        text = _text_of(path, key)
        texts.append(text if len(text) <= room else text[: text.rfind(b"\n", 0, room) + 1])
        room -= len(texts[-1])
        if room <= 0:
            break
    return b"\n".join(texts) + b"\n"
