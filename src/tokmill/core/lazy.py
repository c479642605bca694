"""The public face of a room: names that are imported when they are first used, so that importing a room costs nothing."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = re.compile(r"^if TYPE_CHECKING:\n((?: .*\n|\n)+)", re.MULTILINE)
_IMPORT = re.compile(r"^ +from (tokmill\.[\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)


@cache
def declared(package: str) -> dict[str, tuple[str, str]]:
    """Return the names that a package imports from tokmill under `if TYPE_CHECKING:`, each with its module and name there."""
    spec = sys.modules[package].__spec__
    # Not `get_source`, which imports `tokenize`.
    block = _BLOCK.search(spec.loader.get_data(spec.origin).decode())  # type: ignore[union-attr]
    imports = _IMPORT.findall(re.sub(" *#.*", "", block[1])) if block else []
    return {alias or name: (module, name) for module, names in imports for name, alias in re.findall(r"(\w+)(?: as (\w+))?", names)}


def load(package: str, name: str) -> object:
    """Import one of the declared names of a package, and keep it there. Raises AttributeError."""
    places = declared(package)
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, own_name = places[name]
    value = getattr(import_module(module), own_name)
    setattr(sys.modules[package], name, value)
    return value


def lazy_names(package: str) -> tuple[Callable[[str], object], list[str]]:
    """Return `__getattr__` and `__all__` of a package whose public names are `declared`. package: its `__name__`."""
    return lambda name: load(package, name), sorted(declared(package))
