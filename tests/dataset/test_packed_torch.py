"""With PyTorch: a packed batch gives the losses of its documents alone, with a mask and with flex attention."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.corpora import some_documents
from support.runs import tokenize_documents

import tokmill

pytestmark = [
    pytest.mark.torch,
    # Of torch itself: in its workers, and where flex attention is not compiled.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
N = 64


@pytest.fixture
def data(tmp_path: Path) -> tokmill.Dataset:
    tokenize_documents(tmp_path / "a", some_documents(40, 60, 1))
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=N, seed=1)
    return tokmill.open(tmp_path / "p")


def a_model(attend: Any) -> Any:
    """Two layers of attention over embeddings of ids and places, in double precision. Returns logits from ids, places, context."""
    import torch

    torch.manual_seed(0)
    width, heads = 32, 2
    ids, places = torch.randn(50257, width).double(), torch.randn(N, width).double()
    layers = [(torch.randn(width, 3 * width).double() / 6, torch.randn(width, width).double() / 6) for _ in range(2)]

    def logits(x: Any, positions: Any, context: Any) -> Any:
        hidden = ids[x] + places[positions]
        for into, out in layers:
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (hidden @ into).chunk(3, -1))
            hidden = hidden + torch.tanh(attend(q, k, v, context).transpose(1, 2).flatten(-2) @ out)
        return hidden @ ids.T

    return logits


def with_mask(q: Any, k: Any, v: Any, context: Any) -> Any:
    import torch

    if context is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    same = context[:, None, :] == context[:, :, None]
    mask = same.tril()[:, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def with_flex(q: Any, k: Any, v: Any, context: Any) -> Any:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if context is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def may_see(b: Any, _h: Any, i: Any, j: Any) -> Any:
        return (i >= j) & (context[b, i] == context[b, j])

    block_mask = create_block_mask(may_see, len(q), None, N, N, device="cpu")
    return flex_attention(q, k, v, block_mask=block_mask)


@pytest.mark.parametrize("attend", [with_mask, with_flex])
def test_a_packed_batch_gives_the_losses_of_the_documents_alone(data: tokmill.Dataset, attend: Any) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    from tokmill.torch import TorchPacked

    logits = a_model(attend)
    batch = next(iter(DataLoader(TorchPacked(data, "train", batch=3, seed=2), batch_size=None)))
    edges = batch["cu_seqlens"].tolist()
    context = torch.searchsorted(batch["cu_seqlens"], torch.arange(3 * N, dtype=torch.int32), right=True).view(3, N)
    packed = cross_entropy(
        logits(batch["input_ids"], batch["position_ids"], context).flatten(0, 1), batch["labels"].flatten(), reduction="none"
    )
    n_compared = 0
    for a, b in itertools.pairwise(edges):
        mask = batch["loss_mask"].flatten()[a:b]
        if not mask.any():
            assert not packed[a:b].any()
            continue
        alone = batch["input_ids"].flatten()[a:b]
        expected = cross_entropy(logits(alone[None, :-1], torch.arange(b - a - 1)[None], None)[0], alone[1:], reduction="none")
        torch.testing.assert_close(packed[a : b - 1], expected)
        assert float(packed[b - 1]) == 0
        n_compared += 1
    assert n_compared > 5


@pytest.mark.parametrize("n_workers", [0, 2])
def test_workers_or_not_the_batches_are_those_of_numpy_and_go_on_from_a_state(data: tokmill.Dataset, n_workers: int) -> None:
    from torch.utils.data import DataLoader

    from tokmill.torch import TorchPacked

    expected = [batch.labels.tolist() for batch in data.packed(batch=2, epochs=1)]
    dataset = TorchPacked(data, batch=2, epochs=1)
    found = [batch["labels"].tolist() for batch in DataLoader(dataset, batch_size=None, num_workers=n_workers)]
    assert found == expected
    again = TorchPacked(data, batch=2, epochs=1)
    again.load_state_dict(dataset.state_dict(3))
    assert [batch["labels"].tolist() for batch in again] == expected[3:]
