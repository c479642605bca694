"""Which id ends a document: found where a tokenizer says it beyond doubt, asked for otherwise, never guessed.

The rule, for a tokenizer.json:

1. `--eot-token` names a special token, by its text or its id.
2. Otherwise it is the `eos_token` of the tokenizer_config.json beside the file, if that is a special token and no other special
   token has one of the names in `NAMES`. In the files of chat models `eos_token` ends a turn (`<|im_end|>`, `<|eot_id|>`), not a
   document; both are there then, and the user is asked. So is one whose file names what is not a special token.
3. Without such a file, or where it names none: the one special token with a name in `NAMES`, if there is exactly one.

Only a special token that text never becomes will do: from any other, text could make the id, and so a document that nobody wrote.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from tokmill.core.errors import UsageError
from tokmill.core.records import path_to_text
from tokmill.core.text import shortened
from tokmill.encode.tokenizer_files import read_file

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

NAMES = ("<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>", "<eos>")
"""Special tokens that end documents in the corpora of the models that have them."""
CONFIG_NAME = "tokenizer_config.json"
_UNCLEAR = "which token ends a document is not clear"
_LIKELY = (("eos", "eod", "eot", "end", "[sep]"), ("sep", "pad"), (), ("cls", "mask", "bos", "start", "<s>"))
"""Parts of names, the likeliest first; the empty entry means all other names."""
_MOST = 12
"""Special tokens that an error lists."""
_MOST_SHOWN = 100
"""Characters of an option's value that an error shows."""


def find_eot(special: Mapping[str, int], path: str, wanted: str | None, unfit: Collection[str] = ()) -> int:
    """Return the id that ends documents, by the rule above.

    Args:
        special: The special tokens and their ids.
        path: Of the tokenizer.json.
        wanted: The value of `--eot-token`.
        unfit: Special tokens that text can become, which are not offered.

    Raises:
        UsageError: It is not clear, or `wanted` is not a special token.
    """
    fit = {token: i for token, i in special.items() if token not in unfit}
    if wanted is not None:
        return _wanted(special, fit, path, wanted)
    named = [name for name in NAMES if name in special]
    eos = _eos_token(os.path.join(os.path.dirname(path), CONFIG_NAME))
    if eos and eos not in special:
        raise _asked(f"{_UNCLEAR}: {CONFIG_NAME} says {eos[:_MOST_SHOWN]!r}, which is no special token of it", fit, path)
    if eos:
        others = [name for name in named if name != eos]
        if not others:
            return special[eos]
        raise _asked(f"{_UNCLEAR}: the tokenizer ends with {eos!r}, and has {', '.join(map(repr, others))} too", fit, path, others)
    if len(named) == 1:
        return special[named[0]]
    what = f"it has {' and '.join(map(repr, named))}" if named else "no special token of a known name ends a text"
    raise _asked(f"{_UNCLEAR}: {what}", fit, path)


def _wanted(special: Mapping[str, int], fit: Mapping[str, int], path: str, wanted: str) -> int:
    if wanted in special:
        return special[wanted]
    by_id = {str(i): i for i in special.values()}
    if wanted in by_id:
        return by_id[wanted]
    raise _asked(f"--eot-token {wanted[:_MOST_SHOWN]!r} is no special token of this tokenizer", fit, path)


def _asked(what: str, fit: Mapping[str, int], path: str, likely: Sequence[str] = ()) -> UsageError:
    shown = ", ".join(shortened([f"{token} ({i})" for token, i in fit.items()], _MOST))
    example = next((token for token in likely if token in fit), None) or min(fit, key=_rank, default=None)
    return UsageError(
        what,
        where=path_to_text(path),
        allowed=f"a special token, by its text or id: {shown}"
        if fit
        else "a tokenizer with a special token that no text becomes: it has none",
        option="--eot-token",
        suggested=example,
        next_step=None if example else "use a tokenizer that has an end-of-text token",
    )


def _rank(token: str) -> int:
    """Return how unlikely a special token is to end documents, by its name."""
    if token in NAMES:
        return NAMES.index(token)
    name = token.lower()
    return len(NAMES) + next((i for i, parts in enumerate(_LIKELY) if any(part in name for part in parts)), _LIKELY.index(()))


def _eos_token(path: str) -> str | None:
    """Return the `eos_token` of a tokenizer_config.json; None without a file or a token in it."""
    try:
        config = msgspec.json.decode(read_file(path, CONFIG_NAME), type=dict[str, msgspec.Raw])
        eos: Any = msgspec.json.decode(config.get("eos_token") or b"null")
    except (UsageError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if isinstance(eos, dict):
        eos = eos.get("content")
    return eos if isinstance(eos, str) else None
