"""Node classification as PyG's examples have it; two lines are changed, and marked.

    python examples/graph_nodes.py

PyG's own ``NeighborLoader`` needs pyg-lib or torch-sparse. This one needs neither, takes the same
arguments, and gives the same batches whatever the number of workers.
"""

from __future__ import annotations

import torch
from batchloom.samplers.graph import NeighborLoader  # was: from torch_geometric.loader import …
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

NODES, CLASSES = 3000, 6


def made_up_data() -> Data:
    """Return nodes whose features say little of their class, and whose neighbours say more."""
    torch.manual_seed(0)
    y = torch.randint(CLASSES, (NODES,))
    x = torch.randn(CLASSES, 32)[y] + 4 * torch.randn(NODES, 32)
    own = torch.arange(NODES).repeat(8)
    by_class = y.argsort()
    first = torch.searchsorted(y[by_class], torch.arange(CLASSES + 1))
    inside = first[y[own]] + (torch.rand(len(own)) * (first[1:] - first[:-1])[y[own]]).long()
    other = torch.where(
        torch.rand(len(own)) < 0.6, by_class[inside], torch.randint(NODES, own.shape)
    )
    train = torch.rand(NODES) < 0.5
    return Data(x=x, y=y, edge_index=torch.stack([other, own]), train_mask=train, test_mask=~train)


class Sage(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(32, 64), SAGEConv(64, CLASSES)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def main() -> None:
    """Train for five epochs, and test."""
    data = made_up_data()
    train = NeighborLoader(
        data, num_neighbors=[10, 5], input_nodes=data.train_mask, batch_size=128, shuffle=True,
        seed=0,  # of the draws; this line is new, and may be left out
    )  # fmt: skip
    model = Sage()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        for batch in train:
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = cross_entropy(out, batch.y[: batch.batch_size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    test = NeighborLoader(data, [10, 5], input_nodes=data.test_mask, batch_size=500)
    right = 0
    with torch.no_grad():
        for batch in test:
            out = model(batch.x, batch.edge_index)[: batch.batch_size].argmax(1)
            right += int((out == batch.y[: batch.batch_size]).sum())
    accuracy = right / int(data.test_mask.sum())
    print(f"{len(train)} batches an epoch, test accuracy {accuracy:.2f}")
    print("better than half are right:", accuracy > 0.5)


if __name__ == "__main__":
    main()
