"""For every test: no settings of the person who runs them, hypothesis without a clock, SIGINT as in a terminal; a bucket."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.s3 import Bucket

for name in [n for n in os.environ if n.startswith("TOKMILL_")]:
    del os.environ[name]

# A shared machine is slow at times; a test must not fail for it.
settings.register_profile("tokmill", deadline=None)
settings.load_profile("tokmill")

# A shell that starts the suite in the background ignores SIGINT for it, and commands inherit that. Tests interrupt commands.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    """The S3 server of the tests of a file."""
    from support.s3 import s3_server

    with s3_server() as bucket:
        yield bucket


@pytest.fixture
def bucket(server: Bucket) -> Bucket:
    """An empty bucket."""
    server.renew()
    return server
