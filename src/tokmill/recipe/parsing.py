"""A recipe: TOML that says which texts become which training set. A mistake is named with its line and the word that was meant."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokmill.core.arrangement import MOST_COPIES
from tokmill.core.errors import UsageError
from tokmill.core.options import PlanOptions, options_of
from tokmill.core.packing import DROPS, MOST_SEQUENCE
from tokmill.core.records import is_url
from tokmill.core.system.refusals import explaining
from tokmill.core.text import misspelt
from tokmill.derive import near_rule
from tokmill.formats import parse_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

EXAMPLE = """\
# tokmill build recipe.toml --out data
# Every source is tokenized once; what did not change is not done again.

seed = 1                # of the choice and the order of documents
tokens = "10B"          # of the training set; left out: as many as the scarcest source allows
max_epochs = 4          # how often a source's documents may be taken, on average

[tokenize]              # options of tokmill tokenize, for all sources
tokenizer = "gpt2"
val_fraction = 0.0005

[sources.web]           # a name of your own
inputs = ["web/*.jsonl.gz"]     # files, directories, patterns, URLs; relative to this file
weight = 0.7            # share of the tokens; without weights every document is taken once
text_key = "text"       # any option of tokmill tokenize, for this source alone

[sources.books]
inputs = "books/"
weight = 0.3
separator = "none"      # each file is one document

[dedup]                 # left out: copies stay. Sources in this order: of several copies the first stays
near = 0.8              # also near copies, as similar as this; left out: copies alone
# against = "eval-tokens/"      # complete outputs, such as evaluation sets, whose documents go from all sources
# compare = true        # read both copies before one of them goes; left out: a hash of 128 bits decides

[output]
format = "raw"          # the trainer: raw, llmc, megatron, datatrove, olmo, litdata, mds
# shard_tokens = "100M"

# [pack]                # whole documents in sequences of one length, as tokmill pack does
# sequence = 2048
"""
_NOT_OF_SOURCES = {
    "format",
    "shard_tokens",
    "shard_documents",
    "offsets",
    "drop_tail",
    "eot",
    "dtype",
    "seed",
    "fresh",
    "nice",
    "shuffle",
    "dedup",
}
_NOT_OF_SOURCES |= {"memory", "threads", "stage", "stage_size"}
"""Options of tokenize that are not those of one source: they are of the output, or of the command."""
_SPLITS = ("val_fraction", "val_tokens", "val_tail")
"""Options of tokenize that say which documents are for validation."""
_OF_ALL = ("eot",)
"""Options of tokenize that are those of all sources together."""
_TOP = ("seed", "tokens", "max_epochs", "tokenize", "sources", "dedup", "output", "pack")
_DEDUP = ("near", "measure", "ngram", "bands", "rows", "shortest", "against", "compare")
_BESIDE_NEAR = ("near", "against", "compare")
"""Options of dedup that are not about near copies, and the one that asks for these."""
_OUTPUT = ("format", "shard_tokens", "shard_documents", "offsets")
_PACK = ("sequence", "drop", "pad_id")
_OWN = ("inputs", "weight", "max_epochs")
_VAL_INPUT = "val_input"
_NEAR = 0.7
"""How alike a name and the one that was meant must be, as difflib counts."""
_CORRECT = "correct the file; tokmill build --example prints one"
_ELSEWHERE = {
    **dict.fromkeys(_DEDUP, "in [dedup]"),
    _VAL_INPUT: "in the table of a source, [sources.NAME]",
    **dict.fromkeys(_OUTPUT, "in [output]"),
    **dict.fromkeys(_PACK, "in [pack]"),
    **dict.fromkeys(("seed", "tokens"), "before the first table"),
    **dict.fromkeys(("memory", "threads", "fresh"), "as an option of the command tokmill build"),
    "eot": "in [tokenize], for all sources alike",
    "dtype": "what the format in [output] needs; tokmill convert changes it afterwards",
}
"""Names that stand at the wrong place, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSource:
    """One source of a recipe."""

    name: str
    inputs: list[str]
    """As `tokenize` takes them."""
    weight: float | None
    max_epochs: float
    options: dict[str, Any] = field(default_factory=dict)
    """Of `tokenize`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a file says."""

    path: str
    text: str
    seed: int
    tokens: str | int | None
    sources: list[RecipeSource]
    output: dict[str, Any]
    """Options of the output: format, shard_tokens, shard_documents, offsets."""
    pack: dict[str, Any] | None = None
    """Options of `pack`: sequence, drop, pad_id; None: documents lie one after the other."""
    dedup: dict[str, Any] | None = None
    """Options of `dedup`: those about near copies, against and compare; None: copies stay."""

    @property
    def is_weighted(self) -> bool:
        """Whether the sources are mixed by weight; else every document is taken once."""
        return self.sources[0].weight is not None

    def mistake(self, at: tuple[str, ...], what: str, allowed: str, next_step: str) -> UsageError:
        """Return the error for a table, or a value of one, that turns out to be wrong later."""
        return _wrong(self.path, _Reader(self.path, self.text).line(at), what, allowed, next_step)


def read_recipe(path: str) -> Recipe:
    """Read and check a recipe. Raises UsageError, which names the line."""
    if Path(path).is_dir():
        raise UsageError(
            "the recipe is a directory",
            where=path,
            allowed="a TOML file",
            next_step="give the file in it; tokmill build --example prints one",
        )
    with explaining(path):
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise _no_recipe(path) from None
    try:
        text = data.decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError:
        raise _wrong(path, None, "this is not a text file", "TOML: tokmill build --example prints one") from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+)", str(error))
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise _wrong(path, int(at[1]) if at else None, f"not TOML: {what}", "TOML: tokmill build --example prints one") from None
    return _Reader(path, text).recipe(values)


def _no_recipe(path: str) -> UsageError:
    """Return the error for a recipe that is not there, with the one that was probably meant."""
    given = Path(path)
    near = misspelt(given.name, [each.name for each in given.parent.glob("*")]) if given.parent.is_dir() else None
    return UsageError(
        f"there is no such recipe{f'; did you mean {near}?' if near else ''}",
        where=path,
        allowed="a TOML file",
        path=given.name if near else None,
        suggested=near,
        next_step=None if near else "give its path as it is; tokmill build --example prints a recipe to begin with",
    )


class _Reader:
    """Checks the values of one file."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._options = {name: each for name, each in options_of(PlanOptions).items() if name not in _NOT_OF_SOURCES}

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe. Raises UsageError."""
        self._check_names(values, _TOP, ())
        common = self._table(values.get("tokenize", {}), ("tokenize",))
        self._check_names(common, {*self._options, *_OF_ALL} - {_VAL_INPUT}, ("tokenize",))
        if common.get("eot", "before") not in ("before", "after"):
            raise self._at(("tokenize", "eot"), f"eot is {common['eot']!r}", "before or after: documents must be told apart")
        output = self._table(values.get("output", {}), ("output",))
        self._check_names(output, _OUTPUT, ("output",))
        for name in output:
            self._check_option(options_of(PlanOptions)[name], output[name], ("output", name))
        pack = self._pack(values["pack"], output) if "pack" in values else None
        dedup = values.get("dedup")
        if dedup is not None:
            dedup = self._dedup(self._table(dedup, ("dedup",)))
        seed = values.get("seed", 0)
        self._check_option(options_of(PlanOptions)["seed"], seed, ("seed",))
        found = self._table(values.get("sources", {}), ("sources",))
        if not found:
            raise _wrong(self._path, None, "no source", "a table for each: [sources.NAME] with inputs")
        most = self._epochs(values.get("max_epochs", 4), ("max_epochs",))
        sources = [self._source(name, value, common, most) for name, value in found.items()]
        weighted = [each for each in sources if each.weight is not None]
        if weighted and len(weighted) < len(sources):
            name = next(each.name for each in sources if each.weight is None)
            raise self._at(("sources", name), f"{name} has no weight", "a weight for every source, or for none")
        if weighted and not any(each.weight for each in weighted):
            raise self._at(("sources", weighted[0].name, "weight"), "no source has a weight above 0", "weights of which one is")
        tokens = values.get("tokens")
        if tokens is not None:
            self._check_tokens(tokens, ("tokens",))
        if output.get("shard_tokens") is not None:
            self._check_tokens(output["shard_tokens"], ("output", "shard_tokens"))
        self._check_validation(sources)
        for at in [("tokens",), ("max_epochs",), *(("sources", name, "max_epochs") for name in found)]:
            if not weighted and at[-1] in (found[at[1]] if len(at) > 1 else values):
                raise self._at(at, f"{at[-1]} has no meaning without weights", "a weight for every source, or this line left out")
        return Recipe(
            path=self._path,
            text="\n".join(self._lines),
            seed=seed,
            tokens=tokens,
            sources=sources,
            output=output,
            pack=pack,
            dedup=dedup,
        )

    def _pack(self, value: Any, output: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of `pack`."""
        table = self._table(value, ("pack",))
        self._check_names(table, _PACK, ("pack",))
        sequence, pad_id = table.get("sequence"), table.get("pad_id", 0)
        if not _is_whole(sequence, 1, MOST_SEQUENCE):
            line = ("pack", "sequence") if "sequence" in table else ("pack",)
            raise self._at(line, f"sequence is {sequence!r}", f"sequence = 2048: tokens of each sequence, 1 to {MOST_SEQUENCE:,}")
        if table.get("drop", "nothing") not in DROPS:
            raise self._at(("pack", "drop"), f"drop is {table['drop']!r}", ", ".join(DROPS))
        if not _is_whole(pad_id, 0, 1 << 32):
            raise self._at(("pack", "pad_id"), f"pad_id is {pad_id!r}", "an id of the tokenizer that no document has")
        for name in ("shard_documents", "offsets"):
            if name in output:
                raise self._at(("output", name), f"{name} has no meaning in sequences", "this line left out")
        return table

    def _dedup(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of `dedup`."""
        self._check_names(table, _DEDUP, ("dedup",))
        found = dict(table)
        if "against" in table:
            found["against"] = self._inputs(table, "against", ("dedup",))
        if not isinstance(table.get("compare", False), bool):
            raise self._at(("dedup", "compare"), f"compare is {table['compare']!r}", "true, or false")
        try:
            near_rule(table.get("near"), **{name: value for name, value in table.items() if name not in _BESIDE_NEAR})
        except UsageError as error:
            name = (error.option or "").removeprefix("--")
            raise self._at(("dedup", name) if name in table else ("dedup",), error.what, error.allowed or "") from None
        return found

    def _source(self, name: str, value: Any, common: Mapping[str, Any], most: float) -> RecipeSource:
        at = ("sources", name)
        if not re.fullmatch(r"[\w.-]{1,60}", name) or name.startswith("."):
            raise self._at(at, f"{name!r} is no name of a source", "letters, digits, - and _")
        table = self._table(value, at)
        self._check_names(table, [*_OWN, *self._options], at)
        inputs = self._inputs(table, "inputs", at)
        options = {**common, **{key: each for key, each in table.items() if key not in _OWN}}
        for key, each in options.items():
            self._check_option(options_of(PlanOptions)[key], each, (*at, key) if key in table else ("tokenize", key))
        if _VAL_INPUT in table:
            options[_VAL_INPUT] = self._inputs(table, _VAL_INPUT, at)
        weight = table.get("weight")
        return RecipeSource(
            name=name,
            inputs=inputs,
            weight=None if weight is None else self._weight(weight, (*at, "weight")),
            max_epochs=self._epochs(table.get("max_epochs", most), (*at, "max_epochs")),
            options=options,
        )

    def _inputs(self, table: Mapping[str, Any], key: str, at: tuple[str, ...]) -> list[str]:
        """Return names of inputs, as they are from anywhere. Raises UsageError."""
        names = [table[key]] if isinstance(table.get(key), str) else table.get(key)
        if not isinstance(names, list) or not names or not all(isinstance(each, str) and each for each in names):
            line = (*at, key) if key in table else at
            raise self._at(line, f"{at[-1]} has no {key}", f'a list of files, directories, patterns or URLs: {key} = ["a.txt"]')
        return [self._absolute(each) for each in names]

    def _check_validation(self, sources: Sequence[RecipeSource]) -> None:
        """Raise UsageError where a document might be on both sides, as sources choose for validation in different ways."""
        if not any(_VAL_INPUT in each.options for each in sources):
            for name in _SPLITS if len(sources) > 1 else ():
                if len({each.options.get(name) for each in sources}) > 1:
                    lines = [("sources", each.name, name) for each in sources]
                    at = next(each for each in lines if self.line(each) is not None)
                    raise self._at(at, f"{name} is not that of every source", f"one {name} for all of them, in [tokenize]")
            if len(sources) > 1 and sources[0].options.get("val_tail") is not None:
                what = "val_tail takes the end of one text, and here are several sources"
                raise self._at(("tokenize", "val_tail"), what, "val_fraction in [tokenize], or val_input in each source")
            return
        for each in sources:
            if each.options.get("val_fraction", 0.0 if _VAL_INPUT in each.options else None) != 0:
                what = f"a share of {each.name} would be for validation, beside the inputs of {_VAL_INPUT}"
                raise self._at(("sources", each.name), what, f"with {_VAL_INPUT}, val_fraction = 0 in [tokenize]")

    def _absolute(self, name: str) -> str:
        """Return an input as it is named from anywhere: in the file it is relative to the file."""
        return name if is_url(name) else str(Path(self._path).absolute().parent / name)

    def _table(self, value: Any, at: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._at(at, f"{'.'.join(at)} is no table", f"[{'.'.join(at)}] and a line for each option")
        return value

    def _weight(self, value: Any, at: tuple[str, ...]) -> float:
        if not _is_number(value) or value < 0:
            raise self._at(at, f"{at[-1]} is {value!r}", "a number from 0 on, such as 0.7")
        return float(value)

    def _epochs(self, value: Any, at: tuple[str, ...]) -> float:
        if not _is_number(value) or not 0 < value < MOST_COPIES:
            raise self._at(at, f"{at[-1]} is {value!r}", f"a number above 0, less than {MOST_COPIES:,}")
        return float(value)

    def _check_tokens(self, value: Any, at: tuple[str, ...]) -> None:
        try:
            parse_tokens(value)
        except UsageError as error:
            raise self._at(at, error.what, error.allowed or "") from None

    def _check_names(self, table: Mapping[str, Any], known: Iterable[str], at: tuple[str, ...]) -> None:
        for name in table:
            if name not in known:
                where, allowed = f" in [{'.'.join(at)}]" if at else "", sorted(known)
                meant = "" if name in _ELSEWHERE else _meant(name.replace("-", "_"), allowed)
                raise self._at((*at, name), f"{name} is not known{where}{meant}", _ELSEWHERE.get(name) or ", ".join(allowed))

    def _check_option(self, option: Any, value: Any, at: tuple[str, ...]) -> None:
        try:
            option.check(tuple(value) if isinstance(value, list) else value)
        except UsageError as error:
            raise self._at(at, f"{error.what}{_meant(str(value), option.choices or ())}", error.allowed or "") from None

    def _at(self, at: tuple[str, ...], what: str, allowed: str) -> UsageError:
        return _wrong(self._path, self.line(at), what, allowed)

    def line(self, at: tuple[str, ...]) -> int | None:
        """Return the number of the line in which a table or a value of one begins; None where it cannot be found."""
        table, key = at[:-1], at[-1]
        current: tuple[str, ...] = ()
        for number, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("[") and (names := _header(line)):
                current = names
                if current == at:
                    return number
            elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
                return number
        return None


def _header(line: str) -> tuple[str, ...]:
    """Return the names in the line that begins a table; none for a line of a value, which may look like one."""
    names: list[str] = []
    try:
        inner = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    while isinstance(inner, dict) and inner:
        (name, inner), *_ = inner.items()
        names.append(name)
    return tuple(names)


def _meant(word: str, known: Sequence[str]) -> str:
    """Return what to say of a known word that was probably meant; empty if none is near."""
    near = get_close_matches(word.lower(), known, 1, _NEAR)
    return f"; did you mean {near[0]}?" if near else ""


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _wrong(path: str, line: int | None, what: str, allowed: str, next_step: str = _CORRECT) -> UsageError:
    where = path if line is None else f"{path}, line {line}"
    return UsageError(what, where=where, allowed=allowed, next_step=next_step)
