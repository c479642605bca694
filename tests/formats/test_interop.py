"""Every format read by its trainer's own package: the same tokens, and where the reader knows documents the same documents.

Needs the packages, which do not go together with tokmill's own environment: `make interop`. One that is not there is a skip, with
its name. Prints a table: format, package, version, tokens, documents, bytes.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import random
import re
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracle import EOT, gpt2

import tokmill

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

BLOCK = 64
"""Tokens of a sequence, where a reader wants sequences."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(3)
    words = ["the", "a", "token", "corpus", "of", "many", "small", "words", "and", "1859,", "ünïcode", "你好", "too", "\n\n"]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = (" ".join(rng.choices(words, k=rng.choice([1, 5, 50, 500]))) for _ in range(300))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def truth(corpus: Path) -> list[list[int]]:
    """Each document's ids, without marks, by tiktoken alone."""
    return [gpt2().encode_ordinary(json.loads(line)["text"]) for line in corpus.read_text().splitlines()]


@pytest.fixture
def package(request: pytest.FixtureRequest) -> Callable[[str, str], Any]:
    def load(distribution: str, module: str) -> Any:
        try:
            return importlib.import_module(module)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"NOT READ by {distribution}: {error}")

    return load


def define_operators_of_images() -> None:
    """torchvision's, by name alone. mosaicml-streaming imports it for datasets of images; with a torch of another build its own
    library does not load, and then what it registers for these names is an error.
    """
    torch = importlib.import_module("torch")
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    registered = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    names = re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"\)', registered)
    _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
    for name in dict.fromkeys(names):
        _LIBRARIES[-1].define(f"{name}(Tensor x) -> Tensor")


_LIBRARIES: list[Any] = []
"""Kept: with a library go its operators."""


@pytest.fixture(scope="module")
def streaming() -> Any:
    """mosaicml-streaming."""
    try:
        define_operators_of_images()
        return importlib.import_module("streaming")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"NOT READ by mosaicml-streaming: {error}")


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\nformat | package | version | tokens | documents | bytes", *rows, sep="\n")  # noqa: T201  the table is what is asked for


def write(corpus: Path, out: Path, name: str, **options: Any) -> Path:
    tokmill.tokenize(corpus, out, format=name, val_fraction=0, threads=1, **options)
    return out


def row(table: list[str], name: str, package: str, tokens: int, documents: int | None, out: Path) -> None:
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and path.name != "manifest.json")
    told = f"{documents:,} equal" if documents is not None else "not known to the reader"
    table.append(f"{name} | {package} | {version(package)} | {tokens:,} equal | {told} | {n_bytes:,}")


def after(truth: list[list[int]]) -> list[list[int]]:
    return [[*ids, EOT] for ids in truth]


def flat(documents: list[list[int]]) -> list[int]:
    return [i for document in documents for i in document]


@pytest.mark.parametrize("shards", [None, 5000])
def test_raw_by_numpy(corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], shards: int | None) -> None:
    out = write(corpus, tmp_path / "out", "raw", shard_tokens=shards)
    ids = np.concatenate([np.memmap(path, np.uint16, "r") for path in sorted(out.glob("train*.bin"))])
    assert ids.tolist() == flat(after(truth))
    row(table, "raw" if shards is None else "raw, shards", "numpy", len(ids), None, out)


@pytest.mark.parametrize("shards", [None, 5000])
def test_megatron(corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], package: Any, shards: int | None) -> None:
    module = package("megatron-core", "megatron.core.datasets.indexed_dataset")
    out = write(corpus, tmp_path / "out", "megatron", shard_tokens=shards)
    found: list[list[int]] = []
    for path in sorted(out.glob("train*.idx")):
        dataset = module.IndexedDataset(str(path.with_suffix("")))
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
        found += [dataset[i].tolist() for i in range(len(dataset))]
    assert found == after(truth)
    row(table, "megatron" if shards is None else "megatron, shards", "megatron-core", len(flat(found)), len(found), out)


def test_megatron_writes_the_same_index_itself(corpus: Path, truth: list[list[int]], tmp_path: Path, package: Any) -> None:
    module, torch = package("megatron-core", "megatron.core.datasets.indexed_dataset"), package("torch", "torch")
    out = write(corpus, tmp_path / "out", "megatron")
    builder = module.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for ids in after(truth):
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert (out / "train.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    assert (out / "train.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


@pytest.mark.parametrize("shards", [None, 5000])
def test_datatrove(
    corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], package: Any, shards: int | None
) -> None:
    datasets = package("datatrove", "datatrove.utils.dataset")
    merger = package("datatrove", "datatrove.pipeline.tokens.merger")
    out = write(corpus, tmp_path / "out", "datatrove", shard_tokens=shards)
    found: list[list[int]] = []
    for path in sorted((out / "train").glob("*.ds")):
        ids, begin = np.fromfile(path, "<u2").tolist(), 0
        for end in merger.load_doc_ends(io.BytesIO(Path(f"{path}.index").read_bytes())).tolist():
            found.append(ids[begin:end])
            begin = end
        dataset = datasets.DatatroveFileDataset(str(path), BLOCK)
        windows = [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]
        assert flat([window[: BLOCK + 1] for window in windows]) == ids[: len(windows) * (BLOCK + 1)]
        assert len(windows) == len(ids) // (BLOCK + 1)
    folder = datasets.DatatroveFolderDataset(str(out / "train"), BLOCK)
    assert len(folder.files) == len(list((out / "train").glob("*.ds")))
    assert found == after(truth)
    row(table, "datatrove" if shards is None else "datatrove, shards", "datatrove", len(flat(found)), len(found), out)


@pytest.mark.parametrize("shards", [None, 5000])
def test_olmo(corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], package: Any, shards: int | None) -> None:
    utils = package("ai2-olmo-core", "olmo_core.data.utils")
    out = write(corpus, tmp_path / "out", "olmo", shard_tokens=shards)
    by_rows: list[list[int]] = []
    by_marks: list[list[int]] = []
    for path in sorted((out / "train").glob("*.npy")):
        n = path.stat().st_size // 2
        ids = utils.load_array_slice(str(path), 0, n, np.uint16).tolist()
        for options, found in (
            ({"use_array_if_local": False}, by_rows),
            ({"use_array_if_local": True, "eos_token_id": EOT, "dtype": np.uint16}, by_marks),
        ):
            found += [ids[a:b] for a, b in utils.iter_document_indices(path, **options)]
    assert by_rows == by_marks == after(truth)
    row(table, "olmo" if shards is None else "olmo, shards", "ai2-olmo-core", len(flat(by_rows)), len(by_rows), out)


def test_olmo_dataset(corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], package: Any) -> None:
    module = package("ai2-olmo-core", "olmo_core.data.numpy_dataset")
    out = write(corpus, tmp_path / "out", "olmo")
    path = out / "train" / "part-0-00000.npy"
    dataset = module.NumpyFSLDataset(
        str(path), sequence_length=BLOCK, pad_token_id=EOT, eos_token_id=EOT, vocab_size=50257, dtype=np.uint16
    )
    dataset.prepare()
    found = flat([dataset[i]["input_ids"].tolist() for i in range(len(dataset))])
    wanted = flat(after(truth))
    assert found == wanted[: len(wanted) // BLOCK * BLOCK]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_litdata(corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], package: Any, dtype: str) -> None:
    litdata = package("litdata", "litdata")
    out = write(corpus, tmp_path / "out", "litdata", shard_tokens=100 * BLOCK, dtype=dtype)
    dataset = litdata.StreamingDataset(str(out / "train"), item_loader=litdata.TokensLoader(block_size=BLOCK), shuffle=False)
    found = flat([np.asarray(dataset[i]).tolist() for i in range(len(dataset))])
    wanted = flat(after(truth))
    # The last shard's last tokens, fewer than a block, are in no block.
    assert found == wanted[: len(wanted) // BLOCK * BLOCK]
    assert len(wanted) - len(found) < BLOCK
    row(table, f"litdata, {dtype}", "litdata", len(found), None, out)


def test_mds(corpus: Path, truth: list[list[int]], tmp_path: Path, table: list[str], streaming: Any) -> None:
    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    out = write(corpus, tmp_path / "out", "mds", shard_tokens=3 * 2048)
    dataset = streaming.StreamingDataset(local=str(out), split="train", shuffle=False, batch_size=1)
    samples = [dataset[i]["tokens"].tolist() for i in range(len(dataset))]
    wanted = flat(after(truth))
    assert flat(samples)[: len(wanted)] == wanted
    assert set(flat(samples)[len(wanted) :]) <= {EOT}
    row(table, "mds", "mosaicml-streaming", len(wanted), None, out)


@pytest.fixture
def packed(corpus: Path, tmp_path: Path) -> Callable[..., tuple[Path, list[list[int]]]]:
    """Packs the corpus into sequences of a block: the output in a format, and the sequences."""
    tokmill.tokenize(corpus, tmp_path / "tokens", val_fraction=0, threads=1)
    tokmill.pack(tmp_path / "tokens", tmp_path / "raw", sequence=BLOCK, seed=1)

    def make(name: str, **options: Any) -> tuple[Path, list[list[int]]]:
        tokmill.pack(tmp_path / "tokens", tmp_path / name, sequence=BLOCK, seed=1, format=name, **options)
        return tmp_path / name, np.fromfile(tmp_path / "raw" / "train.bin", "<u2").reshape(-1, BLOCK).tolist()

    return make


def test_packed_litdata(packed: Any, table: list[str], package: Any) -> None:
    litdata = package("litdata", "litdata")
    out, sequences = packed("litdata", shard_tokens=10 * BLOCK)
    dataset = litdata.StreamingDataset(str(out / "train"), item_loader=litdata.TokensLoader(block_size=BLOCK), shuffle=False)
    assert [np.asarray(dataset[i]).tolist() for i in range(len(dataset))] == sequences
    row(table, "litdata, packed", "litdata", len(sequences) * BLOCK, None, out)


def test_packed_mds(packed: Any, table: list[str], streaming: Any) -> None:
    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    out, sequences = packed("mds", shard_tokens=10 * BLOCK)
    dataset = streaming.StreamingDataset(local=str(out), split="train", shuffle=False, batch_size=1)
    assert [dataset[i]["tokens"].tolist() for i in range(len(dataset))] == sequences
    row(table, "mds, packed", "mosaicml-streaming", len(sequences) * BLOCK, None, out)


def test_packed_megatron(packed: Any, table: list[str], package: Any) -> None:
    indexed = package("megatron-core", "megatron.core.datasets.indexed_dataset")
    out, sequences = packed("megatron")
    dataset = indexed.IndexedDataset(str(out / "train"))
    assert [dataset[i].tolist() for i in range(len(dataset))] == sequences
    row(table, "megatron, packed", "megatron-core", len(sequences) * BLOCK, len(sequences), out)


def test_mds_full_shards_are_those_of_its_own_writer(corpus: Path, truth: list[list[int]], tmp_path: Path, streaming: Any) -> None:
    out = write(corpus, tmp_path / "out", "mds", shard_tokens=2 * 2048)
    ids = np.array(flat(after(truth)), np.uint16)
    with streaming.MDSWriter(out=str(tmp_path / "theirs"), columns={"tokens": "ndarray:uint16:2048"}, size_limit=9000) as writer:
        for begin in range(0, len(ids) - 2047, 2048):
            writer.write({"tokens": ids[begin : begin + 2048]})
    ours, theirs = ((path / "shard.00000.mds").read_bytes() for path in (out / "train", tmp_path / "theirs"))
    assert ours.replace(b'"size_limit": 8192', b'"size_limit": 9000') == theirs


@pytest.fixture(scope="module")
def two(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[tuple[Path, float]]]:
    """Two outputs in a format, and their weights."""
    top = tmp_path_factory.mktemp("two")

    def make(name: str) -> list[tuple[Path, float]]:
        pairs = [(top / f"{name}-{i}", weight) for i, weight in enumerate((0.7, 0.3))]
        for out, _ in pairs:
            if not out.exists():
                write(corpus, out, name, shard_tokens=2048 * 2 if name == "mds" else 5000)
        return pairs

    return make


def test_blend_by_megatron(two: Any, package: Any) -> None:
    utils = package("megatron-core", "megatron.core.datasets.utils")
    pairs = two("megatron")
    _, *words = shlex.split(tokmill.mix_recipe(pairs, "megatron").splitlines()[0])
    prefixes, weights = utils.get_blend_from_list(words)
    assert all(Path(f"{prefix}.idx").is_file() for prefix in prefixes)
    assert sum(weights) == pytest.approx(1)
    first = [weight for prefix, weight in zip(prefixes, weights, strict=True) if str(pairs[0][0]) in prefix]
    assert sum(first) == pytest.approx(0.7)


def test_blend_by_olmo(two: Any, package: Any) -> None:
    module, yaml = package("ai2-olmo-core", "olmo_core.data.source_mixture"), package("pyyaml", "yaml")
    told = yaml.safe_load(tokmill.mix_recipe(two("olmo"), "olmo"))
    sources = module.SourceMixtureList([module.SourceMixtureConfig(**each) for each in told["source_list"]["sources"]])
    config = module.SourceMixtureDatasetConfig(
        source_list=sources, requested_tokens=told["requested_tokens"], global_batch_size=4 * BLOCK, render_tables=False
    )
    mixture = config.build(npdtype=np.uint16, sequence_length=BLOCK)
    tokens = [sum(path.tokens for path in source.path_tokens) for source in mixture.sources]
    assert tokens[0] / sum(tokens) == pytest.approx(0.7, abs=0.02)
    assert sum(tokens) == pytest.approx(told["requested_tokens"], rel=0.02)


def test_blend_by_streaming(two: Any, streaming: Any, package: Any) -> None:
    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    yaml = package("pyyaml", "yaml")
    told = yaml.safe_load(tokmill.mix_recipe(two("mds"), "streaming"))
    streams = [streaming.Stream(**each) for each in told["streams"].values()]
    dataset = streaming.StreamingDataset(streams=streams, batch_size=1, shuffle=False)
    assert dataset.streams[0].proportion == pytest.approx(0.7)
    assert len(dataset) > 0


def test_blend_by_nanotron(two: Any, package: Any) -> None:
    config, yaml = package("nanotron", "nanotron.config"), package("pyyaml", "yaml")
    told = yaml.safe_load(tokmill.mix_recipe(two("datatrove"), "nanotron"))
    made = config.NanosetDatasetsArgs(**told["dataset"])
    assert made.dataset_weights == pytest.approx([0.7, 0.3])
    assert all(list(Path(folder).glob("*.ds")) for folder in made.dataset_folder)
