"""The figures of a plan: the header told, every block read once, the newest epoch's twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.dataset import Dataset, DatasetLike, open_dataset
from ...dataplane.epochs import EpochRecord
from ...dataplane.errors import DatasetChangedError, JobSpecError
from ...dataplane.manifest import Manifest
from ...dataplane.series import Plan, Series, open_plan
from ...dataplane.snapshot import Snapshot
from ..progress import LogProgress, Progress
from .chi_square import batch_chi_square, chi_square_figures
from .classes import Classes, read_classes
from .counts import BatchCounts, RowTimes, pieces
from .losses import RowLosses, loss_figures, read_losses
from .told import (
    choice_figures,
    cluster_figures,
    evidence_figures,
    fact_figures,
    header_figures,
    window_figures,
)

__all__ = ["plan_figures", "rows_by", "source_codes"]

I64 = npt.NDArray[np.int64]

_MOST_TIMES = 20  # larger numbers of times that rows are seen are counted together
_SHOWN_CLASSES = 20


def plan_figures(
    path: str | os.PathLike[str] | Plan,
    data: DatasetLike | None = None,
    *,
    signal: str | os.PathLike[str] | None = None,
    loss: str = "loss",
    column: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the figures of a manifest or a series.

    Memory is one to two bytes a row of the dataset, and some more for a column or a signal.

    Parameters
    ----------
    path : path, URI, Manifest or Series
    data : path, URI, list or mapping, optional
        The dataset that was planned, for `column`.
    signal : path or URI, optional
        A signal store or file: how the losses of rows kept and dropped differ.
    loss : str
        Name of the signal.
    column : str, optional
        Count rows, and compare micro-batches, by the classes of this column.
    storage_options : mapping, optional
    progress : Progress, optional

    Returns
    -------
    dict
        As JSON holds it; a key is there where the plan has what it is about. `docs/report.md` says
        what each holds.

    Raises
    ------
    JobSpecError
        Where a column is named without a dataset.
    ManifestError, DatasetError, SignalError, SelectionError
    """
    if column is not None and data is None:
        raise JobSpecError(f"Column '{column}' is read from the dataset: name it (--dataset), too.")
    if data is not None and column is None:
        raise JobSpecError("Name the column of the dataset to count rows by (--column).")
    plan = open_plan(path, storage_options=storage_options)
    told = progress or LogProgress()
    members = plan.members if isinstance(plan, Series) else [plan]
    newest, last = members[-1], plan.epochs[-1]
    ids = max(m.snapshot.next_row_id for m in members)
    losses = classes = None
    if signal is not None:  # both first: what is wrong with them is said at once
        losses = read_losses(signal, loss, newest.snapshot, ids, last, storage_options)
    if data is not None and column is not None:
        dataset, fragments = _opened(newest, data, storage_options, told)
        classes = read_classes(dataset, column, fragments, ids)
    counted = _Counted(plan, newest.snapshot, ids, told)
    figures = {
        "header": header_figures(members, plan.epochs),
        "cost": _cost(plan, newest.snapshot),
        **counted.figures(losses, classes),
        "windows": window_figures(members),
        "clusters": cluster_figures(members, counted.last.cluster_sizes()),
        "choice": choice_figures(members),
        "evidence": evidence_figures(members),
        "facts": fact_figures(members),
    }
    if classes is not None:
        figures["chi_square"] = _compared(plan, classes, counted.now)
    held = {key: value for key, value in figures.items() if value not in (None, [])}
    plain: dict[str, Any] = json.loads(json.dumps(held, allow_nan=False, default=str))
    return plain


def _opened(
    manifest: Manifest,
    data: DatasetLike,
    storage_options: Mapping[str, Any] | None,
    progress: Progress,
) -> tuple[Dataset, list[int]]:
    """Return the dataset and the fragments to read: all, or where some are gone the planned."""
    everything = [i for i, f in enumerate(manifest.snapshot.fragments) if f.rows]
    planned = manifest.planned_fragments()
    for needed in (everything, planned):
        try:
            dataset = open_dataset(
                data,
                snapshot=manifest.snapshot,
                needed=needed,
                storage_options=storage_options,
            )
        except DatasetChangedError:
            if needed == planned:
                raise
        else:
            if needed != everything:
                progress.warn("some files without planned rows are gone or changed: left out")
            return dataset, needed
    raise AssertionError  # the last turn returns or raises


# --- counting -------------------------------------------------------------------------------------


class _Counted:
    """Reads every block once.

    Attributes
    ----------
    last : BatchCounts
        Of the newest epoch.
    now : int, shape (ids,)
        How often the newest epoch holds each row.
    """

    def __init__(self, plan: Plan, snapshot: Snapshot, ids: int, progress: Progress) -> None:
        records = {e: plan.manifest_for(e).records[e] for e in plan.epochs}
        repeats = any(r.coverage == "with_replacement" for r in records.values())
        most = sum(r.samples for r in records.values()) if repeats else len(records)
        rows = RowTimes(ids, most)
        self._there = _held(ids, snapshot)
        self._seen: list[dict[str, Any]] = []
        with progress.step("reading the plan", sum(r.samples for r in records.values())) as bar:
            for number, record in records.items():
                newest = number == plan.epochs[-1]
                before = rows.times.copy() if newest else None
                self._read(plan, number, record, rows, newest=newest)
                bar.advance(record.samples)
                if before is not None:
                    self.now: npt.NDArray[Any] = rows.times - before
                seen = sum(
                    int(np.count_nonzero(rows.times[here][self._there[here]]))
                    for here in pieces(ids)
                )
                self._seen.append({"epoch": number, "seen": seen})
        self._rows, self._repeats, self._snapshot = rows, repeats, snapshot

    def _read(
        self, plan: Plan, number: int, record: EpochRecord, rows: RowTimes, *, newest: bool
    ) -> None:
        repeated = record.coverage == "with_replacement"
        epoch = plan.epoch(number)
        if not newest:
            for ids in epoch.row_chunks():
                rows.add(ids, repeated=repeated)
            return
        self.last = BatchCounts(plan.manifest_for(number).side_columns)
        for block in epoch.blocks():
            rows.add(block.rows, repeated=repeated)
            self.last.add(block)

    def figures(self, losses: RowLosses | None, classes: Classes | None) -> dict[str, Any]:
        """Return what was counted."""
        snapshot, epoch = self._snapshot, self._seen[-1]["epoch"]
        names, codes = source_codes(snapshot, len(self.now))
        ever = self._rows.times > 0
        found: dict[str, Any] = {
            "rows": {
                "epoch": epoch,
                "sources": rows_by(names, codes, self.now, ever),
            },
            "batches": {"epoch": epoch, **self.last.batches()},
            "weights": self.last.weights(),
            "hardness": self.last.hardness(),
            "coverage": self._coverage(snapshot),
        }
        if classes is not None:
            unread = int((self._there & (classes.codes < 0)).sum())
            found["classes"] = {
                "epoch": epoch,
                "column": classes.column,
                "kind": classes.kind,
                "classes": len(classes.names),
                "rows_not_read": unread,
                "rows": _shortened(rows_by(classes.names, classes.codes, self.now, ever)),
            }
        if losses is not None:
            found["losses"] = {"epoch": epoch} | loss_figures(losses, self.now > 0, self._there)
        return found

    def _coverage(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """Return how much of the dataset was seen; None where that is one epoch without repeats."""
        if len(self._seen) == 1 and not self._repeats:
            return None
        counts, total, most = np.zeros(_MOST_TIMES + 1, np.int64), 0, 0
        for here in pieces(len(self._there)):
            times = self._rows.times[here][self._there[here]]
            counts += np.bincount(np.minimum(times, _MOST_TIMES), minlength=len(counts))
            total += int(times.sum(dtype=np.int64))
            most = max(most, int(times.max(initial=0)))
        return {
            "rows": snapshot.rows,
            "epochs": [s | {"share": s["seen"] / snapshot.rows} for s in self._seen],
            "times": counts[: most + 1].tolist(),
            "times_together": _MOST_TIMES if most > _MOST_TIMES else None,
            "mean_times": total / snapshot.rows,
        }


def _held(ids: int, snapshot: Snapshot) -> npt.NDArray[np.bool_]:
    """Return which row ids are in a snapshot."""
    there = np.zeros(ids, bool)
    for f in snapshot.fragments:
        there[f.first_row_id : f.stop_row_id] = True
    return there


def source_codes(snapshot: Snapshot, ids: int) -> tuple[list[str], npt.NDArray[np.int16]]:
    """Return the names of a snapshot's sources, and the place among them by row id."""
    names = sorted({f.source for f in snapshot.fragments})
    codes = np.full(ids, -1, np.int16)
    for f in snapshot.fragments:
        codes[f.first_row_id : f.stop_row_id] = names.index(f.source)
    return names, codes


def rows_by(
    names: Sequence[str],
    codes: npt.NDArray[np.int16],
    now: npt.NDArray[Any],
    ever: npt.NDArray[np.bool_],
) -> list[dict[str, Any]]:
    """Count rows by class.

    Parameters
    ----------
    names : sequence of str
    codes : int16, shape (ids,)
        Class of each row id; negative where there is none.
    now : int, shape (ids,)
        How often an epoch holds the row.
    ever : bool, shape (ids,)
        Whether any epoch does.
    """
    k = len(names)
    found = np.zeros((4, k + 1), np.int64)
    for here in pieces(len(codes)):
        place = codes[here].astype(np.int64)
        place[place < 0] = k
        times = now[here]
        seen = ever[here]
        for line, weights in enumerate((None, times > 0, times, seen)):
            found[line] += np.bincount(place, weights, k + 1).astype(np.int64)
    rows, kept, reads, seen_rows = (line[:k].tolist() for line in found)
    return [
        {
            "name": str(name),
            "rows": rows[i],
            "kept": kept[i],
            "dropped": rows[i] - kept[i],
            "share_kept": kept[i] / rows[i] if rows[i] else None,
            "reads": reads[i],
            "ever": seen_rows[i],
        }
        for i, name in enumerate(names)
    ]


def _shortened(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the classes with the most rows, in order, and sum up the others."""
    if len(lines) <= _SHOWN_CLASSES:
        return lines
    largest = sorted(range(len(lines)), key=lambda i: -lines[i]["rows"])[: _SHOWN_CLASSES - 1]
    rest = [line for i, line in enumerate(lines) if i not in set(largest)]
    summed = {k: sum(r[k] for r in rest) for k in ("rows", "kept", "dropped", "reads", "ever")}
    share = summed["kept"] / summed["rows"] if summed["rows"] else None
    others = {"name": f"{len(rest):,} others", **summed, "share_kept": share}
    return [lines[i] for i in sorted(largest)] + [others]


def _cost(plan: Plan, snapshot: Snapshot) -> dict[str, Any]:
    """Return what training on the plan costs beside epochs of all rows, in rows and steps."""
    epochs: list[dict[str, Any]] = []
    for number in plan.epochs:
        manifest = plan.manifest_for(number)
        record, rows = manifest.records[number], manifest.snapshot.rows
        epochs.append(
            {
                "epoch": number,
                "steps": record.steps,
                "rows": record.samples,
                "plain_rows": rows,
                "share": record.samples / rows,
                "dropped_from_batches": record.dropped_rows,
                "weight_sum": record.total_weight,
            }
        )
    read, plain = (sum(e[key] for e in epochs) for key in ("rows", "plain_rows"))
    return {
        "dataset_rows": snapshot.rows,
        "epochs": epochs,
        "steps": sum(e["steps"] for e in epochs),
        "rows": read,
        "plain_rows": plain,
        "share": read / plain,
        "saved": 1 - read / plain,
    }


def _compared(plan: Plan, classes: Classes, now: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Return how the newest epoch's micro-batches differ from random ones, by class."""
    class_rows = np.zeros(len(classes.names), np.int64)
    for here in pieces(len(now)):
        known = classes.codes[here] >= 0
        counts = np.bincount(classes.codes[here][known], now[here][known], len(class_rows))
        class_rows += counts.astype(np.int64)
    if np.count_nonzero(class_rows) < 2:
        return None
    found, steps = [], []
    for block in plan.epoch(plan.epochs[-1]).blocks():
        mine = classes.codes[block.rows.view(np.int64)]
        found.append(batch_chi_square(mine, block.offsets, class_rows))
        steps.append(block.step)
    figures = chi_square_figures(np.concatenate(found), np.concatenate(steps))
    if figures is None:
        return None
    held = int(np.count_nonzero(class_rows))
    return {"epoch": plan.epochs[-1], "column": classes.column, "classes": held} | figures
