"""The whole chain on real data: dataset → plan → verify → train → interrupt → resume → grow.

The data are scikit-learn's handwritten digits (1,797 images of 8 × 8), written as a Parquet dataset
of uneven fragments. Everything goes through the public interface.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn.functional import cross_entropy

from ..dataplane.columns import as_arrow, as_numpy
from ..dataplane.errors import StorageError, needs_extra
from ..dataplane.manifest import Manifest
from ..samplers import Batch, ManifestLoader, weighted_loss
from .planning import plan
from .verifying import verify

__all__ = ["DemoResult", "run_demo"]

_FRAGMENTS = (400, 1, 0, 520, 333, 246)  # rows; the digits that are left arrive later
_EPOCHS = 8
_BATCH = 48
_INTERRUPT = (3, 7)  # epoch and step after which training stops
_RANKS = 3
_MARKER = ".batchloom-demo"


@dataclass
class DemoResult:
    """What the demo measured and where it is.

    Attributes
    ----------
    accuracy, accuracy_resumed : float
        On the held-out share, of the run that was not interrupted and of the one that was.
    rows, batches : int
        Of the plan, an epoch.
    same_rows : bool
        Whether each step of the resumed run, over all its ranks, held the rows of the other run.
    same_plan : bool
        Whether one and three workers made the same plan.
    seconds : dict
        Of each stage.
    paths : dict
    """

    accuracy: float = 0.0
    accuracy_resumed: float = 0.0
    rows: int = 0
    batches: int = 0
    same_rows: bool = False
    same_plan: bool = False
    opens_after_growth: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    @property
    def kept_its_promises(self) -> bool:
        """Whether everything that must be equal was."""
        return self.same_rows and self.same_plan and self.opens_after_growth

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def show(self, table: Callable[..., None]) -> None:
        """Print the closing table."""
        print()
        table(
            ("", "uninterrupted, 1 rank", f"resumed on {_RANKS} ranks"),
            [
                ("accuracy", f"{self.accuracy:.3f}", f"{self.accuracy_resumed:.3f}"),
                ("rows an epoch", self.rows, self.rows),
                ("batches an epoch", self.batches, self.batches),
            ],
        )
        print()
        table(("stage", "seconds"), [(k, f"{v:.1f}") for k, v in self.seconds.items()])
        print()
        table(("made", "where"), list(self.paths.items()))


def run_demo(out: str | Path, say: Callable[[str], None] = print) -> DemoResult:
    """Run the demo in a directory, which it owns; it may be run again."""
    folder = _own(Path(out))
    result = DemoResult()
    data = folder / "digits"

    with _timed(result, "write the dataset"):
        images, labels = _digits()
        _write_dataset(data, images, labels)
    say(f"1. Wrote {sum(_FRAGMENTS):,} digits as {len(_FRAGMENTS)} uneven Parquet fragments.")

    manifest = _plan_twice(folder, data, result, say)
    with _timed(result, "verify"):
        found = verify(manifest.path, data, deep=True)
    say(f"3. Verified {found.bytes:,} bytes of plan and {found.fragments} fragments of data.")

    with _one_thread():  # the network is too small to share among threads
        _train_both_ways(folder, manifest, data, result, say)

    with _timed(result, "grow"):
        before = _first_rows(manifest, data)
        _write_fragment(data / "part-10.parquet", images, labels, sum(_FRAGMENTS), len(images))
        result.opens_after_growth = before == _first_rows(manifest, data)
    say(
        f"6. {len(images) - sum(_FRAGMENTS)} more digits arrived in a new file: the old plan "
        f"{'still opens and gives the same rows' if result.opens_after_growth else 'FAILED'}."
    )
    return result


def _plan_twice(
    folder: Path, data: Path, result: DemoResult, say: Callable[[str], None]
) -> Manifest:
    made = []
    for workers in (1, 3):
        name = f"plan-{workers}-worker{'s' * (workers > 1)}"
        with _timed(result, f"plan with {workers} worker{'s' * (workers > 1)}"):
            made.append(_plan(folder / name, data, workers))
        result.paths[name.replace("-", " ")] = str(folder / name)
    result.same_plan = made[0].manifest_id == made[1].manifest_id
    result.rows = made[0].records[0].samples
    result.batches = made[0].records[0].micro_batches
    say(
        f"2. Planned {_EPOCHS} epochs with k-means through Dask: {result.rows:,} rows in "
        f"{result.batches} batches each. One and three workers made "
        f"{'the same plan' if result.same_plan else 'DIFFERENT plans'}: "
        f"{made[0].manifest_id[:16]}…"
    )
    return made[0]


def _plan(out: Path, data: Path, workers: int) -> Manifest:
    return plan(
        "kmeans",
        data,
        out=out,
        columns=["x"],
        k=10,
        batches="across",
        split="train=0.8,test=0.2:train",
        batch_size=_BATCH,
        epochs=_EPOCHS,
        seed=7,
        deep=True,
        workers=workers,
        task_bytes="16KiB",  # tiny, so that every fragment is a task of its own
    )


# --- training -------------------------------------------------------------------------------------


def _train_both_ways(
    folder: Path, manifest: Manifest, data: Path, result: DemoResult, say: Callable[[str], None]
) -> None:
    x_test, y_test = _held_out(manifest, data)
    with _timed(result, "train"):
        network = _network()
        straight = [_train_step(network, s) for s, _ in _steps(manifest, data, world_size=1)]
        result.accuracy = _accuracy(network, x_test, y_test)
    say(f"4. Trained on one rank: accuracy {result.accuracy:.3f} on {len(y_test)} held-out digits.")

    checkpoint, weights = folder / "checkpoint.json", folder / "network.pt"
    with _timed(result, "train, interrupt, resume"):
        network, resumed = _network(), []
        for step, state in _steps(manifest, data, world_size=1):
            resumed.append(_train_step(network, step))
            if (step[0].epoch, step[0].step) == _INTERRUPT:
                checkpoint.write_text(json.dumps(state))
                torch.save([network.state_dict(), network.optimizer.state_dict()], weights)
                break
        network = _network()
        for part, saved in zip((network, network.optimizer), torch.load(weights), strict=True):
            part.load_state_dict(saved)
        state = json.loads(checkpoint.read_text())
        rest = _steps(manifest, data, world_size=_RANKS, state=state)
        resumed += [_train_step(network, step) for step, _ in rest]
        result.accuracy_resumed = _accuracy(network, x_test, y_test)
    result.same_rows = resumed == straight
    result.paths["checkpoint"] = str(checkpoint)
    say(
        f"5. Interrupted in epoch {_INTERRUPT[0]} after step {_INTERRUPT[1]}, resumed on {_RANKS} "
        f"ranks: each step held {'the same rows' if result.same_rows else 'OTHER rows'}, accuracy "
        f"{result.accuracy_resumed:.3f}."
    )


def _steps(
    manifest: Manifest, data: Path, *, world_size: int, state: dict[str, Any] | None = None
) -> Iterator[tuple[list[Batch], dict[str, Any]]]:
    """Yield what all ranks hold in each step, and the state after it.

    In real training each rank is a process, and each step's gradients are averaged.
    """
    loaders = [
        ManifestLoader(manifest, data, columns=["x", "y"], rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    if state is not None:
        for loader in loaders:
            loader.load_state_dict(state)
    for step in zip(*loaders, strict=True):
        yield list(step), loaders[0].state_dict()


def _train_step(network: Any, step: list[Batch]) -> tuple[int, int, tuple[int, ...]]:
    """Take one optimiser step; return (epoch, step, the rows it saw)."""
    network.optimizer.zero_grad()
    for batch in step:
        losses = cross_entropy(network(batch["x"]), batch["y"], reduction="none")
        weighted_loss(losses, batch).backward()  # the ranks' gradients add up to the step's
    network.optimizer.step()
    rows = sorted(r for batch in step for r in batch.rows.tolist())
    return step[0].epoch, step[0].step, tuple(rows)


def _network() -> Any:
    torch.manual_seed(0)
    network: Any = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    network.optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    return network


def _accuracy(network: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(x).argmax(dim=1) == y).double().mean())


def _held_out(manifest: Manifest, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows that the plan leaves out: the test share."""
    dataset = manifest.open_dataset(data)
    planned = np.concatenate([block.rows for block in manifest.epoch(0).blocks()])
    everything = manifest.snapshot.ids_at(np.arange(manifest.snapshot.rows))
    table = dataset.take(np.setdiff1d(everything, planned), ["x", "y"])
    batch = table.combine_chunks().to_batches()[0]
    x, y = (as_numpy(batch.column(name)).copy() for name in ("x", "y"))
    return torch.from_numpy(x), torch.from_numpy(y)


def _first_rows(manifest: Manifest, data: Path) -> list[int]:
    batch = next(iter(ManifestLoader(manifest, data, columns=["y"], prefetch=0)))
    rows: list[int] = batch.rows.tolist()
    return rows


# --- data -----------------------------------------------------------------------------------------


def _own(folder: Path) -> Path:
    """Empty a directory that an earlier demo made; refuse one that holds anything else."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise StorageError(
                f"{folder} holds files that the demo did not make; name another with --out."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with needs_extra("The demo", "plan"):
        from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)


def _write_dataset(folder: Path, images: Any, labels: Any) -> None:
    folder.mkdir()
    start = 0
    for number, rows in enumerate(_FRAGMENTS, start=1):
        _write_fragment(folder / f"part-{number}.parquet", images, labels, start, start + rows)
        start += rows


def _write_fragment(path: Path, images: Any, labels: Any, start: int, stop: int) -> None:
    values = as_arrow(images[start:stop].ravel())
    pq.write_table(
        pa.table(
            {
                "x": pa.FixedSizeListArray.from_arrays(values, 64),
                "y": as_arrow(labels[start:stop]),
            }
        ),
        path,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(result: DemoResult, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    result.seconds[stage] = time.monotonic() - start
