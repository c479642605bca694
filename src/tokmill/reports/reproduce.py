"""The settings of an output in words, and the commands that make it again."""

from __future__ import annotations

import math
import os
import shlex
from typing import TYPE_CHECKING

from tokmill.core.config import typed_separator
from tokmill.core.deduplication import Deduplication, Removal
from tokmill.core.output_spec import Shards
from tokmill.core.records import STDIN, text_to_path
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.arrangement import Arrangement
    from tokmill.core.config import Content, Provenance
    from tokmill.core.packing import Packing
    from tokmill.core.records import Tokenizer

_COLUMNS = 88
_MOST = 20
"""Inputs that a command names; of the others it says how many."""


def settings(content: Content) -> list[tuple[str, str]]:
    """Return every setting that decides the bytes: name and value."""
    tokenizer = content.tokenizer
    return [
        ("tokenizer", tokenizer.name),
        ("its SHA-256", tokenizer.sha256 or "not known"),
        (
            "end-of-text id",
            f"{tokenizer.eot_id} {content.eot} each document" if content.eot != "none" else "none between documents",
        ),
        ("ids", f"{content.dtype}, little-endian"),
        ("format", content.format),
        *([("names begin with", content.name)] if content.name else []),
        ("shards", str(content.shards) if isinstance(content.shards, Shards) else "one file a side"),
        *([("parts", f"{content.n_parts:,}, each with files of its own")] if content.n_parts else []),
        *([("packed", _packed(content.packing))] if content.packing else []),
        ("separator of text files", typed_separator(content.separator)),
        ("text key", content.text_key),
        *([("encoding", ", ".join(sorted({each.encoding or "utf-8" for each in content.inputs})))] if _encoding(content) else []),
        *([("delimiter", content.delimiter)] if content.delimiter else []),
        *([("quotes in CSV and TSV", content.quoting)] if content.quoting else []),
        ("validation", _validation(content)),
        *([("sample", f"{content.sample!r} of the documents, seed {content.seed}")] if content.sample else []),
        *([("end", f"the document that reaches {counted(content.max_tokens, 'token')}")] if content.max_tokens else []),
        ("empty documents", "kept" if content.keep_empty else "left out"),
        ("bad records", content.on_error),
        ("bytes that are not UTF-8", content.encoding_errors),
        ("fingerprint", content.fingerprint()),
    ]


def _packed(packing: Packing) -> str:
    dropped = {"nothing": "", "rests": ", rests left out", "long": ", longer documents left out"}[packing.drop]
    return f"sequences of {packing.sequence:,}, seed {packing.seed}, filled up with the id {packing.pad_id:,}{dropped}"


def _validation(content: Content) -> str:
    n = sum(each.side == "val" for each in content.inputs)
    if n:
        return f"all documents of {counted(n, 'input')}"
    if content.val_tail:
        return f"the text from byte {content.val_tail.begin:,} on"
    until = f", until they have {counted(content.val_tokens, 'token')}" if content.val_tokens else ""
    return f"{content.val_fraction!r} of the documents, seed {content.seed}{until}"


def commands(content: Content, made_from: Sequence[Provenance] | object, directory: str, removal: Removal | object = None) -> str:
    """Return the commands that make an output again, one a line. removal: what was removed from it."""
    sources = list(made_from) if isinstance(made_from, tuple) else []
    paths = [each.path for each in sources]
    if not sources or any(each.how == "append" for each in sources):
        # Appended inputs come after the others, so one run over all of them gives the same bytes.
        paths = [each.path for each in content.inputs]
        for_val = _first([each.path for each in content.inputs if each.side])
        words = ["tokenize", *_first([each.path for each in content.inputs if not each.side])]
        words += [*_input_format(content), *_options(content), *(part for path in for_val for part in ("--val-input", path))]
        if content.origin and content.origin.arranged:
            words += ["--shuffle", str(content.origin.arranged.seed)]
        if content.origin and content.origin.deduplicated:
            words += ["--dedup"]
        if content.n_parts:
            return "\n".join([_parts(words, content.n_parts, directory), *_remarks(paths)])
    elif sources[0].how == "merge":
        # It does no harm if other settings differ; without it, merge stops at different validation sides.
        words = ["merge", *_first(paths), *["--allow-other-split"] * bool(content.origin), *_offsets(content)]
    elif sources[0].how == "pack" and content.packing:
        words = _packing(sources, content, content.packing)
    elif sources[0].how in ("shuffle", "mix") and content.origin and content.origin.arranged:
        words = _arranging(sources, content, content.origin.arranged)
    elif sources[0].how == "dedup" and content.origin and content.origin.deduplicated:
        words = [
            "dedup",
            *_first(paths),
            *_against(removal),
            *_near(content.origin.deduplicated),
            *_shape(content),
            *_offsets(content),
        ]
    else:
        kind = ["reshard"] if sources[0].how == "reshard" else ["convert", "--format", content.format]
        given = []
        if sources[0].how == "convert":
            # Ids that came without end-of-text ids stay so; there is no option for it.
            given = [*(["--to-eot", content.eot] if content.eot != "none" else []), "--to-dtype", content.dtype]
        if not sources[0].fingerprint:
            paths, stated = _bare(content)
            given = [*given, *stated]
        shards = ["--shard-tokens", str(content.shards.tokens)] if isinstance(content.shards, Shards) else []
        whole = ["--shard-documents"] if isinstance(content.shards, Shards) and content.shards.whole_documents else []
        words = [*kind, *_first(paths), *given, *shards, *whole, *_offsets(content)]
    return "\n".join([_line("tokmill", *words, "--out", directory), *_remarks(paths)])


def _arranging(sources: Sequence[Provenance], content: Content, arranged: Arrangement) -> list[str]:
    """Return the words of the command that shuffles or mixes outputs as they were."""
    paths, options = [text_to_path(each.path) for each in sources], ["--seed", str(arranged.seed), *_shape(content)]
    if sources[0].how == "shuffle":
        return ["shuffle", *_first(paths), *options, *_offsets(content)]
    wished = [source.wished_tokens for source in arranged.sources]
    epochs = max((math.ceil(n / source.tokens) for n, source in zip(wished, arranged.sources, strict=True) if n), default=1)
    weighted = [f"{path}={n}" for path, n in zip(paths, wished, strict=True)]
    options += _offsets(content)
    return ["mix", *weighted, "--tokens", str(sum(wished)), "--max-epochs", str(epochs), *options]


def _offsets(content: Content) -> list[str]:
    return ["--offsets"] * bool(content.offsets)


def _packing(sources: Sequence[Provenance], content: Content, packing: Packing) -> list[str]:
    """Return the words of the command that packs outputs as they were."""
    options = ["--sequence", str(packing.sequence), "--seed", str(packing.seed), "--pad-id", str(packing.pad_id)]
    options += ["--drop", packing.drop] if packing.drop != "nothing" else []
    options += ["--format", content.format]
    if isinstance(content.shards, Shards):
        options += ["--shard-tokens", str(content.shards.tokens)]
    return ["pack", *_first([text_to_path(each.path) for each in sources]), *options]


def _shape(content: Content) -> list[str]:
    """Return the options of a command that writes into any format."""
    options = ["--format", content.format]
    if isinstance(content.shards, Shards):
        options += ["--shard-tokens", str(content.shards.tokens), *["--shard-documents"] * content.shards.whole_documents]
    return options


def _against(removal: Removal | object) -> list[str]:
    """Return the options that name the outputs whose documents were removed."""
    against = removal.against if isinstance(removal, Removal) else ()
    return [part for path in against for part in ("--against", text_to_path(path))]


def _near(rule: Deduplication) -> list[str]:
    """Return the options that say what near copies are."""
    if rule.near is None:
        return []
    names = ("measure", "ngram", "bands", "rows", "shortest")
    return ["--near", repr(rule.near.threshold), *(part for name in names for part in (f"--{name}", str(getattr(rule.near, name))))]


def _parts(words: Sequence[str], n_parts: int, directory: str) -> str:
    """Return the commands for an output that was made in parts: one run would give other names and other shards."""
    numbered = f"$part/{n_parts}"
    tokenize = _line("tokmill", *words, "--part", numbered, "--out", directory).replace(shlex.quote(numbered), numbered)
    loop = f"for part in $(seq 0 {n_parts - 1}); do\n{tokenize} || break\ndone"
    return f"{loop}\n{_line('tokmill', 'finalize', directory)}"


def _bare(content: Content) -> tuple[list[str], list[str]]:
    """Return the bare files of the training side, and the options that say what is in them."""
    paths = [each.path for each in content.inputs]
    stated = content.origin.bare_files if content.origin else None
    if stated is None:
        return paths, []
    options = [
        "--from-format",
        stated.format,
        "--from-dtype",
        stated.dtype,
        "--from-eot",
        stated.eot,
        "--from-eot-id",
        str(stated.eot_id),
    ]
    if content.tokenizer.is_known:
        options += ["--from-tokenizer", _tokenizer(content.tokenizer)]
    n_train = len(paths) - stated.n_val
    return paths[:n_train], options + [part for path in _first(paths[n_train:]) for part in ("--val-input", path)]


def _remarks(paths: Sequence[str]) -> list[str]:
    """Return what the command cannot say, as comments of a shell."""
    remarks = []
    if len(paths) > _MOST:
        remarks.append(f"# ... stands for {len(paths) - _MOST:,} more: the manifest has them all")
    if STDIN in paths:
        remarks.append("# - is standard input: the same bytes must come from there")
    return remarks


def _input_format(content: Content) -> list[str]:
    """Return `--input-format` if it was given: if the names of inputs say another format than they were read as."""
    from tokmill.read import input_format_of

    source = next(iter(content.inputs), None)
    given = input_format_of(source) if source is not None else None
    return ["--input-format", given] if given else []


def _options(content: Content) -> list[str]:
    """Return the options that differ from their defaults, and those whose default depends on other options."""
    tokenizer = content.tokenizer
    wanted = [
        ("--tokenizer", _tokenizer(tokenizer), tokenizer.name != "gpt2"),
        ("--eot-token", str(tokenizer.eot_id), tokenizer.kind == "huggingface"),
        ("--separator", typed_separator(content.separator), content.separator != "<|endoftext|>"),
        ("--text-key", content.text_key, content.text_key != "text"),
        ("--encoding", _encoding(content), bool(_encoding(content))),
        ("--delimiter", content.delimiter or "", bool(content.delimiter)),
        ("--quoting", content.quoting or "auto", bool(content.quoting)),
        ("--format", content.format, content.format != "raw"),
        ("--name", content.name or "", bool(content.name)),
        ("--eot", content.eot, True),
        ("--dtype", content.dtype, True),
        ("--val-fraction", repr(content.val_fraction), not content.val_tail and not any(each.side for each in content.inputs)),
        ("--val-tail", _tail_bytes(content), bool(content.val_tail)),
        ("--val-tokens", str(content.val_tokens), bool(content.val_tokens)),
        ("--seed", str(content.seed), content.seed != 0),
        ("--max-tokens", str(content.max_tokens), bool(content.max_tokens)),
        ("--sample", repr(content.sample), bool(content.sample)),
        ("--encoding-errors", content.encoding_errors, content.encoding_errors != "strict"),
        ("--on-error", content.on_error, content.on_error != "stop"),
    ]
    options = [part for option, value, is_given in wanted if is_given for part in (option, value)]
    if isinstance(content.shards, Shards):
        options += ["--shard-tokens", str(content.shards.tokens)]
        options += ["--shard-documents"] * content.shards.whole_documents + ["--drop-tail"] * content.shards.drop_tail
    return options + ["--offsets"] * bool(content.offsets) + ["--keep-empty"] * content.keep_empty


def _encoding(content: Content) -> str:
    """Return the encoding of the inputs that are not UTF-8; of outputs that were appended or merged they may have several."""
    return next((each.encoding for each in content.inputs if each.encoding), "")


def _tail_bytes(content: Content) -> str:
    """Return how many bytes of the text are for validation: the cut is found again where it is."""
    return str((content.inputs[0].size_bytes or 0) - content.val_tail.begin) if content.val_tail else ""


def _tokenizer(tokenizer: Tokenizer) -> str:
    """Return its name; if that was a path, the absolute one: the command works in any directory, like the inputs' paths."""
    below = "/".join(part for part in os.path.normpath(tokenizer.name).split("/") if part not in ("", ".", ".."))
    directory = os.path.dirname(tokenizer.path)
    if not below:
        return directory
    return next((path for path in (tokenizer.path, directory) if path.endswith(f"/{below}")), tokenizer.name)


def _first(paths: Sequence[str]) -> list[str]:
    more = [f"...{len(paths) - _MOST:,} more..."] if len(paths) > _MOST else []
    return [*paths[:_MOST], *more]


def _line(*parts: str) -> str:
    """Return one command, broken into lines that a shell takes as one; a value stays beside its option."""
    units: list[str] = []
    for part in map(shlex.quote, parts):
        if units and units[-1].startswith("--") and " " not in units[-1] and not part.startswith("--"):
            units[-1] += f" {part}"
        else:
            units.append(part)
    lines = [units[0]]
    for unit in units[1:]:
        if len(lines[-1]) + len(unit) > _COLUMNS:
            lines.append(f"    {unit}")
        else:
            lines[-1] += f" {unit}"
    return " \\\n".join(lines)
