"""A small batch chosen from a large one: what every method for it has in common.

A method says from which *pools* it chooses, and how it chooses k rows of one pool:

- ``"batch"``: of all rows of the large batch together.
- ``"source"``: of each source, or class, as many as its share of the large batch.
- ``"large-source"``: sources that are small in the dataset are kept whole, and of each other one
  its share of the rest is chosen (CoLM; `budgets`).

Rows whose features cannot be compared are left out and named, and the rest is chosen as without
them. Pools are taken in the order of the sources' names and rows in the order of their ids: so the
order in which rows come changes nothing, and ties go to the smaller id.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError, examples, nearest
from ..dataplane.plan import Selection
from .budgets import Rounding, SourceBudgets, apportion, small_sources, source_budgets
from .distances import Metric
from .facility_location import check_size, comparable_rows

__all__ = ["BatchCoreset", "Picked", "Pools"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

Pools = Literal["batch", "source", "large-source"]


@dataclass(frozen=True)
class Picked:
    """Rows chosen of one pool.

    Attributes
    ----------
    rows : int64, shape (k,)
        Positions in the pool.
    weights : float32, shape (k,), or None
        1 when None.
    cost : float or None
        Sum of the distances of the pool's rows to the nearest chosen ones, where it is known.
    """

    rows: I64
    weights: F32 | None = None
    cost: float | None = None


class BatchCoreset(ABC):
    """A method that chooses small batches; its parameters are a frozen dataclass."""

    pools: ClassVar[Pools] = "batch"
    by_features: ClassVar[bool] = True
    metric: Metric = "l2"
    rounding: Rounding = "largest-remainder"

    @property
    def weighted(self) -> bool:
        """Whether chosen rows have weights."""
        return False

    @abstractmethod
    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        """Choose k rows of one pool.

        Parameters
        ----------
        values : float32, shape (n, d)
            All can be compared; of no width where the method takes no features.
        ids : uint64, shape (n,)
            Ascending.
        k : int
            In the range [1, n].
        epoch : int
            Keys random choices, beside the ids.
        """

    def select(
        self,
        features: npt.ArrayLike | None,
        sources: npt.ArrayLike | None,
        k: int,
        *,
        source_counts: Mapping[Any, int] | None = None,
        small: Iterable[Any] | None = None,
        ids: npt.ArrayLike | None = None,
        epoch: int = 0,
    ) -> Selection:
        """Select the rows of a small batch.

        Parameters
        ----------
        features : float, shape (n, d), or None
            None for a method that takes none.
        sources : shape (n,), or None
            The source, or class, of each row: names, or numbers. None: all are of one.
        k : int
            Rows of the small batch; rows that are left out do not count among the n.
        source_counts : mapping, optional
            Rows of each source in the dataset; of the batch's sources at least. Needed where small
            sources are kept whole.
        small : iterable, optional
            Sources to keep whole instead of those that are smaller than the mean.
        ids : uint64, shape (n,), optional
            Row ids, by which ties are decided and rows are drawn; positions when None.
        epoch : int
            Of the draws, for a method that chooses at random.

        Returns
        -------
        Selection
            Positions, ascending; weights where the method has some; a report of the sources (rows
            before and after, whether kept whole), the cost of the choice where it is known, and
            what was left out.

        Raises
        ------
        SelectionError
            Where shapes differ, a source has no count, or there are fewer than k rows.
        """
        usable, values = self._rows(features, sources)
        names, codes = _sources(sources, len(usable))
        row_ids = np.arange(len(usable)) if ids is None else np.asarray(ids)
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(row_ids[rows], kind="stable")]
        check_size(k, len(rows))
        whole = self._whole(names, source_counts, small)
        batch = np.bincount(codes[rows], minlength=len(names))
        budgets = self._budgets(batch, whole, k)
        named = row_ids.astype(np.uint64)
        picked = [
            (mine, self._of_pool(values[mine], named[mine], budget, epoch))
            for mine, budget in self._pools(rows, codes, budgets, k)
        ]
        chosen = np.concatenate([np.zeros(0, np.int64), *(mine[p.rows] for mine, p in picked)])
        order = np.argsort(chosen)
        weights = [np.ones(len(p.rows), np.float32) if p.weights is None else p.weights
                   for _, p in picked]  # fmt: skip
        costs = [p.cost for _, p in picked if p.cost is not None]
        taken = np.bincount(codes[chosen], minlength=len(names))
        return Selection(
            chosen[order].astype(np.uint64),
            np.concatenate(weights)[order] if self.weighted and k else None,
            {
                "rows": len(usable),
                "selected": k,
                "cost": float(sum(costs)) if costs else None,
                "sources": [
                    {"source": n, "rows": int(b), "selected": int(t), "small": bool(w)}
                    for n, b, t, w in zip(names, batch, taken, whole, strict=True)
                ],
                "overflow": budgets.overflow,
                "left_out": row_ids[~usable].tolist(),
            },
        )

    # --- the steps --------------------------------------------------------------------------------

    def _rows(self, features: Any, sources: Any) -> tuple[Mask, Any]:
        """Return which rows can be chosen, and the features of all."""
        if self.by_features:
            if features is None:
                raise SelectionError(
                    f"{type(self).__name__} chooses by features: give 'features' of shape (n, d)."
                )
            values = np.asarray(features)
            return comparable_rows(values, self.metric), values
        given = features if sources is None else sources
        if given is None:
            raise SelectionError("Give 'sources' or 'features', one a row.")
        n = len(np.asarray(given))
        return np.ones(n, bool), np.zeros((n, 0), np.float32)

    def _whole(
        self, names: list[Any], counts: Mapping[Any, int] | None, small: Iterable[Any] | None
    ) -> Mask:
        """Return which of the batch's sources are kept whole."""
        if self.pools != "large-source":
            return np.zeros(len(names), bool)
        if counts is None:
            raise SelectionError(
                "Which sources are small is said of the dataset: give 'source_counts', the rows "
                "of each of its sources."
            )
        return _small(names, counts, small)

    def _budgets(self, batch: I64, whole: Mask, k: int) -> SourceBudgets:
        if self.pools == "large-source":
            return source_budgets(batch, whole, k, rounding=self.rounding)
        return SourceBudgets(apportion(batch, k, rounding=self.rounding), whole, False)

    def _pools(
        self, rows: I64, codes: I64, budgets: SourceBudgets, k: int
    ) -> Iterable[tuple[I64, int]]:
        if self.pools == "batch":
            return [(rows, k)]
        return [(rows[codes[rows] == c], int(b)) for c, b in enumerate(budgets.rows)]

    def _of_pool(self, values: Any, ids: U64, k: int, epoch: int) -> Picked:
        if not k:
            return Picked(np.zeros(0, np.int64))
        return self.choose(values, ids, k, epoch)


def _sources(sources: npt.ArrayLike | None, n: int) -> tuple[list[Any], I64]:
    """Return the sources' names, ascending, and each row's place among them."""
    if sources is None:
        return [None], np.zeros(n, np.int64)
    given = np.asarray(sources)
    if given.shape != (n,):
        raise SelectionError(
            f"Expected 'sources' of shape ({n},), one a row of features, found {given.shape}."
        )
    if given.dtype.kind == "f" or any(s is None for s in given.tolist()):
        raise SelectionError(
            "A row has no source: 'sources' must be names or whole numbers, found "
            f"{given.dtype} with "
            f"{examples(np.flatnonzero([s is None or s != s for s in given.tolist()]))}."
        )
    names, codes = np.unique(given, return_inverse=True)
    return names.tolist(), codes.astype(np.int64)


def _small(names: list[Any], counts: Mapping[Any, int], small: Iterable[Any] | None) -> Mask:
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise SelectionError(
            f"Source {unknown[0]!r} of the batch has no count in 'source_counts'."
            f"{nearest(str(unknown[0]), map(str, counts))} Give the dataset's rows of each source."
        )
    if small is not None:
        kept = set(small)
        strange = [name for name in kept if name not in counts]
        if strange:
            raise SelectionError(
                f"'small' names the source {strange[0]!r}, which has no count."
                f"{nearest(str(strange[0]), map(str, counts))}"
            )
        return np.array([name in kept for name in names], bool)
    known = dict(zip(counts, small_sources(list(counts.values())).tolist(), strict=True))
    return np.array([known[name] for name in names], bool)
