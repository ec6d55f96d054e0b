"""Two processes under DistributedDataParallel train as one does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from batchloom.samplers import ManifestLoader, weighted_loss
from batchloom.tests.contracts.batches import shuffled, write_plan

SCRIPT = """if True:
    import json, sys
    import torch
    from batchloom.samplers import ManifestLoader
    from batchloom.tests.samplers.test_distributed import train

    plan, data, meeting_point, rank = sys.argv[1:]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=int(rank), world_size=2
    )
    loader = ManifestLoader(plan, data, columns=["x", "y"])  # the ranks are torch.distributed's
    assert (loader.rank, loader.world_size) == (int(rank), 2)
    print(json.dumps(train(loader, torch.nn.parallel.DistributedDataParallel)), flush=True)
    torch.distributed.destroy_process_group()  # else gloo may end the process at its exit
"""


def train(loader, wrapped=lambda model: model):
    """Return the parameters after one epoch of steps of several micro-batches."""
    torch.manual_seed(0)
    model = wrapped(torch.nn.Linear(4, 1).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = 0
    for batch in loader:
        if batch.step != step:
            optimizer.step()
            optimizer.zero_grad()
            step = batch.step
        losses = (model(batch["x"].double())[:, 0] - batch["y"].double()) ** 2
        weighted_loss(losses, batch, loader.world_size).backward()
    optimizer.step()
    return [p.flatten().tolist() for p in model.parameters()]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_train_as_one(awkward_data, tmp_path):
    epochs = {0: shuffled(rows=301, batch=33, micro_per_step=3, weighted=True)}
    data = awkward_data("ipc")
    plan = write_plan(tmp_path / "plan", data, epochs, weight_semantics="importance").path
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, (plan, data, tmp_path / "meeting", rank))],
            stdout=subprocess.PIPE,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        first, second = (json.loads(p.communicate(timeout=100)[0]) for p in running)
    finally:
        for process in running:
            process.kill()
    assert first == second
    alone = train(ManifestLoader(plan, data, columns=["x", "y"]))
    for mine, expected in zip(first, alone, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-6)
