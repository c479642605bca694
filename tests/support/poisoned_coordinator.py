"""A coordinator whose workers abort where a document says so: `python -m support.poisoned_coordinator JOB_FD EVENT_FD`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tokmill.run.coordinator import _carry_out
from tokmill.run.encoding import serve
from tokmill.run.worker import Worker

if TYPE_CHECKING:
    from tokmill.core.records import Batch, EncodedBatch
    from tokmill.run.encode_batch import EncodeStage

POISON = b"a document that no worker survives"
_encode = Worker._encode


def _encode_or_abort(self: Worker, stage: EncodeStage, batch: Batch) -> EncodedBatch:
    if any(POISON in document for document in batch.documents):
        os.abort()
    return _encode(self, stage, batch)


if __name__ == "__main__":
    Worker._encode = _encode_or_abort  # type: ignore[method-assign]
    serve(_carry_out, int(sys.argv[1]), int(sys.argv[2]))
