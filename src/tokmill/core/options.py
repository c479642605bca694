"""The options of a run, each declared once: name, type, default, allowed values, and what the help says of it.

The command line, the Python functions, settings files, `--show-config` and the reference pages are made from these records.
"""

from __future__ import annotations

import operator
import os
import re
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tokmill.core.errors import UsageError
from tokmill.core.secrets import learn
from tokmill.core.text import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

INPUT, OUTPUT, VALIDATION, ERRORS = "Input", "Output and format", "Validation", "Errors"
RESOURCES, STORES, MESSAGES = "Resources", "Bucket and cluster", "Messages"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Stands for a byte that is not UTF-8."""
GROUPS = (INPUT, OUTPUT, VALIDATION, ERRORS, RESOURCES, STORES, MESSAGES)
"""In the order of the help."""
_STAGE_BYTES = 4 << 30
"""Shards that wait to be sent: some minutes of tokenizing, while a store is busy."""
VAL_FRACTION, VAL_TOKENS_FRACTION = 0.0005, 0.1
"""Share of documents for validation, and the share of those before `--val-tokens` are reached."""
FORMAT_NAMES = ("raw", "llmc", "megatron", "datatrove", "olmo", "litdata", "mds")


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_size(text: str, option: str) -> int:
    """Bytes of `1GiB`, `512M`, `2000000`. K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti powers of 1024. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    unit = match and _UNITS.get(match[2].lower())
    if not match or not unit:
        raise UsageError(
            f"{text!r} is not a size",
            option=option,
            allowed="a number with K, M, G, T or KiB, MiB, GiB, TiB",
            suggested="1GiB",
        )
    return int(float(match[1]) * unit)


def parse_stage_size(size: str | int | None) -> int:
    """Return the bytes that may wait for their upload; None: the usual number. Raises UsageError."""
    if size is None:
        return _STAGE_BYTES
    n_bytes = size if isinstance(size, int) else parse_size(size, "--stage-size")
    if n_bytes <= 0:
        raise UsageError(f"{size} is out of range", option="--stage-size", allowed="more than 0 bytes", suggested="4GiB")
    return n_bytes


def parse_tail(given: str | float) -> tuple[int, float, bool]:
    """Return bytes and share of `10%`, 0.1 or `1MB`, one of which is 0, and whether it is a number of bytes. Raises UsageError."""
    text = str(given).strip()
    match = re.fullmatch(r"(\d{1,3}(?:\.\d*)?|\.\d+)(%?)", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if 0 < share < 1:
        return 0, share, False
    is_share = match is not None and (bool(match[2]) or "." in text)
    try:
        n_bytes = 0 if is_share else parse_size(text, "--val-tail")
    except UsageError:
        raise UsageError(
            f"{text!r} is neither a share nor a size",
            option="--val-tail",
            allowed="a share of the text, such as 10% or 0.1, or a size, such as 1MB",
            suggested="10%",
        ) from None
    if n_bytes <= 0:
        raise UsageError(
            f"{text} is out of range", option="--val-tail", allowed="more than nothing, less than all", suggested="10%"
        )
    return n_bytes, 0.0, text.isdecimal()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Option:
    """What is known of an option, apart from its value."""

    help: str
    group: str
    name: str = ""
    """As in Python: `val_fraction` for `--val-fraction`."""
    types: tuple[type, ...] = ()
    """What a value may be in Python; empty: anything."""
    kind: type = str
    """Type of the value on the command line: str, int, float or bool."""
    default: Any = None
    usual: str = ""
    """The default in words, where it depends on other things."""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    """Values that a shell completes where any value is allowed."""
    least: float | None = None
    above: float | None = None
    below: float | None = None
    allowed: str = ""
    """The bounds in words."""
    short: str = ""
    is_many: bool = False
    is_required: bool = False
    is_size: bool = False
    """Whether it is a number of bytes, with a unit if it is text."""
    is_text: bool = False
    """Whether it is compared with texts, which are Unicode; others name files, which may be any bytes."""
    has_variable: bool = True
    """Whether the environment may set it, and settings for all commands."""

    @property
    def flag(self) -> str:
        """`--val-fraction`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """`TOKMILL_VAL_FRACTION`; empty if the environment does not set it."""
        return f"TOKMILL_{self.name.upper()}" if self.has_variable else ""

    def check(self, value: Any) -> None:
        """Raise UsageError if the value is of another type, not a choice, or out of bounds."""
        if self.is_many and isinstance(value, list | tuple):
            for each in value:
                replace(self, is_many=False, types=tuple({*self.types} - {list, type(None)}) or (self.kind,)).check(each)
            return
        learn([value])
        is_bool = isinstance(value, bool)
        if self.types and not (bool in self.types if is_bool else isinstance(value, self.types)):
            raise UsageError(
                f"{value!r} is not a value of {self.flag}",
                option=self.flag,
                allowed=self.allowed or ", ".join(self.choices) or self.metavar or "true or false",
                suggested=None if self.default is None or self.default is False else str(self.default),
                next_step="leave it out, or give it a value of its type",
            )
        if value is None:
            return
        if self.is_text and _LONE_SURROGATE.search(str(value)):
            raise UsageError(
                f"the value of {self.flag} is not UTF-8", option=self.flag, allowed="UTF-8", suggested=str(self.default or 0)
            )
        if self.is_size and isinstance(value, str):
            parse_size(value, self.flag)
        if self.choices and value not in self.choices:
            raise UsageError(
                f"{value!r} is not a value of {self.flag}",
                option=self.flag,
                allowed=", ".join(self.choices),
                suggested=nearest(str(value), self.choices),
            )
        # Written so that NaN is out of bounds.
        bounds = ((self.least, operator.ge), (self.above, operator.gt), (self.below, operator.lt))
        if not all(holds(value, bound) for bound, holds in bounds if bound is not None):
            usual = self.default if self.default is not None else 0.1 if self.least is None else self.least
            raise UsageError(f"{value} is out of range", option=self.flag, allowed=self.allowed, suggested=str(usual))


def option(default: Any, **about: Any) -> Any:
    """Return the field of a record of options. about: as `Option` takes it."""
    return field(default=default, metadata={"option": Option(default=default, **about)})


AUDIT = Option(
    name="audit",
    kind=float,
    types=(Real,),
    default=0.01,
    least=0,
    below=1 + 1e-9,
    allowed="0 to 1",
    group=INPUT,
    metavar="SHARE",
    has_variable=False,
    help="With --source: share of the text that the reference tokenizer encodes again, beside each character's first; 1: all.",
)
"""The option `--audit` of `verify`."""

_KINDS = {"int": int, "float": float, "bool": bool}
_TYPES: dict[str, type] = {
    "str": str,
    "int": Integral,
    "float": Real,
    "bool": bool,
    "Sequence[str]": list,
    "Sequence[os.PathLike[str]]": list,
    "os.PathLike[str]": os.PathLike,
    "None": type(None),
}


def options_of(record: object) -> dict[str, Option]:
    """Return the options that a record declares, by name. Fields that are no options are left out."""
    found = {}
    for each in fields(record):  # type: ignore[arg-type]
        if "option" in each.metadata:
            kind = _KINDS.get(str(each.type).removesuffix(" | None"), str)
            types = tuple(_TYPES[name] for name in str(each.type).split(" | "))
            found[each.name] = replace(each.metadata["option"], name=each.name, kind=kind, types=types)
    return found


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PlanOptions:
    """The options that decide what a run makes and what it takes. A record that exists has valid values."""

    glob: str | Sequence[str] | None = option(
        None,
        group=INPUT,
        metavar="PATTERN",
        is_many=True,
        help="In a directory, take only files whose name (with a slash: path) matches PATTERN, such as '*.md' or '*.{md,py}'; "
        "'!PATTERN' leaves out. May be repeated.",
    )
    input_format: str | None = option(
        None,
        group=INPUT,
        metavar="FORMAT",
        examples=("text", "jsonl", "csv", "tsv", "tar", "parquet", "arrow"),
        usual="by the suffix; text without a known one",
        help="text, jsonl, csv, tsv, tar (each also as .gz .zst .xz .bz2 .lz4), parquet or arrow.",
    )
    text_key: str = option(
        "text",
        group=INPUT,
        metavar="KEY",
        is_text=True,
        help="Key or column that holds the text, in JSON lines and tables; a.b is b inside a.",
    )
    encoding: str = option(
        "utf-8",
        group=INPUT,
        metavar="ENCODING",
        is_text=True,
        examples=("latin-1", "cp1252", "utf-16", "gb18030", "shift_jis"),
        help="Encoding of text, JSON lines, CSV and TSV, as Python names it, such as latin-1.",
    )
    delimiter: str | None = option(
        None,
        group=INPUT,
        metavar="CHARACTER",
        is_text=True,
        usual="a comma in CSV, a tab in TSV",
        help="Character between the fields of CSV and TSV, such as ';'.",
    )
    quoting: str = option(
        "auto",
        group=INPUT,
        choices=("auto", "double", "none"),
        help="Quotes in CSV and TSV. double: they enclose fields, and are doubled inside; none: they are characters like others, "
        "and each line is a row; auto: double, but an error where rows of a TSV would merge.",
    )
    separator: str = option(
        "<|endoftext|>",
        group=INPUT,
        metavar="TEXT",
        help=r"Text between the documents of a text file; escapes such as \n\n are understood; none: a file is one document.",
    )
    sample: float | None = option(
        None,
        group=INPUT,
        metavar="FRACTION",
        above=0,
        below=1,
        allowed="0 < fraction < 1",
        help="Take only this share of the documents, chosen by their content and --seed.",
    )
    max_tokens: str | int | None = option(
        None,
        group=INPUT,
        metavar="N",
        help="End with the document that reaches N tokens (100M), on both sides together; read no further.",
    )
    encoding_errors: str = option(
        "strict", group=ERRORS, choices=("strict", "replace", "ignore"), help="What to do with bytes that are not UTF-8."
    )
    tokenizer: str = option(
        "gpt2",
        group=OUTPUT,
        metavar="NAME|FILE",
        help="gpt2 (built in), cl100k_base and others of tiktoken, a .tiktoken file, a tokenizer.json, or a Hugging Face "
        "repository as owner/name@revision.",
    )
    eot_token: str | None = option(
        None,
        group=OUTPUT,
        metavar="TEXT|ID",
        is_text=True,
        usual="the tokenizer's, where it is clear",
        help="Special token that marks the end of a document.",
    )
    eot: str = option(
        "auto",
        group=OUTPUT,
        choices=("auto", "after", "before", "none"),
        help="Where the end-of-text id goes. auto: where the trainer expects it (before each document for llmc, else after).",
    )
    dtype: str = option("auto", group=OUTPUT, choices=("auto", "uint16", "uint32"), help="Integer type of the token ids.")
    format: str = option(
        "raw",
        group=OUTPUT,
        choices=FORMAT_NAMES,
        help="Output format: the trainer that will read the files.",
    )
    name: str | None = option(
        None,
        group=OUTPUT,
        metavar="NAME",
        is_text=True,
        help="With raw and llmc: begin the names of the files with NAME, such as fineweb_train_000000.bin.",
    )
    shard_tokens: str | int | None = option(
        None,
        group=OUTPUT,
        metavar="N",
        usual="one file a side; llmc 100M, litdata and mds 33554432",
        help="Write several files for each side, N tokens (100M) in each but the last.",
    )
    shard_documents: bool = option(
        False,
        group=OUTPUT,
        help="Do not split a document between files: a file ends at the first document end after N tokens (always so for "
        "megatron, datatrove and olmo).",
    )
    offsets: bool = option(
        False,
        group=OUTPUT,
        help="Write train_document_offsets.npy and val_document_offsets.npy, too: where each document begins, in tokens.",
    )
    drop_tail: bool = option(False, group=OUTPUT, help="Leave out the last file if it has fewer than N tokens.")
    keep_empty: bool = option(False, group=OUTPUT, help="Write the end-of-text id of empty documents too.")
    val_input: str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]] | None = option(  # noqa: RUF009  it is a field
        None,
        group=VALIDATION,
        metavar="INPUT...",
        is_many=True,
        has_variable=False,
        help="Inputs for validation: all their documents go to val.bin, and no others, whatever --val-fraction is by default. "
        "May be repeated.",
    )
    val_fraction: float | None = option(
        None,
        group=VALIDATION,
        metavar="FRACTION",
        least=0,
        below=1,
        allowed="0 <= fraction < 1",
        usual=f"{VAL_FRACTION}; with --val-tokens {VAL_TOKENS_FRACTION}",
        help="Share of documents that go to val.bin, without --val-input.",
    )
    val_tokens: str | int | None = option(
        None,
        group=VALIDATION,
        metavar="N",
        help="Choose documents for val.bin only until it has N tokens (10M); all later ones are for training.",
    )
    val_tail: str | float | None = option(
        None,
        group=VALIDATION,
        metavar="SHARE|SIZE",
        is_text=True,
        help="Take the end of one plain text for val.bin: 10%, 0.1 or 1MB of it, from a new line on; 5000: so many bytes.",
    )
    seed: int = option(
        0,
        group=VALIDATION,
        metavar="N",
        least=0,
        below=1 << 64,
        allowed="0 to 2**64 - 1",
        help="Seed for choosing them, and for --sample.",
    )
    on_error: str = option(
        "stop", group=ERRORS, choices=("stop", "skip"), help="On an unreadable record: stop, or skip and count it."
    )
    max_skipped: int | None = option(
        None, group=ERRORS, metavar="N", least=0, allowed="0 or more", help="Stop when more than N bad records were skipped."
    )
    shuffle: int | None = option(
        None,
        group=OUTPUT,
        metavar="SEED",
        least=0,
        below=1 << 64,
        allowed="0 to 2**64 - 1",
        help="Put the documents of the training side into the random order of this seed, as tokmill shuffle does.",
    )
    dedup: bool = option(
        False,
        group=OUTPUT,
        help="Leave out documents of the training side that equal an earlier one, or one of the validation side.",
    )
    memory: str | int | None = option(
        None,
        group=RESOURCES,
        metavar="SIZE",
        is_size=True,
        usual="1GiB, more with many threads, at most a quarter of the machine's",
        help="Limit for the memory of all processes together.",
    )
    threads: int | None = option(
        None, group=RESOURCES, metavar="N", least=1, allowed="1 or more", usual="one a core", help="Processes that read and encode."
    )
    nice: bool = option(False, group=RESOURCES, help="Use only processor time and disk bandwidth that other programs leave.")
    engine: str = option(
        "gigatoken",
        group=RESOURCES,
        choices=("gigatoken", "tiktoken", "tokenizers"),
        help="Tokenizer library. All give identical ids; they differ in speed.",
    )
    fresh: bool = option(False, group=OUTPUT, help="Start over: discard what an earlier run left in the output (or in the part).")
    stage: str | os.PathLike[str] | None = option(  # noqa: RUF009  it is a field
        None,
        group=STORES,
        metavar="DIR",
        usual="~/.cache/tokmill/stage",
        help="With an s3:// output: local directory where it is made before it is uploaded.",
    )
    stage_size: str | int | None = option(
        None,
        group=STORES,
        metavar="SIZE",
        is_size=True,
        usual="4GiB",
        help="How much may wait in --stage for its upload; the run pauses when it is full.",
    )

    def __post_init__(self) -> None:
        for name, about in options_of(self).items():
            about.check(getattr(self, name))
        given = {"--val-fraction": self.val_fraction, "--val-tokens": self.val_tokens, "--val-tail": self.val_tail}
        first = "--val-input" if self.val_input else "--val-tail" if self.val_tail is not None else ""
        other = next((name for name, value in given.items() if first and name != first and value), None)
        if other:
            raise UsageError(
                f"with {first}, no other documents are for validation",
                option=other,
                allowed=f"one of {first} and {other}",
                suggested="0" if other == "--val-fraction" else None,
                next_step="leave one of the two out",
            )
        if self.val_tail is not None and self.max_tokens is not None:
            raise UsageError(
                "an output that ends before the text does has no tail",
                where="--val-tail with --max-tokens",
                option="--max-tokens",
                allowed="one of them",
                next_step="leave one of the two out, or cut the text first: head -c 10M corpus.txt > some.txt",
            )
        if self.val_tokens is not None and self.val_fraction == 0:
            raise UsageError(
                "without a share of documents, none is for validation",
                where="--val-tokens with --val-fraction 0",
                option="--val-fraction",
                allowed="more than 0: the share of documents from which they are taken",
                suggested=str(VAL_TOKENS_FRACTION),
            )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenizeOptions(PlanOptions):
    """The options of tokenize."""

    force: bool = option(
        False,
        group=OUTPUT,
        help="Start although the output will not fit on the disk, or will be more than 10,000 files of less than 1 MiB.",
    )
    append: bool = option(False, group=OUTPUT, help="Add the inputs to the complete output in DIR.")
    part: str | None = option(
        None,
        group=STORES,
        metavar="I/N",
        help="Make only part I (from 0) of N, with the same --out on any machine; tokmill finalize joins the parts.",
    )
    ray: str | None = option(
        None,
        group=STORES,
        metavar="[ADDRESS]",
        help="Make the parts on a Ray cluster: HOST:PORT, auto, local (a new one on this machine); without ADDRESS, the one that "
        "is running here. One thread a task, or --threads.",
    )
    part_bytes: str | int = option("1GiB", group=STORES, metavar="SIZE", is_size=True, help="Input of one --ray task.")


def called_with(record: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Return a decorator: a function of one record becomes a function of the record's fields, with their types and defaults.

    The line `options:` of its docstring becomes a line for each option.
    """

    def decorate(function: Callable[[T], R]) -> Callable[P, R]:
        import inspect

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(record(*args, **kwargs))

        about = [f"{name}: {each.help}" for name, each in options_of(record).items()]
        # From Python 3.13 on, the docstring comes without the indentation of the code.
        written = re.compile(r"^( +)options:.*", re.MULTILINE)
        call.__doc__ = written.sub(lambda line: "\n".join(line[1] + each for each in about), function.__doc__ or "")
        call.__name__ = call.__qualname__ = function.__name__
        call.__module__ = function.__module__
        # A wrong keyword is then an error of the function, not of a record that callers have not heard of.
        record.__init__.__qualname__ = function.__name__
        signature = inspect.signature(record)
        call.__signature__ = signature.replace(return_annotation=function.__annotations__["return"])  # type: ignore[attr-defined]
        return call

    return decorate
