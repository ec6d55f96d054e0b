"""Methods that go by what trainings post: embeddings for NGAME, gradients for CoLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import Manifest, SignalStore, open_plan
from batchloom.dataplane.errors import ManifestError
from batchloom.jobs import plan
from batchloom.tests.jobs.service.running import Served, wait_ready, write_run

NGAME = """
dataset = "{data}"
batch_size = 50
epochs = "0:{epochs}"
seed = 3

[[stages]]
method = "ngame"
feature = "embedding"
labels = "label"
refresh_every = 1
schedule = {{1 = 10}}
"""
COLM = """
dataset = "{data}"
batch_size = 50
epochs = "0:{epochs}"
seed = 3

[[stages]]
method = "kmeans"
feature = "gradient"
k = 4
batches = "across"

[[stages]]
method = "colm"
sources = "label"
feature = "gradient"
"""


def vectors(rows: Any, epoch: int, width: int = 4) -> np.ndarray:
    """Return vectors that are a function of row and epoch."""
    rows = np.asarray(rows, np.float64)[:, None]
    return np.sin(rows * (1 + np.arange(width)) + epoch).astype(np.float32)


def post(where: object, opened: Any, epoch: int, name: str) -> SignalStore:
    """Write the vectors of an epoch's rows, as a training does."""
    store = SignalStore.for_writing(where, opened)
    for batch in opened.manifest_for(epoch).epoch(epoch):
        values = {name: vectors(batch.rows, epoch)}
        store.append(batch.rows, epoch=epoch, step=batch.step, **values)
    store.flush()
    return store


def trained(url: str, folder: Path, name: str, signal: str) -> list[Manifest]:
    """Post what a training of three epochs would; return its plans."""
    for epoch in range(3):
        wait_ready(url, name, epoch)
        with post(f"{url}/runs/{name}", open_plan(f"{url}/runs/{name}"), epoch, signal) as store:
            store.seal(epoch)  # type: ignore[attr-defined]
    names = [f"epochs-{e:06d}-{e + 1:06d}" for e in range(3)]
    return [Manifest.open(folder / "runs" / name / "plan" / n) for n in names]


@pytest.mark.parametrize("workers", [0, 2])
def test_ngame_from_posted_embeddings(small: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "service"
    write_run(folder, "first", small, job=NGAME)
    with Served(folder, "--workers", workers) as served:
        plans = trained(served.url, folder, "first", "embedding")
    told = [m.provenance["reports"]["ngame"]["epochs"][str(e)] for e, m in enumerate(plans)]
    assert [t["clusters_a_batch"] for t in told] == [1, 5, 5]
    assert [t["hardest_negative"] is None for t in told] == [True, False, False]
    assert told[0]["masked_pairs"] > 0  # the mask needs no embeddings
    # By hand, from the same observations:
    options = {"labels": "label", "schedule": {1: 10}, "refresh_every": 1, "batch_size": 50}
    for epoch in range(2):
        signal = {"signal": str(tmp_path / "signals")} if epoch else {}
        made = plan("ngame", small, out=tmp_path / "hand", epochs=(epoch, epoch + 1), seed=3,
                    feature="embedding", workers=0, **options, **signal)  # fmt: skip
        assert made.manifest_id == plans[epoch].manifest_id
        post(tmp_path / "signals", open_plan(tmp_path / "hand"), epoch, "embedding").close()


def test_colm_from_posted_gradients(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    write_run(folder, "first", small, job=COLM)
    with Served(folder) as served:
        plans = trained(served.url, folder, "first", "gradient")
    # Nothing is known before epoch 0: it is trained on whole.
    assert [s["method"] for s in plans[0].identity["stages"]] == ["shuffle"]
    assert [s["method"] for s in plans[1].identity["stages"]] == ["kmeans", "across", "colm"]
    sizes = [m.records[e].distinct_rows for e, m in enumerate(plans)]
    assert sizes[0] == 1000
    assert 500 <= sizes[1] < 700
    assert plans[2].identity["parent"] == plans[1].manifest_id


def test_a_signal_that_nobody_posts_is_asked_for(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    write_run(folder, "first", small, job=COLM)
    with Served(folder) as served:
        wait_ready(served.url, "first", 0)
        address = f"{served.url}/runs/first"
        opened = open_plan(address)
        with post(address, opened, 0, "something") as store:
            store.seal(0)  # type: ignore[attr-defined]
        with pytest.raises(ManifestError, match="no signal 'gradient'. It holds: something. Mend"):
            opened.look_for(1, 20.0)  # type: ignore[union-attr]
