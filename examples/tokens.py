"""Token lists of different lengths without padding: jagged batches, straight from Arrow's buffers.

    python examples/tokens.py

``collate="jagged"`` gives the values end to end with ``cu_seqlens``, as variable-length attention
kernels take them; `Jagged.nested` is torch's nested tensor over the same memory. What is padded
instead, and to what, `Padded` says.
"""

from __future__ import annotations

import made_up
import torch
from batchloom.samplers import ManifestLoader, Padded


def main() -> None:
    """Train two epochs on jagged batches, and say what padding would have cost."""
    plan, data = made_up.token_lists(made_up.folder())
    loader = ManifestLoader(plan, data, collate="jagged")
    embedding, head = torch.nn.EmbeddingBag(1000, 16), torch.nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*embedding.parameters(), *head.parameters()], lr=0.05)
    for batch in loader:
        tokens = batch["tokens"]  # tokens.values, tokens.cu_seqlens, tokens.max_seqlen
        scores = head(embedding(tokens.values, tokens.cu_seqlens[:-1]))
        loss = torch.nn.functional.cross_entropy(scores, batch["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {loss.item():.3f}")
    nested = tokens.nested()
    print(f"the last batch, nested: {nested.shape[0]} rows, layout {nested.layout}")

    padded = ManifestLoader(plan, data, collate={"tokens": Padded(multiple_of=64)}, epochs=1)
    held = sum(int(b["tokens_lengths"].sum()) for b in padded)
    taken = sum(b["tokens"].numel() for b in padded)
    print(f"padded, {held / taken:.0%} of the values would be tokens")


if __name__ == "__main__":
    main()
