"""Advice: what to say of a job or its result, each sentence with the condition under which it is said, and what to type.

A run that skipped every record did what it was asked to; but nobody wants that. Where JSON lines lack the text key, the keys of the
first line are named, because the key is what is mistyped most often.
"""

from __future__ import annotations

import math
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from tokmill.core.config import typed_separator
from tokmill.core.errors import TokmillError
from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.options import PlanOptions
from tokmill.core.outcome import NOTHING
from tokmill.core.records import BLOCK_BYTES, DIVIDE_ABOVE_BYTES, NOT_SAMPLED
from tokmill.core.skipping import HARD_LINK, MOST_LISTED_BYTES, OTHER_FILE, SYMBOLIC_LINK
from tokmill.core.text import counted
from tokmill.formats import FORMATS
from tokmill.read import keys_of, open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokmill.core.config import Content
    from tokmill.core.records import Counts, FileEntry, Input

HOW_AGAIN = "run again with --fresh and"
_MOST_VAL = 0.5
_DEVIATIONS = 5
_SURELY = 3
_FEW = 2
_UNLIKELY = 0.1
"""Chance of an empty side that nobody need know of beforehand."""
_MOST_KEYS = 8
_BLANK_LINE = b"\r\n\r\n"
"""What is between paragraphs where lines end as on Windows."""
_READ_BYTES = 1 << 20
_KEY_REASONS = {"missing_text", "null_text", "not_a_string"}
"""Reasons for skipping that another key may remove."""
_BYTES_PER_TOKEN = 4
"""Roughly right for English text."""
_MANY_FILES = 1000
_MANY_UNKNOWN = 1e-4
"""Share of ids of the unknown token from which it is said: single rare characters are not."""


def unused_notices(options: PlanOptions, inputs: Sequence[Input], *, has_directory: bool) -> list[str]:
    """Return a notice for each option that says how inputs are chosen or read, of which no input takes notice.

    has_directory: whether an input was found in a directory or below a prefix.
    """
    usual, formats = PlanOptions(), {source.format for source in inputs}
    unused = (
        (bool(options.glob) and not has_directory, "--glob", "it chooses files of directories, and none was named"),
        (options.separator != usual.separator and "text" not in formats, "--separator", "no input is a text file"),
        (
            # Without --input-format, it may be that which is missing.
            options.text_key != usual.text_key and formats == {"text"} and options.input_format is not None,
            "--text-key",
            "every input is read as text",
        ),
        (options.delimiter is not None and not formats & {"csv", "tsv"}, "--delimiter", "no input is CSV or TSV"),
        (options.quoting != usual.quoting and not formats & {"csv", "tsv"}, "--quoting", "no input is CSV or TSV"),
    )
    return [f"{option} has no effect: {why}" for is_unused, option, why in unused if is_unused]


def shard_notices(content: Content, n: int | None = None) -> list[str]:
    """Return what to say when the output will be thousands of files. n: how many; None: as the sizes of the inputs tell."""
    if not content.shards:
        return []
    if n is None:
        n = sum(source.size_bytes or 0 for source in content.inputs) // _BYTES_PER_TOKEN // content.shards.tokens
    size = counted(content.shards.tokens, "token")
    return [f"shards of {size}: about {n:,} files; a larger --shard-tokens makes them fewer"] if n >= _MANY_FILES else []


def possibly_short_notices(n_documents: int, bytes_text: int, n_tokens: int, content: Content) -> list[str]:
    """Return what to say before a run whose validation side may well be empty, or too short for the trainer."""
    n, trainer = _n_drawn(n_documents, bytes_text), FORMATS[content.format]
    if content.val_tokens:
        expected_tokens = round(content.val_fraction * n_tokens)
        return few_val_notices(expected_tokens, n, n_tokens, content, "about ") if expected_tokens < content.val_tokens else []
    expected = content.val_fraction * n
    # Half of what is expected is still likely.
    is_short = content.val_fraction * n_tokens < 2 * trainer.wanted_for_val
    chance = (1 - content.val_fraction) ** n
    if not content.val_fraction or not n or (chance < _UNLIKELY and not is_short):
        return []
    about = f"{expected:.1f}" if expected < 10 else f"{expected:,.0f}"
    what = f"about {about} of {counted(n, 'document')} will be for validation"
    what += f": that side may well be empty (chance {100 * chance:.0f} %)" if chance >= _UNLIKELY else ""
    if n == 1:
        return [f"{what}; say with --separator where documents end, or --val-fraction 0"]
    if is_short:
        reason = trainer.too_short if content.val_fraction * n_tokens < 2 * trainer.least_tokens else trainer.few_for_val
        what += f", with about {content.val_fraction * n_tokens:,.0f} tokens: {reason}"
    fraction, is_enough = fraction_for(trainer.wanted_for_val, n, n_tokens)
    return [f"{what}; --val-fraction {fraction} {'gives enough' if is_enough else 'gives more'}, 0 leaves it out"]


def few_val_notices(n_val: int, n_drawn: int, n_tokens: int, content: Content, about: str = "") -> list[str]:
    """Return what to say where the corpus ends before validation has the tokens that it was to have."""
    if not content.val_tokens or n_val >= content.val_tokens:
        return []
    fraction, is_enough = fraction_for(content.val_tokens, n_drawn, n_tokens)
    advice = (
        f"; --val-fraction {fraction} gives {'enough' if is_enough else 'more'}" if float(fraction) > content.val_fraction else ""
    )
    wanted, is_cut = counted(content.val_tokens, "token"), bool(content.max_tokens) and n_tokens >= (content.max_tokens or 0)
    why = "--max-tokens ended the output before" if is_cut else "the corpus has no more"
    return [f"validation has {about}{counted(n_val, 'token')}, not the {wanted} of --val-tokens: {why}{advice}"]


def fraction_for(n_wanted: int, n_drawn: int, n_tokens: int) -> tuple[str, bool]:
    """Return a --val-fraction that very likely gives so many tokens for validation, and whether it does.

    Args:
        n_wanted: Tokens for validation.
        n_drawn: Documents, or blocks where these are divided, that are drawn for a side.
        n_tokens: Tokens of them all.
    """
    # A side of k documents has k mean lengths, give or take sqrt(k) of them: k - 5 sqrt(k) must be enough (lengths vary much).
    n_needed = n_wanted * n_drawn / max(n_tokens, 1)
    k = ((_DEVIATIONS + math.sqrt(_DEVIATIONS**2 + 4 * n_needed)) / 2) ** 2
    fraction = min(_MOST_VAL, k / max(n_drawn, 1))
    # Two digits, rounded up.
    unit = 10.0 ** (math.floor(math.log10(fraction)) - 1)
    fraction = min(_MOST_VAL, math.ceil(round(fraction / unit, 6)) * unit)
    return f"{fraction:.2g}", k <= _MOST_VAL * n_drawn or fraction * n_tokens > _SURELY * n_wanted


def how_again(content: Content, *, is_append: bool) -> str:
    """Return how an output is made with another setting, up to its name. --fresh has the inputs of one command alone."""
    if is_append or content.n_parts:
        return f"make {'the output of all inputs' if is_append else 'all parts'} again, in another directory, with"
    return HOW_AGAIN


def more_for_val(counts: Counts, content: Content, again: str) -> str:
    """Return what to do to have enough tokens for validation; empty where nothing is known that helps."""
    if any(source.side for source in content.inputs):
        return f"for more, {again} more text for --val-input"
    if content.val_tail:
        return f"for more, {again} a larger --val-tail"
    n = _n_drawn(counts.documents_train + counts.documents_val, counts.bytes_text)
    n_tokens = counts.tokens_train + counts.tokens_val
    fraction, is_enough = fraction_for(FORMATS[content.format].wanted_for_val, n, n_tokens)
    if n < _FEW or float(fraction) <= content.val_fraction:
        return ""
    return f"{'for enough' if is_enough else 'for more'}, {again} --val-fraction {fraction}"


def list_notices(files: Mapping[str, FileEntry]) -> list[str]:
    """Return what to say of a list of skipped records that does not have all of them."""
    listed = files.get(SKIPPED_NAME)
    if listed is None or listed.size_bytes < MOST_LISTED_BYTES:
        return []
    return [f"{SKIPPED_NAME} ends after {MOST_LISTED_BYTES >> 20} MiB: later records were skipped and counted without a line in it"]


def emptiness_notices(counts: Counts, content: Content, again: str, *, is_listed: bool) -> list[str]:
    """Return what to say of an output without a token, without one on a side though both were asked for, or that lost text.

    is_listed: whether skipped.jsonl is there.
    """
    reasons = {reason: n for reason, n in counts.skipped.items() if n}
    named = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()))
    where = f"; {SKIPPED_NAME} in the output says where" if is_listed else ""
    is_empty = not counts.tokens_train and not counts.tokens_val
    n = counts.documents_train + counts.documents_val
    is_one_sided = bool(counts.tokens_train) != bool(counts.tokens_val)
    advice: tuple[tuple[bool, Callable[[], str]], ...] = (
        (is_empty and not counts.documents, lambda: "the inputs hold no document; are they the right ones?"),
        (is_empty and set(reasons) <= {"empty"}, lambda: f"{counted(counts.documents, 'document')}, and no text in any"),
        (
            is_empty and set(reasons) <= {"empty", NOT_SAMPLED},
            lambda: f"--sample {content.sample:g} chose none of {counted(counts.documents, 'document')}; {again} a larger one",
        ),
        (is_empty, lambda: f"every record was skipped ({named}){_key_question(content, reasons, again) or where}"),
        (n > 0 and is_one_sided and content.val_fraction > 0, lambda: _empty_side(counts, content, n, again)),
        (
            n > 0 and is_one_sided and bool(content.val_tail),
            lambda: (
                f"no document for {'validation' if counts.tokens_train else 'training'} was taken: that side is empty"
                + (f"; --sample {content.sample:g} chose {counted(n, 'document')}" if content.sample else "")
            ),
        ),
        (
            n > 0 and is_one_sided and any(source.side for source in content.inputs),
            lambda: (
                "no document "
                + ("of --val-input was taken: " if counts.tokens_train else "for training was taken: ")
                + f"the {'validation' if counts.tokens_train else 'training'} side is empty"
            ),
        ),
    )
    found = next((say() for condition, say in advice if condition), None)
    said = [f"{NOTHING}{found}" if is_empty else found] if found else []
    return said + _long_notices(reasons, again, where) + _archive_notices(reasons) + _loss_notices(counts)


def _long_notices(reasons: Mapping[str, int], again: str, where: str) -> list[str]:
    """Return what to say of records that another --memory would take: what comes out depends on it."""
    n = reasons.get("too_long", 0)
    left_out = f"{counted(n, 'record')} left out, too long for this --memory: to have all, {again} a larger --memory{where}"
    return [left_out] if n else []


def _archive_notices(reasons: Mapping[str, int]) -> list[str]:
    """Return what to say of members of archives that were passed over."""
    others, links = reasons.get(OTHER_FILE, 0), reasons.get(HARD_LINK, 0) + reasons.get(SYMBOLIC_LINK, 0)
    found = [
        f"{counted(n, noun)}{what}" for n, noun, what in ((others, "member", " (hidden, or not of text)"), (links, "link", "")) if n
    ]
    return [f"passed over in archives: {' and '.join(found)}"] if found else []


def _loss_notices(counts: Counts) -> list[str]:
    """Return what to say of text that is not in the ids: documents without an id, and ids of the unknown token."""
    n_tokens = counts.tokens_train + counts.tokens_val
    found = []
    if counts.documents_without_ids:
        found.append(f"the tokenizer makes no id of {counted(counts.documents_without_ids, 'document')} with text")
    if counts.unknown_ids >= _MANY_UNKNOWN * n_tokens and counts.unknown_ids:
        share = 100 * counts.unknown_ids / n_tokens
        found.append(f"{counts.unknown_ids:,} ids ({share:.2g} %) are of the unknown token: the text that they stand for is lost")
    return [f"{'; '.join(found)}. Does the tokenizer have the characters of the corpus?"] if found else []


def _n_drawn(n_documents: int, bytes_text: int) -> int:
    """Return how many choices of a side there are: documents, or blocks where these are long enough to be divided."""
    return max(n_documents, bytes_text // BLOCK_BYTES) if bytes_text > DIVIDE_ABOVE_BYTES * n_documents else n_documents


def _key_question(content: Content, reasons: dict[str, int], again: str) -> str:
    if not _KEY_REASONS & set(reasons):
        return ""
    keys = next((keys for source in content.inputs if source.format == "jsonl" if (keys := keys_of(source))), [])
    more = ", ..." if len(keys) > _MOST_KEYS else ""
    there = f" The first line has the keys {', '.join(keys[:_MOST_KEYS])}{more}." if keys else ""
    return f": is --text-key {content.text_key} right?{there} If not, {again} the right one"


def _empty_side(counts: Counts, content: Content, n: int, again: str) -> str:
    name, side = ("val.bin", "validation") if counts.tokens_train else ("train.bin", "training")
    what = f"{name} is empty (np.memmap cannot open such a file, tokmill.open can)"
    if content.format != "raw" or content.shards:
        what = f"there is no file for {side}"
    taken = " that --sample chose" if content.sample else " before the end of --max-tokens" if content.max_tokens else ""
    what += f": of {counted(n, 'document')}{taken} none was drawn for {side}"
    if n == 1 and not taken and counts.bytes_text <= DIVIDE_ABOVE_BYTES and content.inputs[0].format == "text":
        what += f", and a document of less than 64 MiB is not divided; {_separator_advice(counts, content)}"
        has_tail = len(content.inputs) == 1 and content.inputs[0].compression == "none" and content.inputs[0].size_bytes
        what += f", or for its end {again} --val-tail 10%" if side == "validation" and has_tail else ""
    elif side == "training" or content.val_fraction >= _MOST_VAL:
        what += f"; {again} another --seed"
    else:
        what += f"; {more_for_val(counts, content, again) or f'for some, {again} --val-fraction {_MOST_VAL}'}"
    return f"{what}. With --val-fraction 0, all text is used for training"


def _separator_advice(counts: Counts, content: Content) -> str:
    """Return what to do about text that is one document; of lines that end as on Windows, which --separator is likely meant."""
    wanted, source = (content.separator or "").encode(), content.inputs[0]
    if wanted and wanted != _BLANK_LINE and counts.documents == 1 and source.size_bytes and not source.is_remote:
        with suppress(TokmillError, OSError), closing(open_stream(source)) as stream:
            if _BLANK_LINE in stream.read(_READ_BYTES):
                typed = typed_separator(content.separator)
                return f"the separator {typed} does not occur; lines end in \\r\\n: try --separator '\\r\\n\\r\\n'"
    return "say with --separator where documents end"
