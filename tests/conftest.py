"""What every test stands on: no settings of the person who runs them, and hypothesis without a clock."""

from __future__ import annotations

import os

from hypothesis import settings

for name in [n for n in os.environ if n.startswith("TOKMILL_")]:
    del os.environ[name]

# A shared machine is slow at times; a test must not fail for it.
settings.register_profile("tokmill", deadline=None)
settings.load_profile("tokmill")
