"""For every test: no settings of the person who runs them, hypothesis without a clock, SIGINT as in a terminal; a bucket."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike
    from support.s3 import Bucket

for name in [n for n in os.environ if n.startswith("TOKMILL_")]:
    del os.environ[name]

# A shared machine is slow at times; a test must not fail for it.
settings.register_profile("tokmill", deadline=None)
settings.load_profile("tokmill")

# A shell that starts the suite in the background ignores SIGINT for it, and commands inherit that. Tests interrupt commands.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _sync(fd: FileDescriptorLike) -> None:
    """Fail as fsync does for a descriptor that is none."""
    os.fstat(fd if isinstance(fd, int) else fd.fileno())


# What fsync does can be seen by none but those who cut the power: tests of that have a virtual machine. Without it every test here
# would wait for the disk, some for most of their time. Commands are processes of their own, and wait as ever.
os.fsync = _sync


def pytest_configure(config: pytest.Config) -> None:
    """Where no bytecode may be written beside the sources, keep that of commands as long as the suite runs; they start faster."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        folder = tempfile.TemporaryDirectory(prefix="tokmill-bytecode-", ignore_cleanup_errors=True)
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with a file that takes long: at the end one process alone would work on it."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="module")
def workers_in_process() -> Iterator[None]:
    """For modules that test what runs do: what they call starts no process. Commands are processes as ever."""
    from support import in_process

    with in_process.workers_in_process():
        yield


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
