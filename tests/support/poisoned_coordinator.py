"""A coordinator whose workers die where a document says so: `python -m support.poisoned_coordinator JOB_FD EVENT_FD`.

The file that `TOKMILL_TEST_MARK` names is made by the first one that dies.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokmill.run.attendant import Attendant
from tokmill.run.coordinator import _carry_out
from tokmill.run.encoding import serve
from tokmill.run.pool import Pool
from tokmill.run.worker import Worker

if TYPE_CHECKING:
    from tokmill.core.records import Batch, EncodedBatch
    from tokmill.run.encode_batch import EncodeStage

POISON = b"a document that no worker survives"
PATIENT = b"a document that takes until a worker is dead"
UNWRITTEN = b"a document whose worker dies before it writes anything, once"
MARK = "TOKMILL_TEST_MARK"
_encode = Worker._encode
_take_write = Attendant._take_write
_to_die = threading.Event()


def _die() -> None:
    Path(os.environ[MARK]).touch()
    os.abort()


def _encode_or_abort(self: Worker, stage: EncodeStage, batch: Batch) -> EncodedBatch:
    if any(PATIENT in document for document in batch.documents):
        while not os.path.exists(os.environ[MARK]):
            time.sleep(0.001)
    if any(POISON in document for document in batch.documents):
        _die()
    if any(UNWRITTEN in document for document in batch.documents) and not os.path.exists(os.environ[MARK]):
        _to_die.set()
    return _encode(self, stage, batch)


def _write_or_abort(self: Attendant, *of: Any) -> None:
    if _to_die.is_set():
        _die()
    _take_write(self, *of)


if __name__ == "__main__":
    Pool.LEAST_WRITTEN_BYTES = 0
    Worker._encode = _encode_or_abort  # type: ignore[method-assign]
    Attendant._take_write = _write_or_abort  # type: ignore[assignment, method-assign]
    serve(_carry_out, int(sys.argv[1]), int(sys.argv[2]))
