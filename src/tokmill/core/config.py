"""Validated settings of a run, divided by one question: whether the setting can change a byte of the output.

`Content` holds those that can: it is stored in journal and manifest, and a resumed run must have the same fingerprint; a difference
is an error that names it. `Resources` holds those that cannot. Both are plain data, so a job can be carried out in another process.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import xxhash

from tokmill.core import secrets
from tokmill.core.arrangement import Arrangement
from tokmill.core.bounded import Natural, Positive, Whole
from tokmill.core.deduplication import Deduplication
from tokmill.core.errors import UsageError
from tokmill.core.options import VAL_FRACTION, PlanOptions
from tokmill.core.output_spec import NAME, Shards
from tokmill.core.packing import Packing
from tokmill.core.partition import Part
from tokmill.core.records import EotPlacement, IdType, Input, OnError, Tokenizer, Utf8Policy, is_url

MIB = 1 << 20
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes, on the usual file systems."""

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\", "f": "\f", "v": "\v"}


Quoting = Literal["double", "none"]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
How = Literal["merge", "convert", "reshard", "append", "dedup", "shuffle", "mix", "pack"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another complete output, or bare files of ids, from which an output was made without tokenizing again."""

    how: How
    path: str
    """Absolute path of the directory or file, in the form of `path_to_text`."""
    format: str
    fingerprint: str = ""
    """Fingerprint of its content; empty for bare files."""
    tokmill_version: str = ""
    n_inputs: Natural
    """So many of `content.inputs`, in their order, are its own."""
    tokens_train: Natural = 0
    tokens_val: Natural = 0
    documents_train: Natural = 0
    documents_val: Natural = 0
    is_arranged: bool = False
    """Whether its documents were in another order than those of its inputs: that of a merge does not say it."""
    made_from: tuple[Provenance, ...] = ()
    """What it was made from itself."""
    name: str = ""
    """What a recipe calls it."""


class RecipeStep(msgspec.Struct, frozen=True, kw_only=True):
    """What `build` tells a command that it makes a training set with."""

    fingerprint: str = ""
    """The fingerprint of the recipe and its sources, which the manifest of the training set keeps."""
    names: tuple[str, ...] = ()
    """What the recipe calls the outputs that are given, in order."""


class BareFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was stated of files of ids that no manifest describes."""

    format: str
    dtype: IdType
    eot: EotPlacement
    eot_id: Whole
    n_val: Natural
    """So many of the inputs, the last ones, are the validation side."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What settings and inputs do not say of an output that no run of tokenize could make."""

    merged: tuple[str, ...] = ()
    """Fingerprints of the merged outputs, whose settings differ or which have an origin themselves."""
    bare_files: BareFiles | None = None
    arranged: Arrangement | None = None
    """The order of the documents of the training side, where that is not the order of the inputs."""
    packed: Packing | None = None
    """How the documents of both sides lie in sequences."""
    deduplicated: Deduplication | None = None
    """What decided which documents are left, where some were removed."""


class ValTail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of the only input, which is for validation."""

    begin: Positive
    """Its first byte."""
    is_document: bool = False
    """Whether a document begins there, a separator stands before it; otherwise one is cut in two there."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the bytes of the output."""

    inputs: tuple[Input, ...]
    tokenizer: Tokenizer
    separator: str | None = PlanOptions.separator
    """Stands between documents of a text file; None: a file is one document."""
    text_key: str = PlanOptions.text_key
    quoting: Quoting | msgspec.UnsetType = msgspec.UNSET
    """How quotes in CSV and TSV are read; unset: auto."""
    delimiter: str | msgspec.UnsetType = msgspec.UNSET
    """Stands between the fields of CSV and TSV; unset: a comma, and a tab."""
    eot: EotPlacement = "after"
    val_fraction: float = VAL_FRACTION
    """Share of documents for the val side, 0 <= fraction < 1."""
    seed: int = 0
    """Seed of the hash that decides the side, 0 <= seed < 2**64."""
    dtype: IdType = "uint16"
    format: str = "raw"
    name: Annotated[str, msgspec.Meta(pattern=f"^{NAME}$")] | msgspec.UnsetType = msgspec.UNSET
    """Stands before the names of the files of raw and llmc; unset: nothing does."""
    shards: Shards | msgspec.UnsetType = msgspec.UNSET
    """Unset: a side is one file."""
    offsets: bool | msgspec.UnsetType = msgspec.UNSET
    """Whether there is a list of where documents begin; unset: there is none."""
    keep_empty: bool = False
    val_tail: ValTail | msgspec.UnsetType = msgspec.UNSET
    """Unset: which documents are for validation does not depend on where they stand."""
    val_tokens: Positive | msgspec.UnsetType = msgspec.UNSET
    """No document is for validation any more once those before it have so many tokens; unset: there is no limit."""
    max_tokens: Positive | msgspec.UnsetType = msgspec.UNSET
    """The output ends with the document that reaches so many tokens; unset: with the corpus."""
    sample: Share | msgspec.UnsetType = msgspec.UNSET
    """Share of documents that is taken at all; unset: all."""
    encoding_errors: Utf8Policy = "strict"
    on_error: OnError = "stop"
    n_parts: Natural | msgspec.UnsetType = msgspec.UNSET
    """Parts in which the corpus is tokenized, each with files of its own; unset: one run."""
    part: Part | msgspec.UnsetType = msgspec.UNSET
    """Set for one such part; `inputs` are then those it has a share in."""
    origin: Origin | msgspec.UnsetType = msgspec.UNSET
    """Unset: a run of tokenize could make this output."""

    @property
    def packing(self) -> Packing | None:
        """How documents lie in sequences; None: one after the other."""
        return self.origin.packed if self.origin else None

    def fingerprint(self) -> str:
        """xxh3_128 of the canonical JSON, hex. A tokenizer is its content, not the place where its file lies."""
        placeless = msgspec.structs.replace(self, tokenizer=msgspec.structs.replace(self.tokenizer, name="", path=""))
        return xxhash.xxh3_128_hexdigest(msgspec.json.encode(placeless, order="deterministic"))


def how_not_of_corpus(content: Content) -> str:
    """Return in words why `is_of_corpus` says no."""
    if content.origin and content.origin.arranged:
        return "its documents are in another order than those of the inputs"
    if content.origin and content.origin.packed:
        return "its documents are packed into sequences"
    if content.origin and content.origin.deduplicated:
        return "documents were removed from it, so it is not what its inputs say"
    return "it was made from runs with different settings or limits, or from bare files"


def is_of_corpus(content: Content) -> bool:
    """Whether text read with these settings gives the output: not for merged outputs of other settings, or ids of other tools."""
    return not content.origin and all(each.format != "ids" for each in content.inputs)


def cache_directory(name: str) -> Path:
    """Return where this user's caches of a kind are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokmill" / name


USUAL_IDS = 50_257


class BudgetTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a budget must be enough for."""

    n_threads: int
    n_inputs: int = 1
    is_remote: bool = False
    """Whether inputs are given by URL."""
    is_sent: bool = False
    """Whether the output goes to a store."""
    has_tables: bool = False
    """Whether there are Parquet or Arrow files among the inputs."""
    n_ids: int = USUAL_IDS
    """Of the tokenizer."""
    piece_factor: int = 1
    """How much more memory than the fast engine this one takes for one piece of text."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """How a run may use the machine; no setting here changes the output."""

    budget_bytes: int
    """Resident memory of all processes of the run."""
    child_bytes: int
    """Resident memory of the coordinator and its workers: the budget without the parent's share."""
    terms: BudgetTerms
    """What the budget was divided for."""
    batch_bytes: int
    """Text of one batch, about."""
    arena_bytes: int
    """Of each worker: memory for what it has for others."""
    spare_bytes: int
    """What a reader may hold of a file for as long as it is open."""
    max_piece_bytes: int
    """Largest text that goes to the encoder in one piece because no safe cut was found in it."""
    reset_above_bytes: int
    """Memory of a worker's own, without the reference of the audit, above which it drops its engine's caches."""
    n_long: int = 2
    """Long documents that may be held at the same time."""
    engine: str = "gigatoken"
    audit_fraction: float = 0.001
    """Share of the text that is encoded again by the reference tokenizer, about."""
    max_skipped: int | None = None
    refuse_json_lines: bool = False
    """Whether a pipe whose text begins with a JSON object is an error, because nobody said what it holds."""
    stage_bytes: int = 0
    """Most bytes of shards that may wait here to be sent; 0: shards are not sent while the output is made."""
    nice: bool = False
    """Give way to every other program that wants the processor or the disk."""
    segment_bytes: int = 64 * MIB
    """Input of one segment, about: a commit costs an fsync (20 to 100 ms on a disk), 64 MiB takes about as long to tokenize."""

    range_bytes: int = 16 * MIB
    """Stored input that a worker reads at a time, about."""
    n_workers: int = 1
    """Processes that read and encode: `n_threads`, or fewer for little input."""

    @property
    def n_threads(self) -> int:
        """Workers, where there is enough input."""
        return self.terms.n_threads


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the coordinator and its workers."""

    out: str
    """Output directory, absolute, in the form of `path_to_text`."""
    content: Content
    resources: Resources
    fresh: bool = False
    """Discard what an earlier run left in the directory."""
    made_from: tuple[Provenance, ...] = ()
    """For a run that appends: the complete output in the directory, and those that it was made from."""
    urls: dict[str, str] = {}
    """By the path of an input, its URL with user, password or signature, where it has any; told to processes, stored nowhere."""

    destination: str = ""
    """URL, without secrets, of an output that is made in `out` and then sent to a store."""

    @property
    def replacing(self) -> str | None:
        """Fingerprint of the output that stands in the directory until this one takes its place."""
        return self.made_from[-1].fingerprint if self.made_from else None


def typed_separator(separator: str | None) -> str:
    """What a person would type for a separator: the opposite of `parse_separator`."""
    if separator is None:
        return "none"
    letters = {char: f"\\{letter}" for letter, char in _ESCAPES.items()}
    return "".join(letters.get(c, c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}") for c in separator)


def parse_separator(text: str) -> str | None:
    r"""The separator that a person typed: `none`, or text with the escapes \n \t \r \0 \f \v \\ \xHH \uHHHH. Raises UsageError."""
    if text == "none":
        return None
    if text.lower() == "none":
        raise UsageError(
            f"{text} is not none: documents would end at that word",
            option="--separator",
            allowed="none, or text that stands between documents",
            suggested="none",
            next_step=f"or --separator '\\x{ord(text[0]):02x}{text[1:]}' for the word",
        )

    def unescape(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            raise UsageError(
                f"\\{code} stands for nothing",
                option="--separator",
                allowed=r"text, with \n \t \r \0 \f \v \\ \xHH \uHHHH, or none",
                suggested=text.replace(match[0], "\\" + match[0]),
                next_step="for a backslash",
            )
        return _ESCAPES[code]

    separator = re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", unescape, text, flags=re.DOTALL)
    try:
        separator.encode()
    except UnicodeEncodeError:
        separator = ""
    if not separator:
        raise UsageError(
            "the separator is empty or not valid Unicode",
            option="--separator",
            allowed=r"text, with \n \t \r \0 \\ \xHH \uHHHH, or none",
            suggested=r"\n\n",
            next_step="or --separator none when each file is one document",
        )
    return separator


def parse_delimiter(text: str) -> str:
    r"""The delimiter that a person typed: one character, or \t. Raises UsageError."""
    delimiter = "\t" if text == "\\t" else text
    if len(delimiter) == 1 and delimiter.isascii() and (delimiter.isprintable() or delimiter == "\t") and delimiter != '"':
        return delimiter
    raise UsageError(
        f"{text!r} is not a delimiter",
        option="--delimiter",
        allowed=r"one character of ASCII that is no quote, or \t for a tab",
        suggested=";",
    )


def is_name(text: str) -> bool:
    """Return whether the system may know a file of this name: bytes of any kind, but no zero."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        # Half of a surrogate pair, which stands for no byte.
        return False


def path_text(given: object, option: str) -> str:
    """Return a path or URL as text. Raises UsageError for what is neither. option: for which it was given."""
    if not isinstance(given, (str, os.PathLike)):
        raise UsageError(f"{given!r} is not a path", where=option, allowed="a str or a path object", next_step="give a path")
    path = str(given)
    if not is_name(path):
        raise UsageError(
            f"{path!a} cannot be the name of a file",
            where=option,
            allowed="a name without a zero byte",
            next_step="give another path",
        )
    if not path and option in ("inputs", "--val-input"):
        next_step = "leave it out, or give it a name: perhaps a variable of the shell was empty"
        raise UsageError("the name of an input is empty", where="INPUT", allowed="a path, a pattern or a URL", next_step=next_step)
    secrets.learn([path])
    meant = secrets.mistaken_url(path)
    if meant is not None:
        raise UsageError(
            "this is not a path, and not quite a URL",
            where=f"{option}: {path}",
            allowed="a URL has a scheme and two slashes, unescaped; a local path that looks like one begins with ./",
            suggested=meant or None,
            path=path if meant else None,
            next_step=None
            if meant
            else "for a path of this machine put ./ before it, or begin it at the root; write a URL in full",
        )
    return path


def path_texts(given: object, option: str) -> list[str]:
    """Return one path or URL, or several, as texts. Raises UsageError as `path_text`."""
    return [path_text(each, option) for each in (given if isinstance(given, (list, tuple)) else [given])]


def check_directory(path: Path, option: str, suggested: str = "data") -> None:
    """Raise UsageError where no directory can be: a file or a lost link is there or above, or a name is too long.

    option: `--out` or `--stage`, which named it.
    """
    noun, allowed = {"--out": "the output", "--stage": "the stage"}[option], "a directory, new or old"
    where = next(each for each in (path, *path.parents) if os.path.lexists(each))
    n_bytes, longest = len(os.fsencode(path)), max((len(os.fsencode(name)) for name in path.parts), default=0)
    if not os.path.isdir(where):
        kind = "a link that leads nowhere" if where.is_symlink() else "a file"
        what = f"{noun} is {kind}" if where == path else f"{kind} is in the way of {noun}"
    elif longest > _LONGEST_NAME or n_bytes > _LONGEST_PATH:
        what = f"the name of {noun} is too long: {longest if longest > _LONGEST_NAME else n_bytes:,} bytes"
        where, allowed = path, f"names of up to {_LONGEST_NAME} bytes in a path of up to {_LONGEST_PATH:,}"
    else:
        return
    raise UsageError(what, where=str(where), option=option, allowed=allowed, suggested=suggested)


def local_path(given: str | os.PathLike[str], option: str = "path") -> str:
    """Return the path, absolute. Raises UsageError for a URL, and for what is no path. option: for which it was given."""
    path = path_text(given, option)
    if is_url(path) and option != "path":
        raise UsageError(
            f"{option} takes a path of this machine, not a URL",
            where=f"{option}: {path}",
            allowed="a local path",
            next_step=f"choose a local path for {option}",
        )
    if is_url(path):
        # Only the scheme: what comes before the first slash may be a password.
        scheme = path.partition("://")[0].lower()
        raise UsageError(
            "this command works on local directories, not URLs",
            where=f"{scheme}://",
            allowed="a path; URLs are for inputs and --out of tokenize, for complete outputs and --out of merge, convert, reshard, "
            "shuffle and mix, for finalize, verify and inspect",
            next_step="copy it first, all of it: aws s3 sync s3://bucket/prefix DIR; then tokmill verify DIR"
            if scheme == "s3"
            else "copy it to a directory first",
        )
    return os.path.abspath(path)
