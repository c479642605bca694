"""`mix --recipe`: the lines with which a trainer mixes outputs itself, by the tokens that they have. Nothing is written."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.errors import UsageError
from tokmill.core.text import quoted
from tokmill.derive.arguments import check_choice, named_paths, one_each
from tokmill.derive.merging import check_agreement
from tokmill.derive.mixing import shares_of, total_tokens
from tokmill.derive.source import Source
from tokmill.formats import parse_tokens

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from fractions import Fraction

RECIPES = {"megatron": "megatron", "olmo": "olmo", "streaming": "mds", "nanotron": "datatrove"}
"""The format that each trainer reads."""


def mix_recipe(
    weights: Mapping[str, float] | Sequence[tuple[str | os.PathLike[str], float | str]],
    trainer: str,
    *,
    tokens: str | int | None = None,
    max_epochs: float | Sequence[float] = 4,
    allow_other_split: bool = False,
) -> str:
    """Return the lines with which a trainer mixes complete outputs itself, as `tokmill mix --recipe` prints them.

    The weights are shares of tokens, so those of an output of several files are divided by what each file holds.

    Args:
        weights: As of `mix`; those that are 0 are left out.
        trainer: `megatron`, `olmo`, `streaming` or `nanotron`.
        tokens: As of `mix`.
        max_epochs: As of `mix`.
        allow_other_split: As of `mix`.

    Raises:
        UsageError: outputs that do not agree, that the trainer does not read, or that do not have so many tokens.
    """
    check_choice("--recipe", trainer, tuple(RECIPES))
    pairs = list(weights.items()) if isinstance(weights, Mapping) else list(weights)
    shares = shares_of(pairs)
    sources = [Source.load(path) for path in one_each([name for name, _ in pairs], named_paths)]
    check_agreement(sources, allow_other_split=allow_other_split)
    if sources[0].content.format != RECIPES[trainer]:
        raise UsageError(
            f"{trainer} does not read the format {sources[0].content.format}",
            where=str(sources[0].directory),
            allowed=f"outputs of the format {RECIPES[trainer]}",
            next_step=f"tokmill convert {quoted(str(sources[0].directory))} --format {RECIPES[trainer]} --out DIR, for each",
        )
    total = total_tokens(sources, shares, None if tokens is None else parse_tokens(tokens, "--tokens"), max_epochs)
    taken = [(source, share) for source, share in zip(sources, shares, strict=True) if share]
    write = {"megatron": _megatron, "olmo": _olmo, "streaming": _streaming, "nanotron": _nanotron}[trainer]
    return "\n".join(write(taken, total))


def _megatron(sources: Sequence[tuple[Source, Fraction]], _total: int) -> list[str]:
    """Return arguments of Megatron-LM: a weight and a prefix for each file of ids."""
    train = [
        word
        for source, share in sources
        for name, n in _files(source, "train")
        for word in (_number(share * n / source.manifest.counts.tokens_train), name.removesuffix(".bin"))
    ]
    val = [word for source, _ in sources for name, n in _files(source, "val") for word in (str(n), name.removesuffix(".bin"))]
    lines = [shlex.join(["--train-data-path", *train])]
    return [*lines, shlex.join(["--valid-data-path", *val])] if val else lines


def _olmo(sources: Sequence[tuple[Source, Fraction]], total: int) -> list[str]:
    """Return what OLMo-core reads as SourceMixtureDatasetConfig, but for the batch."""
    lines = [f"requested_tokens: {total}", "source_list:", "  sources:"]
    for (source, share), name in zip(sources, _names(sources), strict=True):
        # One more thousandth: it compares whole numbers of tokens.
        epochs = total * share / source.manifest.counts.tokens_train
        lines += [
            f"    - source_name: {_text(name)}",
            f"      target_ratio: {_number(share)}",
            f"      max_repetition_ratio: {max(1.0, (math.ceil(epochs * 1000) + 1) / 1000):g}",
            "      paths:",
            *(f"        - {_text(path)}" for path, _ in _files(source, "train")),
        ]
    return lines


def _streaming(sources: Sequence[tuple[Source, Fraction]], _total: int) -> list[str]:
    """Return streams as llm-foundry has them: arguments of streaming.Stream, by name."""
    lines = ["streams:"]
    for (source, share), name in zip(sources, _names(sources), strict=True):
        lines += [
            f"  {_text(name)}:",
            f"    local: {_text(_path(source))}",
            "    split: train",
            f"    proportion: {_number(share)}",
        ]
    return lines


def _nanotron(sources: Sequence[tuple[Source, Fraction]], _total: int) -> list[str]:
    """Return the data set of a stage of nanotron."""
    return [
        "dataset:",
        "  dataset_folder:",
        *(f"    - {_text(_path(source) + '/train')}" for source, _ in sources),
        "  dataset_weights:",
        *(f"    - {_number(share)}" for _, share in sources),
    ]


def _path(source: Source) -> str:
    return str(Path(source.directory).absolute())


def _files(source: Source, side: str) -> list[tuple[str, int]]:
    """Return paths and tokens of the files of a side that hold ids."""
    files = source.manifest.files.items()
    return [(f"{_path(source)}/{name}", entry.tokens) for name, entry in files if entry.side == side and entry.tokens]


def _names(sources: Sequence[tuple[Source, Fraction]]) -> list[str]:
    """Return a name for each source, no two alike."""
    found: list[str] = []
    for source, _ in sources:
        name = Path(_path(source)).name
        found.append(name if name not in found else f"{name}-{len(found)}")
    return found


def _number(share: Fraction) -> str:
    return f"{float(share):.12g}"


def _text(text: str) -> str:
    """Return a text as YAML has it, which takes JSON's."""
    return json.dumps(text, ensure_ascii=False)
