"""Training with SeTa through the selection service, on two processes.

python examples/service_training.py

It starts a service, prepares a run, and trains on it with two ranks (gloo). The ranks read their
plan from the service and send it their losses; when both have sealed an epoch the service plans the
next one, and the loaders go on with it. In earnest the service runs elsewhere (``batchloom
serve``), and the ranks are started by torchrun: they need its address, and nothing of its files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from batchloom.dataplane import open_plan
from batchloom.samplers import ManifestLoader, open_signal_store
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

JOB = """
dataset = "{data}"
batch_size = 100
epochs = "0:{epochs}"
seed = 0

[[stages]]
method = "seta"
training_epochs = {epochs}
"""


def write_data(folder: Path, rows: int) -> None:
    """Write points of two noisy classes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=draw)
    y = (x[:, 0] + 0.5 * torch.randn(rows, generator=draw) > 0).long()
    points = pa.FixedSizeListArray.from_arrays(pa.array(x.numpy().ravel()), 8)
    folder.mkdir()
    pq.write_table(pa.table({"x": points, "y": y.numpy()}), folder / "points.parquet")


def train(rank: int, world: int, address: str, data: str, epochs: int, port: int) -> None:
    """Train as one rank of several."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    plan = open_plan(address)
    loader = ManifestLoader(
        plan, data, columns=["x", "y"], follow=True, epochs=epochs, poll_seconds=0.1
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trained = 0
    with open_signal_store(address, plan) as store:
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                losses = nn.functional.cross_entropy(
                    model(batch["x"]), batch["y"], reduction="none"
                )
                optimizer.zero_grad()
                # DDP takes the mean over the ranks; the whole step's mean is wanted.
                (world * (batch.weights * losses).sum() / batch.step_weight).backward()
                optimizer.step()
                store.append(batch.rows, epoch=epoch, step=batch.step, loss=losses, pad=batch.pad)
            store.seal(epoch)  # this rank has said all of it
            rows = plan.manifest_for(epoch).records[epoch].samples
            trained += rows
            if rank == 0:
                print(f"epoch {epoch}: {rows} rows, loss {losses.detach().mean():.3f}", flush=True)
    if rank == 0:
        print(f"{trained} rows in all, {epochs} epochs", flush=True)
    dist.destroy_process_group()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=4000)
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument("--port", type=int, default=29571, help="of torch.distributed")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as home:
        data, run = Path(home, "data"), Path(home, "service", "runs", "points")
        write_data(data, options.rows)
        run.mkdir(parents=True)
        (run / "job.toml").write_text(JOB.format(data=data, epochs=options.epochs))
        service = subprocess.Popen(
            [sys.executable, "-c", "from batchloom.jobs.cli import main; main()", "serve",
             str(Path(home, "service")), "--port", "0", "--workers", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            line = service.stdout.readline() if service.stdout else ""
            address = json.loads(line)["serving"] + "/runs/points"
            spawn(train, (2, address, str(data), options.epochs, options.port), nprocs=2)
        finally:
            service.terminate()
            service.wait()


if __name__ == "__main__":
    main()
