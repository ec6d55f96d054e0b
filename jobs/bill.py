"""The bill of a job's memory, made out before anything is read; `budget` says what is on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..dataplane.bitmap import BITMAP_INDEX
from ..dataplane.dataset import Dataset
from ..dataplane.epoch_writer import BLOCK_MICRO_BATCHES, BLOCK_ROWS
from ..dataplane.errors import ParameterError
from .budget import Budget, machine_memory, mebibytes, size_text
from .spec import JobSpec
from .stages import GroupStage, SelectStage, Stage

__all__ = ["make_budget", "work_bytes"]

_MIB = 1 << 20
_PROGRAM = 320 * _MIB  # this process, Dask's scheduler in it, and the blocks that it writes
_SCANNING = 96 * _MIB  # what a task takes, where this process runs it itself
_WORKER = 384 * _MIB  # a worker's program and its task, well below where Dask pauses it
_SORTING = 96 * _MIB  # the least that is left for sorting and for chunks of columns
_FILE_BYTES = 8192  # of the dataset's table, for each file: its place, its footer, its JSON
_BLOCK_BYTES = 2048  # of the header, for each block, as JSON and as records
_PLAN_BYTES = 64  # a row of a micro-batch, while it is made and written


def make_budget(spec: JobSpec, dataset: Dataset, stages: Sequence[Stage]) -> Budget:
    """Share out the job's memory.

    Raises
    ------
    ParameterError
        Where it is less than the bill; it says the bill.
    """
    bill = _bill(spec, dataset, stages)
    mine = sum(bill.values())
    scans = spec.deep or any(stage.uses_engine for stage in stages)
    if not scans or spec.scheduler is not None:
        total = _total(spec, mine, bill)
        return Budget(total, spec.workers, None, total - mine + _SORTING)
    worker = _WORKER + max(stage.task_memory(spec, dataset) for stage in stages)
    most = spec.workers if spec.workers is not None else os.cpu_count() or 1
    limit = spec.memory or machine_memory() // 2
    workers = most
    if spec.workers is None:
        fit = (limit - mine) // worker
        workers = max(0, min(most, fit))
    if workers == 0:
        bill["a task"] = _SCANNING
        mine += _SCANNING
        total = _total(spec, mine, bill)
        return Budget(total, 0, None, total - mine + _SORTING)
    total = _total(spec, mine, bill, workers, worker)
    share = min(max(total // (1 + workers), mine), total - workers * worker)
    chosen = None if workers == most and spec.workers is None else workers
    return Budget(total, chosen, total - share, share - mine + _SORTING)


def _bill(spec: JobSpec, dataset: Dataset, stages: Sequence[Stage]) -> dict[str, int]:
    """Return what this process needs, by what for."""
    rows, epochs = dataset.rows, spec.epochs[1] - spec.epochs[0]
    bit = -(-dataset.snapshot.next_row_id // 8)
    chosen = [s for s in stages if isinstance(s, SelectStage | GroupStage)]
    sets = bool(chosen or spec.added_only) + any(getattr(s, "per_epoch", False) for s in chosen)
    batches = -(-rows // spec.batch_size)
    blocks = epochs * max(-(-rows // BLOCK_ROWS), -(-batches // BLOCK_MICRO_BATCHES))
    bill = {
        "the program": _PROGRAM,
        "the table of files": len(dataset.refs) * _FILE_BYTES,
        "bits for the rows": int(bit * (1 + sets * (1 + BITMAP_INDEX))),
        "the manifest's header": blocks * _BLOCK_BYTES,
        "a micro-batch": _PLAN_BYTES * max(0, min(spec.batch_size, rows) - BLOCK_ROWS),
    }
    for stage in stages:
        needed = stage.memory(spec, dataset)
        bill[stage.method] = bill.get(stage.method, 0) + needed
    bill["sorting"] = _SORTING
    return bill


def _total(
    spec: JobSpec, mine: int, bill: dict[str, int], workers: int = 0, worker: int = 0
) -> int:
    """Return the whole job's memory, or refuse it; `worker`: bytes that each of them needs."""
    least = mine + workers * worker
    machine = machine_memory()
    total = spec.memory or max(machine // 2, least)
    if total >= least and (spec.memory is not None or least <= machine):
        return total
    items = [f"{size_text(b)} for {what}" for what, b in bill.items() if b >= _MIB]
    if workers:
        items.append(f"{size_text(worker)} for each of {workers} workers")
    needs = f"needs at least {size_text(least)} of memory: {', '.join(items)}"
    fewer = " or use fewer workers" if workers > 1 else ""
    if spec.memory is None:
        raise ParameterError(
            f"This job {needs}; the machine has {size_text(machine)}. Use a larger machine{fewer}."
        )
    raise ParameterError(
        f"This job {needs}. Got {size_text(total)}; give it --memory {mebibytes(least)}MiB or more"
        f"{fewer}."
    )


def work_bytes(dataset: Dataset, stages: Sequence[Stage], budget: Budget) -> int:
    """Return about how many bytes the work folder takes at most."""
    rows, bit = dataset.rows, -(-dataset.snapshot.next_row_id // 8)
    fits = budget.holds(rows)
    return sum(bit + stage.work_bytes(rows, in_memory=fits) for stage in stages)
