"""What every method must do that selects rows by loss: ``plan(losses, epoch=…) -> Selection``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.coresets.loss_rows import LossRows
from batchloom.coresets.loss_search import LossSearch
from batchloom.dataplane.errors import SelectionError
from batchloom.dataplane.plan import Selection

N = 3_000


def some_losses(n: int = N, seed: int = 0) -> Any:
    return np.random.default_rng(seed).lognormal(-1.5, 1.6, n).astype(np.float32)


def some_ids(n: int = N) -> Any:
    return np.sort(np.random.default_rng(1).choice(1 << 40, n, replace=False)).astype(np.uint64)


def numpy_state() -> Any:
    """Return the state of numpy's global generator, which nobody may touch."""
    return np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002


def in_parts(search: LossSearch, parts: list[LossRows]) -> tuple[Any, Any, Any]:
    """Return (ids, weights, report) of what the passes over parts lead to."""
    while search.next is not None:
        wanted = pickle.loads(pickle.dumps(search.next))  # as a task is sent it
        search.narrow(sum(wanted.count(p) for p in parts))
    choice = pickle.loads(pickle.dumps(search.choice))
    ids, weights = [], []
    for part in parts:
        kept = choice.keeps(part)
        ids.append(part.ids[kept])
        if choice.weighted:
            rest = LossRows(part.ids[kept], part.losses[kept])
            weights.append(choice.weights(rest))
    order = np.argsort(np.concatenate(ids))
    all_weights = np.concatenate(weights)[order] if weights else None
    return np.concatenate(ids)[order], all_weights, choice.report


def same(a: Selection, b: Selection) -> bool:
    weights = (a.weights is None) == (b.weights is None)
    if weights and a.weights is not None and b.weights is not None:
        weights = a.weights.tobytes() == b.weights.tobytes()
    return weights and a.rows.tobytes() == b.rows.tobytes() and a.report == b.report


class LossSelectorContract:
    """Subclass, and say what `make(...)` is."""

    PRUNED = 2  # an epoch in which rows are left out

    def make(self, *, seed: int = 0, prune_ratio: float = 0.3) -> Any:
        raise NotImplementedError

    @pytest.mark.parametrize("parts", [1, 2, 7, 64])
    def test_parts_in_any_order_select_what_one_array_does(self, parts: int) -> None:
        losses, ids = some_losses(), some_ids()
        scored = np.random.default_rng(2).random(N) < 0.9
        whole = self.make().plan(losses, epoch=self.PRUNED, scored=scored, ids=ids)
        mixed = np.random.default_rng(parts).permutation(N)
        cut = np.array_split(mixed, parts)
        rows = [LossRows.of(ids[p], losses[p], scored[p]) for p in cut]
        found, weights, report = in_parts(self.make().search(self.PRUNED, N), rows)
        assert found.tolist() == ids[whole.rows.astype(np.int64)].tolist()
        assert report == whole.report
        assert (weights is None) == (whole.weights is None)
        if weights is not None:
            assert weights.tobytes() == whole.weights.tobytes()

    def test_permutation_of_rows_with_their_ids(self) -> None:
        losses, ids = some_losses(), some_ids()
        mixed = np.random.default_rng(3).permutation(N)
        a = self.make().plan(losses, epoch=self.PRUNED, ids=ids)
        b = self.make().plan(losses[mixed], epoch=self.PRUNED, ids=ids[mixed])
        assert set(ids[a.rows.astype(np.int64)]) == set(ids[mixed][b.rows.astype(np.int64)])
        assert 0 < len(a.rows) < N

    def test_compiled_loops_change_no_bit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        losses = some_losses()
        fast = self.make().plan(losses, epoch=self.PRUNED)
        monkeypatch.setenv("BATCHLOOM_NUMBA", "0")
        assert same(self.make().plan(losses, epoch=self.PRUNED), fast)

    def test_seed_and_epoch_matter_and_nothing_else_does(self) -> None:
        losses = some_losses()
        state, torch_state = numpy_state(), torch.get_rng_state()
        first = self.make().plan(losses, epoch=self.PRUNED)
        assert same(self.make().plan(losses, epoch=self.PRUNED), first)
        assert numpy_state() == state
        assert torch.equal(torch.get_rng_state(), torch_state)
        other = self.make(seed=1).plan(losses, epoch=self.PRUNED)
        assert other.rows.tolist() != first.rows.tolist()

    def test_keeping_more_only_adds_rows(self) -> None:
        losses = np.zeros(500, np.float32)  # one group: the draw alone decides
        losses[0] = 1.0
        few = self.make(prune_ratio=0.6).plan(losses, epoch=self.PRUNED)
        more = self.make(prune_ratio=0.4).plan(losses, epoch=self.PRUNED)
        assert set(few.rows.tolist()) < set(more.rows.tolist())

    def test_report_counts_the_rows(self) -> None:
        found = self.make().plan(some_losses(), epoch=self.PRUNED)
        assert found.report["selected"] == len(found.rows)
        assert found.report["rows"] == N
        assert found.report["saved"] == pytest.approx(1 - len(found.rows) / N)

    def test_rows_never_scored_depend_on_no_loss(self) -> None:
        losses = some_losses()
        scored = np.arange(N) % 3 != 0
        a = self.make().plan(losses, epoch=self.PRUNED, scored=scored)
        losses[~scored] = np.nan
        assert same(self.make().plan(losses, epoch=self.PRUNED, scored=scored), a)

    def test_nothing_scored(self) -> None:
        found = self.make().plan(np.zeros(100), epoch=self.PRUNED, scored=np.zeros(100, bool))
        assert len(found.rows) > 0

    def test_one_row(self) -> None:
        assert self.make().plan(np.array([0.5]), epoch=self.PRUNED).rows.tolist() == [0]

    def test_copies(self) -> None:
        made = self.make()
        losses = some_losses(200)
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert other == made
            assert same(other.plan(losses, epoch=self.PRUNED), made.plan(losses, epoch=self.PRUNED))

    def test_a_reduced_loss_is_refused(self) -> None:
        with pytest.raises(
            SelectionError, match=r"shape \(n,\), found shape \(\).*reduction='none'"
        ):
            self.make().plan(np.float32(0.5), epoch=self.PRUNED)

    def test_another_shape_is_refused(self) -> None:
        with pytest.raises(SelectionError, match=r"'scored' of shape \(4,\).*found \(3,\)"):
            self.make().plan(np.zeros(4), epoch=self.PRUNED, scored=np.ones(3, bool))
        with pytest.raises(SelectionError, match=r"'ids' of shape \(4,\).*found \(5,\)"):
            self.make().plan(np.zeros(4), epoch=self.PRUNED, ids=np.arange(5))

    def test_integers_are_refused(self) -> None:
        with pytest.raises(SelectionError, match="Losses must be floats, found int64"):
            self.make().plan(np.zeros(4, np.int64), epoch=self.PRUNED)

    def test_an_empty_dataset_is_refused(self) -> None:
        with pytest.raises(SelectionError, match="no rows to select from"):
            self.make().plan(np.zeros(0), epoch=self.PRUNED)


class NonFiniteContract:
    """Beside it, for methods that look at the losses."""

    PRUNED = 2

    def make(self, **parameters: Any) -> Any:
        raise NotImplementedError

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_losses_that_are_not_finite(self, bad: float) -> None:
        losses, ids = some_losses(), some_ids()
        losses[[7, 9]] = bad
        with pytest.raises(SelectionError, match=f"2 rows have a loss .*{ids[7]}, {ids[9]}"):
            self.make().plan(losses, epoch=self.PRUNED, ids=ids)
        kept = self.make(nonfinite="keep").plan(losses, epoch=self.PRUNED, ids=ids)
        scored = np.isfinite(losses)
        losses[[7, 9]] = 0
        assert same(self.make().plan(losses, epoch=self.PRUNED, ids=ids, scored=scored), kept)
