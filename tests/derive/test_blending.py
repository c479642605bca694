"""`mix --recipe`: the lines with which trainers mix outputs themselves; `make interop` has them read by the trainers' parsers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import called
from support.corpora import some_documents
from support.runs import tokenize_documents

import tokmill
from tokmill.core.errors import UsageError
from tokmill.core.manifest import load_manifest
from tokmill.derive.blending import RECIPES


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outputs in every format, the first in shards."""
    top = tmp_path_factory.mktemp("outputs")
    for i, name in enumerate(("web", "my books")):
        tokenize_documents(top / name, some_documents(60, 60, i), val_fraction=0.2 * (1 - i))
        for trainer in RECIPES.values():
            shards = {"shard_tokens": 2048 if trainer == "mds" else 1000} if not i else {}
            tokmill.convert(top / name, top / trainer / name, format=trainer, **shards)  # type: ignore[arg-type]
    return top


def said(top: Path, trainer: str, *words: str) -> list[str]:
    a, b = (top / RECIPES[trainer] / name for name in ("web", "my books"))
    done = called("mix", f"{a}=3", f"{b}=1", "--recipe", trainer, "--max-epochs", "8", "--allow-other-split", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(f"{top}/", "").splitlines()


def test_megatron(top: Path) -> None:
    files = load_manifest(top / "megatron" / "web").files
    sizes = {name: entry.tokens for name, entry in files.items() if name.endswith(".bin")}
    n_train = sum(n for name, n in sizes.items() if name.startswith("train"))
    assert len(sizes) > 2
    shards = [
        f"{float(f'{0.75 * n / n_train:.12g}'):.12g} megatron/web/{name[:-4]}" for name, n in sizes.items() if "train" in name
    ]
    val = [f"{n} megatron/web/{name[:-4]}" for name, n in sizes.items() if "val" in name and n]
    assert said(top, "megatron") == [
        f"--train-data-path {' '.join(shards)} 0.25 '{top}/megatron/my books/train'".replace(f"{top}/", ""),
        f"--valid-data-path {' '.join(val)}",
    ]


def test_olmo(top: Path) -> None:
    n_shards = len(list((top / "olmo" / "web" / "train").glob("*.npy")))
    assert n_shards > 1
    assert said(top, "olmo", "--tokens", "2000") == [
        "requested_tokens: 2000",
        "source_list:",
        "  sources:",
        '    - source_name: "web"',
        "      target_ratio: 0.75",
        f"      max_repetition_ratio: {_ratio(top / 'olmo' / 'web', 1500)}",
        "      paths:",
        *(f'        - "olmo/web/train/part-0-{i:05}.npy"' for i in range(n_shards)),
        '    - source_name: "my books"',
        "      target_ratio: 0.25",
        f"      max_repetition_ratio: {_ratio(top / 'olmo' / 'my books', 500)}",
        "      paths:",
        '        - "olmo/my books/train/part-0-00000.npy"',
    ]


def _ratio(out: Path, n_tokens: int) -> str:
    """How often a source is repeated, in thousandths, and one more."""
    return f"{max(1.0, (-(-1000 * n_tokens // load_manifest(out).counts.tokens_train) + 1) / 1000):g}"


def test_streaming(top: Path) -> None:
    assert said(top, "streaming") == [
        "streams:",
        '  "web":',
        '    local: "mds/web"',
        "    split: train",
        "    proportion: 0.75",
        '  "my books":',
        '    local: "mds/my books"',
        "    split: train",
        "    proportion: 0.25",
    ]


def test_nanotron(top: Path) -> None:
    assert said(top, "nanotron") == [
        "dataset:",
        "  dataset_folder:",
        '    - "datatrove/web/train"',
        '    - "datatrove/my books/train"',
        "  dataset_weights:",
        "    - 0.75",
        "    - 0.25",
    ]


def test_a_source_without_weight_is_left_out_and_names_are_told_apart(top: Path) -> None:
    web = top / "mds" / "web"
    lines = tokmill.mix_recipe([(web, 0), (web, 1), (web, 1)], "streaming").splitlines()
    assert [line for line in lines if line.startswith('  "')] == ['  "web":', '  "web-1":']


def test_what_cannot_be_is_refused_with_what_can(top: Path, tmp_path: Path) -> None:
    web = top / "web"
    with pytest.raises(UsageError, match="does not read the format raw") as caught:
        tokmill.mix_recipe([(web, 1)], "olmo")
    assert "tokmill convert" in str(caught.value.next_step)
    with pytest.raises(UsageError, match="times"):
        tokmill.mix_recipe([(top / "olmo" / "web", 1)], "olmo", tokens="1B")
    with pytest.raises(UsageError, match="--recipe"):
        tokmill.mix_recipe([(web, 1)], "nobody")
    for words in (["--recipe", "olmo", "--out", tmp_path / "x"], ["--seed", 1], ["--out", tmp_path / "x"]):
        assert called("mix", f"{web}=1", *words).returncode == 2
    assert not (tmp_path / "x").exists()


def test_options_that_do_nothing_beside_a_recipe_are_told_and_the_result_may_be_json(top: Path) -> None:
    words = ["mix", f"{top / 'olmo' / 'web'}=1", "--recipe", "olmo", "--max-epochs", "8"]
    plain, more = called(*words), called(*words, "--seed", "3", "--format=mds", "--ray", "auto", "--json")
    assert plain.stderr == ""
    assert [line.partition(" has no effect")[0] for line in more.stderr.splitlines()] == [
        "note: --seed",
        "note: --format",
        "note: --ray",
    ]
    assert json.loads(more.stdout) == {"trainer": "olmo", "lines": plain.stdout.splitlines()}
    assert called(*words, "--seed", "3", "--quiet").stderr == ""
