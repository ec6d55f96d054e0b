"""Training with SeTa in plain PyTorch, on one process or several.

python examples/seta_training.py
torchrun --nproc-per-node 2 examples/seta_training.py

Each epoch is planned from the losses of the epochs before. On several ranks every rank trains on
its rows of each step, and the losses are exchanged once an epoch.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from batchloom.samplers import IndexedDataset, SeTaSampler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset


def make_data(rows: int) -> TensorDataset:
    """Return points of two noisy classes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=draw)
    y = (x[:, 0] + 0.5 * torch.randn(rows, generator=draw) > 0).long()
    return TensorDataset(x, y)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=4000)
    arguments.add_argument("--epochs", type=int, default=8)
    options = arguments.parse_args()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    data = make_data(options.rows)
    sampler = SeTaSampler(len(data), batch_size=100, epochs=options.epochs, seed=0)
    loader = DataLoader(IndexedDataset(data), batch_sampler=sampler)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss(reduction="none")
    trained = 0
    for epoch in range(sampler.epoch, options.epochs):
        sampler.set_epoch(epoch)
        for rows, (x, y) in loader:
            losses = criterion(model(x), y)
            weights = sampler.weights(rows)  # 0 for a row that only fills a rank's share up
            optimizer.zero_grad()
            # DDP takes the mean over the ranks, whose shares of a step may differ by a row.
            total = weights.sum()
            if dist.is_initialized():
                dist.all_reduce(total)
            (world * (weights * losses).sum() / total).backward()
            optimizer.step()
            sampler.update(rows, losses)
        trained += int(sampler.report["selected"])
        if rank == 0:
            found = sampler.report
            print(
                f"epoch {epoch}: {sampler.steps_in_epoch()} steps, {found['selected']} of "
                f"{found['rows']} rows, groups {found.get('group_rows', 'none yet')}"
            )
    if rank == 0:
        print(f"{trained / (options.epochs * options.rows):.1%} of all passes")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
