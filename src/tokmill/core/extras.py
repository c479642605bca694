"""What an extra of tokmill consists of, as its installed metadata say: the packages to install, by name.

tokmill need not be in an index: from a checkout or a wheel, the packages themselves are what pip can be asked for.
"""

from __future__ import annotations

import re
import sys

_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;\s*(.*))?")


def requirements() -> list[tuple[str, str, str]]:
    """(name, versions, extra or nothing) of every requirement that is for this Python; none where tokmill is not installed."""
    # Of use to those who lack something; everybody else would wait 15 ms for it.
    from importlib import metadata

    try:
        lines = metadata.requires("tokmill") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        name, versions, marker = _REQUIREMENT.fullmatch(line.strip()).groups()  # type: ignore[union-attr]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker or "")
        below = re.search(r"python_version < ['\"](\d+)\.(\d+)['\"]", marker or "")
        if not below or sys.version_info[:2] < (int(below[1]), int(below[2])):
            found.append((name, versions, extra[1] if extra else ""))
    return found


def install_hint(extra: str) -> str:
    """The command that installs what an extra needs: `pip install 's3fs>=2026.9'`."""
    parts = [f"'{name}{versions}'" for name, versions, its in requirements() if its == extra]
    return f"pip install {' '.join(parts) or repr(f'tokmill[{extra}]')}"
