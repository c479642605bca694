"""A tokenizer.json: what it says, and the form in which engines load it.

Text must never become a special token, and there are two ways how it could. Through the added tokens: the reference is told to
leave special ones alone (`encode_special_tokens`), and the fast engine is not given them. Through the vocabulary itself, in which a
special token is an entry like any other to Unigram, WordPiece and BPE with `ignore_merges`: there its entry is renamed to what no
text can match, so that no id moves. A file whose merges make a special token of text is an error.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.records import Tokenizer, path_to_text, text_to_path
from tokmill.encode.families import OTHER, byte_characters, classify, is_byte_token
from tokmill.encode.tokenizer_files import read_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

FILE_NAME = "tokenizer.json"
_TYPES = ("BPE", "Unigram", "WordPiece")
_SAMPLING = ("dropout", "alpha", "nbest_size")
"""Settings of a model that draw subwords at random for training: with them, text has other ids each time."""
_LONGEST_WORD = 100
"""Characters of a word beyond which WordPiece does not look into its vocabulary, where the file names no other number."""
_MOST_WORD = 10_000
"""The largest such number: WordPiece takes time with its square, and special tokens are given longer names."""
_MOST_IDS = 1 << 22
"""A model has a row for each id, and so have tables here; the largest published vocabularies have 1 M."""
_MOST_ADDED_CHARACTERS, _MOST_ADDED_SQUARES = 256, 32 << 20
"""The longest added token, and the largest sum of squared lengths: all beginnings of each are kept to find safe cuts."""

Id = Annotated[int, msgspec.Meta(ge=0, lt=_MOST_IDS)]


class AddedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token beside the vocabulary, or marked in it."""

    id: Id
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a model says beside its vocabulary, as far as it is looked at here."""

    type: str | None = None
    unk_token: str | None = None
    unk_id: int | None = None
    byte_fallback: bool | None = None
    fuse_unk: bool | None = None
    ignore_merges: bool | None = None
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    max_input_chars_per_word: Annotated[int, msgspec.Meta(ge=0, le=_MOST_WORD)] | None = None


class TokenizerFile:
    """The parsed content of a tokenizer.json."""

    def __init__(self, data: bytes, where: str) -> None:
        """Parse it. where: names the file in errors. Raises UsageError if it is not a tokenizer.json."""
        self._where = where
        self._parts: dict[str, msgspec.Raw] = {}
        self._parts = self._decoded(data, dict[str, msgspec.Raw])
        if "model" not in self._parts:
            what = "the file has no model: it is another part of a tokenizer, or of no tokenizer"
            raise self._error(what, f"the {FILE_NAME} that lies beside vocab.json and tokenizer_config.json")
        self._model = self._decoded(self._parts["model"], dict[str, msgspec.Raw])
        self._settings: _Settings = self._decoded(self._parts["model"], _Settings)
        self.added = self._decoded(self._parts.get("added_tokens", b"[]"), list[AddedToken] | None) or []
        self.type = self._settings.type or "BPE"
        if self.type not in _TYPES:
            raise self._error(f"its model is {self.type}, whose ids text could forge", f"a model of {', '.join(_TYPES)}")

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Tokens of the model and their ids. Raises UsageError."""
        data = self._model.get("vocab", b"null")
        if self.type != "Unigram":
            tokens: dict[str, int] = self._decoded(data, dict[str, Id], "its vocabulary")
            return tokens
        return {piece: i for i, (piece, _) in enumerate(self._decoded(data, list[tuple[str, float]], "its vocabulary"))}

    @cached_property
    def special(self) -> dict[str, int]:
        """The special tokens and their ids."""
        return {token.content: token.id for token in self.added if token.special}

    @property
    def plain(self) -> list[AddedToken]:
        """The added tokens that are not special: text that holds one becomes its id."""
        return [token for token in self.added if not token.special]

    @property
    def unfit(self) -> set[str]:
        """The special tokens that text can become, so that they cannot end documents."""
        unknown = self._unknown()
        made = {token for token in self.special if is_byte_token(token)} if self._settings.byte_fallback else set()
        return made | ({unknown} & self.special.keys() if unknown is not None and not self._knows_all() else set())

    def family(self) -> str:
        """Return the family of the tokenizer, added tokens included; `OTHER` is encoded by the reference."""
        if self.type != "BPE":
            return OTHER
        parts = {"normalizer": self._normalizer, "pre_tokenizer": self._part("pre_tokenizer")}
        found = classify(msgspec.structs.asdict(self._settings) | parts, self.tokens)
        return found if found == OTHER or self._are_matched_alike() else OTHER

    def check(self) -> None:
        """Raise UsageError if text could become a special token, or if ids are not those that the reference gives."""
        if self.type == "BPE":
            forged = next((made for made in self._merged() if made in self.special), None)
            if forged is not None:
                raise self._error(f"its merges make the special token {forged!r} of text", "special tokens that no text becomes")
            single = next(filter(self._is_symbol, self.special), None)
            if single is not None:
                raise self._error(
                    f"the special token {single!r} is what text with it becomes", "special tokens that no text becomes"
                )
        if self.type == "BPE" and self._renames and b'"ByteLevel"' not in bytes(self._parts.get("pre_tokenizer") or b""):
            raise self._error("text could become a special token (ignore_merges)", "special tokens outside the vocabulary")
        self._check_added(self.added)
        self._check_added(self._kept())

    def check_eot(self, eot_id: int) -> None:
        """Raise UsageError if text could become the token that ends documents."""
        eot = next(token for token, i in self.special.items() if i == eot_id)
        unfit = self.unfit
        if eot not in unfit:
            return
        how = "stands for a byte" if is_byte_token(eot) else "stands for what is not in the vocabulary"
        others = [token for token in self.special if token not in unfit]
        error = self._error(f"{eot!r} cannot end documents: it {how}, so text becomes it", "a special token that no text becomes")
        if others:
            error.option, error.suggested = "--eot-token", others[0]
            error.next_step = f"--eot-token '{others[0]}'" + (f", or another of {', '.join(others[:8])}" if others[1:] else "")
        raise error

    def for_reference(self) -> bytes:
        """Return the file for Hugging Face tokenizers, which must be told to leave special tokens alone."""
        return self._encoded(self._kept(), self._renames)

    def for_engine(self) -> bytes:
        """Return the file for gigatoken, which finds every added token in text, and reads every entry as the bytes it spells."""
        return self._encoded(self.plain, dict.fromkeys(self._renames))

    def _are_matched_alike(self) -> bool:
        """Return whether the fast engine finds all added tokens where the reference does."""
        lengths = [len(token.content) for token in self.added]
        if max(lengths, default=0) > _MOST_ADDED_CHARACTERS or sum(n * n for n in lengths) > _MOST_ADDED_SQUARES:
            return False
        plain = {token.content for token in self.plain}
        return all(map(self._is_matched_alike, self.plain)) and not touching(plain, self.special)

    def _is_matched_alike(self, token: AddedToken) -> bool:
        if token.single_word or token.lstrip or token.rstrip:
            return False
        if self._normalizer is None or self._normalizer.get("normalizers") == []:
            return True
        # The engine looks again when it has normalized. Of ASCII, NFC makes only K, ; and ` of other characters.
        return not token.normalized and token.content.isascii() and not set(token.content) & set("K;` ")

    def _merged(self) -> Iterator[str]:
        """Return what each merge makes. Raises UsageError."""
        merges = self._decoded(self._model.get("merges", b"null"), list[str | list[str]], "its merges")
        prefix = self._settings.continuing_subword_prefix or ""
        for merge in merges:
            tokens = merge.split(" ") if isinstance(merge, str) else merge
            inner = "".join(tokens[1:])
            # The library leaves out as many bytes, and ends the process where they end in a character, or the token does.
            if prefix and not (prefix.isascii() and inner[: len(prefix)].isascii() and len(inner) >= len(prefix)):
                raise self._error(
                    f"its merges do not fit its continuing_subword_prefix {prefix!r}", "merges whose second token begins with it"
                )
            yield "".join(tokens[:1]) + inner[len(prefix) :]

    def _is_symbol(self, token: str) -> bool:
        """Return whether a token of a BPE model is a single character that text can hold, which merges begin with."""
        prefix, suffix = self._settings.continuing_subword_prefix or "", self._settings.end_of_word_suffix or ""
        character = token.removeprefix(prefix).removesuffix(suffix)
        if token not in self.tokens or len(character) != 1:
            return False
        return not self._is_byte_level or character in byte_characters()

    @cached_property
    def _is_byte_level(self) -> bool:
        return any(b'"ByteLevel"' in bytes(self._parts.get(key) or b"") for key in ("pre_tokenizer", "normalizer"))

    @property
    def unknown_id(self) -> int | None:
        """The id for what is not in the vocabulary; None if there is none, or nothing that is not."""
        unknown = self._unknown()
        return None if unknown is None or self._knows_all() else self.tokens.get(unknown)

    def _unknown(self) -> str | None:
        """Return the token for what is not in the vocabulary."""
        if self.type != "Unigram":
            return self._settings.unk_token
        return next((token for token, i in self.tokens.items() if i == self._settings.unk_id), None)

    def _knows_all(self) -> bool:
        """Return whether the vocabulary covers all text."""
        if self.type == "BPE" and self._is_byte_level and self.tokens.keys() >= self._symbols():
            return True
        has_bytes = self.type != "WordPiece" and self._settings.byte_fallback
        return bool(has_bytes) and all(f"<0x{byte:02X}>" in self.tokens for byte in range(256))

    def _symbols(self) -> set[str]:
        """Return what the 256 bytes are before any merge: also within a word and at the end of one, where these are marked."""
        prefix, suffix = self._settings.continuing_subword_prefix or "", self._settings.end_of_word_suffix or ""
        return {before + byte + after for byte in byte_characters() for before in ("", prefix) for after in ("", suffix)}

    def _check_added(self, added: list[AddedToken]) -> None:
        """Raise UsageError if ids of added tokens are not those of the reference, which counts them whatever the file says."""
        largest, tokens = -1, self.tokens
        for token in added:
            expected = tokens.get(token.content, max(largest + 1, len(tokens)))
            if expected != token.id:
                raise self._error(
                    f"the added token {token.content!r} has id {token.id}, and the reference gives it {expected}",
                    "added tokens that are in the vocabulary, or count on from its end",
                )
            largest = max(largest, expected)

    def _kept(self) -> list[AddedToken]:
        """Return the added tokens without those whose entry in the vocabulary is renamed."""
        renamed = self._renames
        return [token for token in self.added if token.content not in renamed]

    @cached_property
    def _renames(self) -> dict[str, str]:
        """The special tokens of the vocabulary that text could match, and names that it cannot match."""
        special = {token for token in self.tokens.keys() & self.special if not is_byte_token(token)}
        if self.type == "Unigram":
            # The search for pieces never finds an empty one.
            return dict.fromkeys(special, "")
        if self.type == "WordPiece":
            longest = self._settings.max_input_chars_per_word
            longest = _LONGEST_WORD if longest is None else longest
            return {token: token + "\0" * longest for token in special if token != self._settings.unk_token}
        # A byte-level word has no space: that is Ġ.
        return {token: " " + token for token in special} if self._settings.ignore_merges else {}

    def _encoded(self, added: list[AddedToken], renames: Mapping[str, str | None]) -> bytes:
        """Return the file. renames: entries of the vocabulary and their new names; None: without the entry."""
        model: dict[str, Any] = {key: part for key, part in self._model.items() if key not in _SAMPLING}
        if renames and self.type == "Unigram":
            pieces = msgspec.json.decode(self._model["vocab"], type=list[tuple[str, msgspec.Raw]])
            model["vocab"] = [(renames.get(piece, piece), score) for piece, score in pieces]
        elif renames:
            named = ((renames.get(token, token), i) for token, i in self.tokens.items())
            model["vocab"] = {token: i for token, i in named if token is not None}
        changed = {"model": model, "added_tokens": added, "truncation": None, "padding": None, "post_processor": None}
        return msgspec.json.encode({**self._parts, **changed})

    @cached_property
    def _normalizer(self) -> dict[str, Any] | None:
        return self._part("normalizer")

    def _part(self, key: str) -> dict[str, Any] | None:
        part: dict[str, Any] | None = self._decoded(self._parts.get(key, b"null"), dict[str, Any] | None, f"its {key}")
        return part

    def _decoded(self, data: bytes | msgspec.Raw, kind: Any, what: str = "") -> Any:
        """Raises UsageError if a part of the file is not of its type. what: names it."""
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            what = f"{what} cannot be read" if what else "the file is no tokenizer.json"
            raise self._error(f"{what}: {error}", "the tokenizer.json of a Hugging Face tokenizer") from None

    def _error(self, what: str, allowed: str) -> UsageError:
        return UsageError(
            what, where=self._where, allowed=allowed, next_step="give a --tokenizer that is as its makers published it"
        )


def read_tokenizer_json(path: str) -> tuple[TokenizerFile, str]:
    """Return the file at `path` and its SHA-256, hex. Raises UsageError."""
    data = read_file(path, FILE_NAME)
    return TokenizerFile(data, path_to_text(path)), hashlib.sha256(data).hexdigest()


def changed(tokenizer: Tokenizer, found: str) -> ChangedError:
    """Return the error for a file that is no longer the one that was resolved. found: its SHA-256, or why it cannot be read."""
    return ChangedError(
        f"the tokenizer's file is not what it was when the run was planned: {found}",
        where=tokenizer.path,
        allowed=f"the file with SHA-256 {tokenizer.sha256}",
        next_step="put the file back, then run the same command again",
    )


def load_tokenizer_json(tokenizer: Tokenizer) -> TokenizerFile:
    """Return the file of a tokenizer that was resolved. Raises ChangedError if it is no longer the same."""
    try:
        file, found = read_tokenizer_json(text_to_path(tokenizer.path))
    except UsageError as error:
        raise changed(tokenizer, error.what) from None
    if found != tokenizer.sha256:
        raise changed(tokenizer, found)
    return file


def touching(plain: Collection[str], special: Collection[str]) -> set[str]:
    """Return the plain tokens for which a text can hold one of them and a special token with a character in common."""
    begins, plain_begins = beginnings(special), beginnings(plain)
    ends = {token[n:] for token in special for n in range(len(token))}
    found = {t for t in plain if any(t[n:] in begins or t[: n + 1] in ends for n in range(len(t)))}
    found |= {t for t in plain if any(_within(t, special, begins))}
    return found.union(*(_within(token, plain, plain_begins) for token in special))


def beginnings(tokens: Collection[str]) -> set[str]:
    """Return what the tokens begin with, of every length."""
    return {token[:n] for token in tokens for n in range(1, len(token) + 1)}


def _within(text: str, tokens: Collection[str], begins: set[str]) -> Iterator[str]:
    """Yield the tokens that occur in a text. begins: as `beginnings` returns them."""
    for start in range(len(text)):
        end = start + 1
        while end <= len(text) and text[start:end] in begins:
            if text[start:end] in tokens:
                yield text[start:end]
            end += 1
