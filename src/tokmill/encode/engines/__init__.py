"""One file an engine: libraries that turn text into ids, each as a `core.protocols.Encoder`."""

from __future__ import annotations

from tokmill.core.errors import EngineError


def engine_error(
    error: BaseException, engine: str, raised: tuple[type[BaseException], ...], allowed: str, next_step: str
) -> BaseException:
    """Return an EngineError for what an engine raises, panics included; anything else, such as an interrupt, as it is.

    A panic of Rust arrives as a BaseException of a class that cannot be imported, so it is known by its name. raised: what else
    counts as the engine's.
    """
    if not isinstance(error, raised) and type(error).__name__ != "PanicException":
        return error
    return EngineError(f"{engine} failed: {error}", where="a batch of the engine", allowed=allowed, next_step=next_step)


def unknown_id(what: str, allowed: str) -> EngineError:
    """Return the error for an id that no token has."""
    return EngineError(
        what, where="ids to decode", allowed=allowed, next_step="check that the tokens and the tokenizer belong together"
    )
