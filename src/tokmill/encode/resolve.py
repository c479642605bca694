"""Which tokenizer a name means, and its file.

A `.tiktoken` file holds ranks alone, and with another encoding's pattern it gives wrong tokens that look right. So a file is
identified by its SHA-256 among the published encodings, never by its name, and any other file is an error. A tokenizer.json says
all that decides its ids, and is identified by its content too. GPT-2's file is part of the package; only the name of a repository
may lead to the network.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tokmill.core.errors import UsageError
from tokmill.core.extras import install_hint
from tokmill.core.records import Tokenizer, path_to_text, text_to_path
from tokmill.encode import hub
from tokmill.encode.end_of_text import CONFIG_NAME, find_eot
from tokmill.encode.families import OTHER
from tokmill.encode.published import BY_SHA256, ENCODINGS, MOST_RANKS_BYTES, encoding_of, path_here, tiktoken_cache_paths
from tokmill.encode.tokenizer_files import read_file
from tokmill.encode.tokenizer_json import FILE_NAME, changed, read_tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.encode.published import Encoding

BUILT_IN = ("gpt2", "r50k_base")
_MOST_ENTRIES = 10_000
"""Names in a directory, at most, among which one like a mistyped name is searched for."""


def resolve_tokenizer(name: str, eot_token: str | None = None, *, may_ask: bool = True) -> Tokenizer:
    """Return the tokenizer that a name means; `_KINDS` lists what a name may be.

    Args:
        name: Of an encoding, a model, a file, a directory or a repository.
        eot_token: The special token that ends documents, by its text or id; None: found by the rule in `end_of_text.py`.
        may_ask: Whether the network may be asked for a repository: not if the name is from a file of anybody's.

    Raises:
        UsageError: There is no such tokenizer, it cannot be used, or it is not clear which token ends a document.
    """
    for is_meant, resolve in _KINDS:
        if is_meant(name):
            return resolve(name, eot_token) if resolve is not _repo else _repo(name, eot_token, may_ask=may_ask)
    # Another tokenizer would make other ids.
    near, is_path = _nearest_path(name), "/" in name or name.endswith((".json", ".tiktoken", ".model"))
    raise UsageError(
        f"there is no tokenizer {name!r}" + (f"; did you mean {path_to_text(near)}?" if near else ""),
        option="--tokenizer",
        allowed=f"{', '.join(dict.fromkeys([*BUILT_IN, *ENCODINGS]))}; "
        f"the path of a .tiktoken file, of a {FILE_NAME} or its directory; "
        "a Hugging Face repository as owner/name@revision",
        suggested=path_to_text(near) if near else None if is_path else "gpt2",
        next_step="give the path where it is now" if is_path and not near else "or see tokmill vocab list",
    )


def resolve_with(name: str, eot_id: int | None) -> Tokenizer:
    """Return the tokenizer of files that hold ids already, with their end-of-text id if its own is not clear. Raises UsageError."""
    try:
        return resolve_tokenizer(name)
    except UsageError:
        if eot_id is None:
            raise
        return resolve_tokenizer(name, str(eot_id))


def reference_of(tokenizer: Tokenizer) -> str:
    """Return the engine whose ids are promised."""
    return "tokenizers" if tokenizer.kind == "huggingface" else "tiktoken"


def engine_of(tokenizer: Tokenizer, wanted: str) -> str:
    """Return the engine wanted, or the one that can load the tokenizer. Raises UsageError for the reference of another kind."""
    reference = reference_of(tokenizer)
    if wanted not in ("gigatoken", reference):
        raise UsageError(
            f"{wanted} cannot load {tokenizer.name}",
            option="--engine",
            allowed=f"gigatoken, {reference}",
            suggested=reference,
            next_step="or leave --engine out",
        )
    is_loaded = tokenizer.encoding != OTHER if reference == "tokenizers" else known_encoding(tokenizer).engine == "gigatoken"
    return "gigatoken" if wanted == "gigatoken" and is_loaded else reference


def engine_notice(tokenizer: Tokenizer) -> str:
    """Return what to say when gigatoken was wanted and the reference is used."""
    if tokenizer.kind == "tiktoken":
        return f"gigatoken cannot load {tokenizer.encoding}; tiktoken is used instead: the same ids, some 30 times slower"
    return (
        f"gigatoken is not proven to give the ids of {tokenizer.name}; Hugging Face tokenizers is used instead: exact, "
        "some 100 times slower, and no document is cut"
    )


def known_encoding(tokenizer: Tokenizer) -> Encoding:
    """Return the published encoding of a tokenizer. Raises UsageError if this version does not know it."""
    if tokenizer.encoding not in ENCODINGS:
        raise UsageError(
            f"there is no encoding {tokenizer.encoding!r}",
            where=f"tokenizer {tokenizer.name}",
            allowed=", ".join(ENCODINGS),
            next_step="pip install --upgrade tokmill",
        )
    return ENCODINGS[tokenizer.encoding]


def ranks_path(tokenizer: Tokenizer) -> str:
    """Return the path of the ranks, for `open`. Raises ChangedError if the file is not the one that was resolved."""
    path = text_to_path(tokenizer.path)
    try:
        found = _sha256(path)
    except UsageError as error:
        found = error.what
    if found != tokenizer.sha256:
        raise changed(tokenizer, found)
    return path


def _tiktoken_file(name: str, eot_token: str | None) -> Tokenizer:
    return _tiktoken(name, os.path.abspath(name), eot_token)


def _published(name: str, eot_token: str | None) -> Tokenizer:
    """Return a published encoding, by its name or that of a model."""
    encoding = encoding_of(name)
    assert encoding is not None
    path = path_here(ENCODINGS[encoding])
    if path is None:
        raise UsageError(
            f"the file of {encoding} is not on this machine" + ("" if encoding == name else f" ({name} has that encoding)"),
            where=", ".join(map(path_to_text, tiktoken_cache_paths(encoding))) or "TIKTOKEN_CACHE_DIR is empty",
            allowed=f"the published file, SHA-256 {ENCODINGS[encoding].sha256}, in a cache of tiktoken's, or its path",
            next_step=f"tokmill vocab fetch {encoding} --to DIR, with a network; then --tokenizer DIR/{encoding}.tiktoken",
        )
    return _tiktoken(name, path, eot_token)


def _json_file(name: str, eot_token: str | None) -> Tokenizer:
    path = os.path.join(name, FILE_NAME) if os.path.isdir(name) else name
    return _huggingface(path_to_text(name), os.path.abspath(path), eot_token)


def _repo(name: str, eot_token: str | None, *, may_ask: bool = True) -> Tokenizer:
    try:
        path, pinned = hub.fetch(name, FILE_NAME, CONFIG_NAME) if may_ask else hub.find(name, FILE_NAME)
    except UsageError as error:
        near = _nearest_path(name)
        if near is not None:
            error.what = f"{error.what}; did you mean the path {path_to_text(near)}?"
            error.option, error.suggested = "--tokenizer", path_to_text(near)
        raise
    return _huggingface(pinned, path, eot_token)


def _huggingface(name: str, path: str, eot_token: str | None) -> Tokenizer:
    """name: in the form of `path_to_text`. Raises UsageError."""
    file, sha256 = read_tokenizer_json(path)
    if find_spec("tokenizers") is None:
        raise UsageError(
            "a tokenizer.json needs Hugging Face tokenizers, which is not installed",
            where=name,
            allowed="an installation with the extra hf",
            next_step=f"{install_hint('hf')}, then run again",
        )
    file.check()
    eot_id = find_eot(file.special, path, eot_token, file.unfit)
    file.check_eot(eot_id)
    return Tokenizer(
        name=name,
        kind="huggingface",
        encoding=file.family(),
        path=path_to_text(path),
        sha256=sha256,
        # Special tokens too, though only EOT is written: a model has a row for each.
        n_ids=1 + max(eot_id, *file.tokens.values(), *(token.id for token in file.added)),
        eot_id=eot_id,
    )


def _tiktoken(name: str, path: str, eot_token: str | None) -> Tokenizer:
    """Return the published encoding whose ranks are in the file at `path`. Raises UsageError."""
    data = read_file(path, ".tiktoken file", MOST_RANKS_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 not in BY_SHA256:
        kind = next((kind for kind, is_one in _OTHER_FILES if is_one(data)), None)
        if kind:
            raise _of_another_kind(path, kind)
        raise UsageError(
            f"the file is not that of a published encoding, or it is damaged: its SHA-256 is {sha256}",
            where=path_to_text(path),
            allowed=", ".join(f"{e.name} ({e.sha256[:12]}...)" for e in ENCODINGS.values()),
            next_step="fetch the file again: tokmill vocab fetch NAME --to DIR",
        )
    encoding = BY_SHA256[sha256]
    if eot_token not in (None, "<|endoftext|>", str(encoding.eot_id)):
        raise UsageError(
            f"documents of {encoding.name} end with <|endoftext|>, not with {eot_token!r}",
            option="--eot-token",
            allowed=f"<|endoftext|> or {encoding.eot_id}",
            next_step="leave --eot-token out",
        )
    return Tokenizer(
        name=path_to_text(name),
        kind="tiktoken",
        encoding=encoding.name,
        path=path_to_text(path),
        sha256=sha256,
        # Special tokens other than EOT are never written.
        n_ids=max(encoding.n_ranks, encoding.eot_id + 1),
        eot_id=encoding.eot_id,
    )


_SENTENCEPIECE = "SentencePiece"


def _is_sentencepiece_model(data: bytes) -> bool:
    """Return whether a file begins like the messages of a SentencePiece model: a piece of a few bytes, and its score."""
    return len(data) > 8 and data[0] == data[2] == 0x0A and data[4 + data[3] : 5 + data[3]] == b"\x15"


def _is_sentencepiece_list(data: bytes) -> bool:
    """Return whether a file begins like the list of pieces and scores that is written beside a SentencePiece model."""
    return re.match(rb"(?:[^\t\n]+\t-?[0-9.]+(?:e-?[0-9]+)?\r?\n){3}", data[:4096]) is not None


_OTHER_FILES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    (f"a {_SENTENCEPIECE} model", _is_sentencepiece_model),
    (f"the list of pieces of a {_SENTENCEPIECE} model", _is_sentencepiece_list),
    ("a list of merges, one part of a tokenizer", lambda data: data.startswith(b"#version")),
)
"""What people take for a tokenizer's file."""


def _of_another_kind(path: str, kind: str) -> UsageError:
    """Return the error for a file that tokmill does not read, with the way to one that it reads."""
    recipe = f"give the {FILE_NAME} that belongs to it, or its directory"
    if _SENTENCEPIECE in kind:
        made = "from transformers import AutoTokenizer as A; A.from_pretrained('made').save_pretrained('made')"
        model = "FILE.model" if "list" in kind else shlex.quote(path_to_text(path))
        packages = "pip install transformers sentencepiece protobuf"
        recipe = f'{packages} && mkdir made && cp {model} made/tokenizer.model && python -c "{made}"'
    return UsageError(
        f"this is {kind}, which tokmill does not read",
        where=path_to_text(path),
        option="--tokenizer",
        allowed=f"a {FILE_NAME}, which can be made of it; then --tokenizer made" if _SENTENCEPIECE in kind else f"a {FILE_NAME}",
        next_step=recipe,
    )


def _nearest_path(name: str) -> str | None:
    """Return the tokenizer's file or directory whose path is most like a mistyped one, if one is."""
    parent, last = os.path.split(name.rstrip("/"))
    try:
        with os.scandir(parent or ".") as entries:
            found = [entry.name for entry in itertools.islice(entries, _MOST_ENTRIES) if _may_be_one(entry)]
    except (OSError, ValueError):
        return None
    import difflib

    return next((os.path.join(parent, match) for match in difflib.get_close_matches(last, found, 1)), None)


def _may_be_one(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir():
        return os.path.isfile(os.path.join(entry.path, FILE_NAME))
    return entry.name.endswith((".json", ".tiktoken"))


def _sha256(path: str) -> str:
    """Return the hash of a file of ranks. Raises UsageError."""
    return hashlib.sha256(read_file(path, ".tiktoken file", MOST_RANKS_BYTES)).hexdigest()


def _is_json(name: str) -> bool:
    """Return whether a name is that of a directory, or of a file that begins like JSON or ends in .json."""
    if os.path.isdir(name) or not os.path.isfile(name):
        return os.path.isdir(name) or name.endswith(".json")
    try:
        with open(name, "rb") as file:
            return name.endswith(".json") or file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False


_KINDS: tuple[tuple[Callable[[str], bool], Callable[[str, str | None], Tokenizer]], ...] = (
    (BUILT_IN.__contains__, _published),
    (lambda name: name.endswith(".tiktoken"), _tiktoken_file),
    (_is_json, _json_file),
    (os.path.isfile, _tiktoken_file),
    (lambda name: encoding_of(name) is not None, _published),
    (hub.is_repo, _repo),
)
"""Tests of a name and what resolves it; the first test that is true decides. A new kind of tokenizer is a row here."""
