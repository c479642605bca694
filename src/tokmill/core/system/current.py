"""Which form of the system's calls this process uses (`plain.py`)."""

from __future__ import annotations

import os
import sys

from tokmill.core.system.plain import System

PLAIN_VARIABLE = "TOKMILL_PLAIN_POSIX"
"""Set to 1, it makes Linux do with the plain form: so the tests run what another system would."""


def _choose() -> System:
    """Return the form for this system."""
    if sys.platform == "linux" and os.environ.get(PLAIN_VARIABLE) != "1":
        from tokmill.core.system.linux import Linux

        return Linux()
    return System()


SYSTEM = _choose()
