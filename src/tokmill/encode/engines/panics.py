"""What engines written in Rust raise, as errors of ours.

A panic there arrives as a BaseException of a class that cannot be imported, so it is known by its name; `except Exception` lets it
through. An interrupt is a BaseException too, and stays what it is.
"""

from __future__ import annotations

from tokmill.core.errors import EngineError


def mapped(
    error: BaseException, engine: str, raised: tuple[type[BaseException], ...], allowed: str, next_step: str
) -> BaseException:
    """An EngineError for what an engine raises, panics included; anything else as it is. raised: what counts as the engine's."""
    if not isinstance(error, raised) and type(error).__name__ != "PanicException":
        return error
    return EngineError(f"{engine} failed: {error}", where="a batch of the engine", allowed=allowed, next_step=next_step)
