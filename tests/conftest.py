"""For every test: no settings of the person who runs them, hypothesis without a clock, and SIGINT as in a terminal."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

for name in [n for n in os.environ if n.startswith("TOKMILL_")]:
    del os.environ[name]

# A shared machine is slow at times; a test must not fail for it.
settings.register_profile("tokmill", deadline=None)
settings.load_profile("tokmill")

# A shell that starts the suite in the background ignores SIGINT for it, and commands inherit that. Tests interrupt commands.
signal.signal(signal.SIGINT, signal.default_int_handler)
