"""The packages that an extra of tokmill needs, from its installed metadata.

tokmill need not be in an index: from a checkout or a wheel, pip can be asked for the packages themselves.
"""

from __future__ import annotations


def requirements() -> list[tuple[str, str, str]]:
    """Return (name, versions, extra or nothing) of every requirement for this Python; none if tokmill is not installed."""
    # Imported here: only those who lack something need it, and it takes 15 ms.
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("tokmill") or []
        extras = ["", *(metadata.metadata("tokmill").get_all("Provides-Extra") or [])]
    except metadata.PackageNotFoundError:
        return []
    found = []
    for wanted in map(Requirement, lines):
        extra = next((each for each in extras if wanted.marker is None or wanted.marker.evaluate({"extra": each})), None)
        if extra is not None:
            found.append((wanted.name, str(wanted.specifier), extra))
    return found


def install_hint(extra: str) -> str:
    """Return the command that installs what an extra needs: `pip install 'botocore>=1.43'`."""
    parts = [f"'{name}{versions}'" for name, versions, its in requirements() if its == extra]
    return f"pip install {' '.join(parts) or repr(f'tokmill[{extra}]')}"
