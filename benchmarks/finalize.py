"""What `tokmill finalize` costs for many parts, and what a part costs that is made beside so many others.

    python benchmarks/finalize.py [--parts 1000 5000 25000] [--out DIR]

The corpus has one small file a part, all with the same bytes. The first part is made by the command; the others are copies of
it, with their own numbers and inputs, whose manifests are written by the code that writes them in a run. Then whole commands:
seconds, seconds of the processor, and the most memory that one of their processes had. The files are checked at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tokmill.core.manifest import encode_manifest, load_manifest
from tokmill.output.parts import part_contents, part_directory
from tokmill.run.parts.finalize import parts_store

DOCUMENTS = b"<|endoftext|>".join(b"document %d, and some more words" % i for i in range(8))


def command(*arguments: object) -> dict[str, float]:
    """What a whole command took."""
    began_s = time.monotonic()
    argv = [sys.executable, "-m", "tokmill", *map(str, arguments), "-q"]
    pid = os.posix_spawn(argv[0], argv, os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(argv)}")
    return {
        "seconds": round(time.monotonic() - began_s, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mib": used.ru_maxrss >> 10,
    }


def make_corpus(directory: Path, n_parts: int) -> None:
    directory.mkdir()
    for i in range(n_parts):
        (directory / f"{i:05}.txt").write_bytes(DOCUMENTS)


def copy_first_part(out: Path) -> None:
    """Make all parts but the first and the last of the first one."""
    plan = parts_store(str(out)).read_plan()
    assert plan is not None
    first = load_manifest(part_directory(out, 0))
    data = {name: (out / ".tokmill/parts/00000" / name).read_bytes() for name in first.files}
    for index, content in enumerate(part_contents(plan.content)):
        if not 0 < index < plan.content.n_parts - 1:
            continue
        own = {name: name.replace("00000", f"{index:05}") for name in first.files}
        segments = [msgspec.structs.replace(s, files={own[name]: span for name, span in s.files.items()}) for s in first.segments]
        manifest = msgspec.structs.replace(
            first,
            content=content,
            fingerprint=content.fingerprint(),
            files={own[name]: entry for name, entry in first.files.items()},
            segments=segments,
        )
        directory = out / f".tokmill/parts/{index:05}"
        directory.mkdir()
        for name, there in own.items():
            (directory / there).write_bytes(data[name])
        (directory / "manifest.json").write_bytes(encode_manifest(manifest, str(directory)))


def measure(n_parts: int, scratch: Path) -> dict[str, Any]:
    corpus, out = scratch / "finalize-corpus", scratch / "finalize-out"
    for path in (corpus, out):
        shutil.rmtree(path, ignore_errors=True)
    make_corpus(corpus, n_parts)
    part = ("tokenize", corpus, "--val-fraction", 0.4, "--out", out, "--part")
    command(*part, f"0/{n_parts}")
    copy_first_part(out)
    result = {"parts": n_parts, "last part": command(*part, f"{n_parts - 1}/{n_parts}"), "finalize": command("finalize", out)}
    result["manifest_bytes"] = (out / "manifest.json").stat().st_size
    result["load"] = round(os.getloadavg()[0], 1)
    command("verify", out)
    for path in (corpus, out):
        shutil.rmtree(path)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--parts", type=int, nargs="+", default=[1000, 5000, 25_000])
    parser.add_argument("--out", type=Path, default=Path("build"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    for n_parts in options.parts:
        print(json.dumps(measure(n_parts, options.out.resolve())), flush=True)


if __name__ == "__main__":
    main()
