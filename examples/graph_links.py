"""Link prediction: no batch sees its own links, and no negative is a link.

    python examples/graph_links.py

With ``exclude_seed_edges`` the links that a batch is trained on are not among its sampled edges, so
a model cannot read them off; with ``true_negatives`` no pair that is linked is called unlinked.
"""

from __future__ import annotations

import torch
from batchloom.samplers.graph import LinkNeighborLoader
from torch.nn.functional import binary_cross_entropy_with_logits
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

NODES, GROUPS = 1000, 10


def made_up_data() -> tuple[Data, torch.Tensor]:
    """Return a graph whose nodes mostly link within their group, and links that it lacks."""
    torch.manual_seed(0)
    group = torch.randint(GROUPS, (NODES,))
    ends = torch.randint(NODES, (2, 60_000))
    kept = (group[ends[0]] == group[ends[1]]) | (torch.rand(ends.shape[1]) < 0.02)
    links = ends[:, kept].unique(dim=1)
    links = links[:, torch.randperm(links.shape[1])]
    held_out, seen = links[:, :400], links[:, 400:]
    x = torch.randn(GROUPS, 16)[group] + 2 * torch.randn(NODES, 16)
    return Data(x=x, edge_index=seen, num_nodes=NODES), held_out


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(16, 32), SAGEConv(32, 32)

    def forward(self, batch: Data) -> torch.Tensor:
        """Return a score for each link of a batch."""
        x = self.second(self.first(batch.x, batch.edge_index).relu(), batch.edge_index)
        source, target = batch.edge_label_index
        return (x[source] * x[target]).sum(dim=1)


def area_under_the_curve(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return how often a link has a higher score than what is none."""
    higher = scores[labels == 1][:, None] > scores[labels == 0][None]
    return float(higher.float().mean())


def main() -> None:
    """Train for three epochs, and rank links that were held out."""
    data, held_out = made_up_data()
    options = {"neg_sampling": "binary", "true_negatives": True, "batch_size": 256}
    train = LinkNeighborLoader(
        data, [8, 4], shuffle=True, exclude_seed_edges="forward", **options
    )  # fmt: skip
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        for batch in train:
            loss = binary_cross_entropy_with_logits(model(batch), batch.edge_label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        batches = list(LinkNeighborLoader(data, [8, 4], edge_label_index=held_out, **options))
        scores = torch.cat([model(batch) for batch in batches])
    labels = torch.cat([batch.edge_label for batch in batches])
    found = area_under_the_curve(scores, labels)
    print(f"{len(train)} batches an epoch, area under the curve {found:.2f}")
    print("links rank above what is none:", found > 0.75)


if __name__ == "__main__":
    main()
