"""A graph of papers and authors: batches of a plan over the papers, dealt to two ranks.

    python examples/graph_kinds.py

The plan decides which papers make up which batch; a batch of it is sampled the same by whichever
rank it is dealt to. Here both ranks are played one after the other.
"""

from __future__ import annotations

import made_up
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.jobs import plan
from batchloom.samplers import weighted_loss
from batchloom.samplers.graph import graph_loader
from torch.nn.functional import cross_entropy
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

PAPERS, AUTHORS, FIELDS = 2000, 600, 4
WROTE, BY = ("author", "wrote", "paper"), ("paper", "by", "author")


def made_up_data() -> HeteroData:
    """Return papers whose field their authors know better than their text does."""
    torch.manual_seed(0)
    field, author_field = torch.randint(FIELDS, (PAPERS,)), torch.arange(AUTHORS) % FIELDS
    data = HeteroData()
    data["paper"].x = torch.randn(FIELDS, 16)[field] + 4 * torch.randn(PAPERS, 16)
    data["paper"].y = field
    data["author"].x = torch.randn(FIELDS, 8)[author_field] + torch.randn(AUTHORS, 8)
    paper = torch.arange(PAPERS).repeat(3)
    author = torch.randint(AUTHORS // FIELDS, paper.shape) * FIELDS + field[paper]
    author = torch.where(torch.rand(len(paper)) < 0.7, author, torch.randint(AUTHORS, paper.shape))
    data[WROTE].edge_index = torch.stack([author, paper])
    data[BY].edge_index = torch.stack([paper, author])
    return data


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = HeteroConv(
            {WROTE: SAGEConv((8, 16), 32), BY: SAGEConv((16, 8), 32)}, aggr="sum"
        )
        self.second = SAGEConv((32, 32), FIELDS)

    def forward(self, batch: HeteroData) -> torch.Tensor:
        x = self.first(batch.x_dict, batch.edge_index_dict)
        ends = x["author"].relu(), x["paper"].relu()
        return self.second(ends, batch[WROTE].edge_index)


def main() -> None:
    """Plan three epochs of two micro-batches a step, and train on both ranks' shares."""
    home, data = made_up.folder(), made_up_data()
    pq.write_table(pa.table({"paper": range(PAPERS)}), home / "papers.parquet")
    plan(
        "shuffle", home / "papers.parquet", out=home / "plan", batch_size=100, micro_per_step=2,
        epochs=(0, 3), seed=7, workers=0,
    )  # fmt: skip
    ranks = [
        graph_loader(home / "plan", data, fanouts=[5, 5], kind="paper", rank=r, world_size=2)
        for r in (0, 1)
    ]
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for shares in zip(*ranks, strict=True):
        optimizer.zero_grad()
        right = 0
        for batch in shares:  # of one step
            out = model(batch)[: batch.num_rows]
            weighted_loss(cross_entropy(out, batch["paper"].y, reduction="none"), batch).backward()
            right += int((out.argmax(1) == batch["paper"].y).sum())
        optimizer.step()
    alone = graph_loader(home / "plan", data, fanouts=[5, 5], kind="paper")
    dealt = sorted((b.epoch, b.step, b.micro, b["author"].n_id.tolist()) for r in ranks for b in r)
    same = dealt == [(b.epoch, b.step, b.micro, b["author"].n_id.tolist()) for b in alone]
    print(f"{len(alone)} micro-batches, {right / batch.step_rows:.2f} of the last step are right")
    print("two ranks sample what one does:", same)


if __name__ == "__main__":
    main()
