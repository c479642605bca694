"""Installs a wheel or an sdist into a new environment and uses it there: `python installed.py FILE`. Needs a package index."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROGRAM = """
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import tokmill

place = Path(tokmill.__file__).resolve()
assert Path(sys.prefix).resolve() in place.parents, place
assert metadata.version("tokmill") == tokmill.__version__
data = tokmill.open("out")
texts = [data.decode(ids) for side in ("train", "val") for ids in data.documents(side)]
assert sorted(texts) == Path("corpus.txt").read_text().split("<|endoftext|>")
assert (np.memmap("out/train.bin", np.uint16, mode="r") == data.train).all()
assert (place.parent / "py.typed").is_file()
"""
COMMANDS = (
    ["tokenize", "corpus.txt", "--out", "out", "--val-fraction", "0.2", "--quiet"],
    ["verify", "out", "--source", "corpus.txt", "--quiet"],
    ["shuffle", "out", "--seed", "1", "--out", "shuffled", "--quiet"],
    ["inspect", "shuffled"],
    ["doctor"],
    ["report", "out", "--quiet"],
)


def main(made: Path) -> None:
    with tempfile.TemporaryDirectory() as top:
        venv.create(Path(top, "env"), with_pip=True)
        python, place = Path(top, "env", "bin", "python"), Path(top, "elsewhere")
        place.mkdir()
        (place / "corpus.txt").write_text("<|endoftext|>".join(f"Some words of document {i:02}." for i in range(10, 40)))
        run(place, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{made.resolve()}[report]")
        for words in COMMANDS:
            run(place, python.with_name("tokmill"), *words)
        run(place, python, "-c", PROGRAM)


def run(place: Path, *words: str | Path) -> None:
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
