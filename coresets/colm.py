"""CoLM: a small batch that stands for a large one drawn from a mixture of sources.

Nguyen et al., *Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures*,
ICLR 2025. From a large batch, with a feature a row (a gradient, or an estimate of it):

1. Sources that are small in the dataset are kept whole (`budgets.small_sources`).
2. The rest of the k rows is shared out among the other sources, in proportion to the batch.
3. In each of these `facility_location` chooses the rows that stand for all of it.
4. Their union is the small batch. Weights are 1 (``"uniform"``, as in the paper), or how many rows
   of its source each row stands for (``"cluster"``), with which weighted sums of gradients come
   near those of the large batch.

Where we deviate from the authors' code: what is small is computed from the dataset's counts, where
the code has a list of source numbers; budgets are whole numbers, rounded by largest remainders;
where small sources alone exceed k, rows are chosen in them too, where the code takes those that
came first; a row whose features are not finite is left out and named, where it spoils the code's
choice; equal distances are decided by row id.

Uniform weights buy coverage of the sources, not the batch's gradient: their gradient error is no
smaller than a random batch's. Where rows of a batch are alike in nothing, no choice beats a random
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.errors import SelectionError, examples, nearest
from ..dataplane.parameters import parameters
from ..dataplane.plan import Selection
from .budgets import Rounding, small_sources, source_budgets
from .distances import Metric
from .facility_location import (
    FacilityLocation,
    Weights,
    check_size,
    comparable_rows,
    facility_location,
)

__all__ = ["CoLM"]

I64 = npt.NDArray[np.int64]


@parameters
class CoLM:
    """Parameters of CoLM."""

    metric: Annotated[Metric, Field(description="distance between features")] = "l1"
    weights: Annotated[
        Weights, Field(description="all 1, or the rows that each chosen one stands for")
    ] = "uniform"
    rounding: Annotated[
        Rounding, Field(description="who gets the rows that rounding leaves: see budgets")
    ] = "largest-remainder"
    refine: Annotated[bool, Field(description="exchange rows while that lowers the cost")] = False

    def select(
        self,
        features: npt.ArrayLike,
        sources: npt.ArrayLike,
        k: int,
        *,
        source_counts: Mapping[Any, int],
        small: Iterable[Any] | None = None,
        ids: npt.ArrayLike | None = None,
    ) -> Selection:
        """Select the rows of a small batch.

        Parameters
        ----------
        features : float, shape (n, d)
        sources : shape (n,)
            The source of each row: names, or numbers.
        k : int
            Rows of the small batch; rows that are left out do not count among the n.
        source_counts : mapping
            Rows of each source in the dataset; of the batch's sources at least.
        small : iterable, optional
            Sources to keep whole instead of those that are smaller than the mean.
        ids : uint64, shape (n,), optional
            Row ids, by which ties are decided; positions when None.

        Returns
        -------
        Selection
            Positions, ascending; weights where they are ``"cluster"``; a report of the sources
            (rows before and after, whether kept whole, the cost of the choice), and of what was
            left out.

        Raises
        ------
        SelectionError
            Where shapes differ, a source has no count, or there are fewer than k rows.
        """
        values = np.asarray(features)
        usable = comparable_rows(values, self.metric)
        names, codes = _sources(sources, len(usable))
        rows = np.flatnonzero(usable)
        check_size(k, len(rows))
        whole = _small(names, source_counts, small)
        batch = np.bincount(codes[rows], minlength=len(names))
        budgets = source_budgets(batch, whole, k, rounding=self.rounding)
        row_ids = np.arange(len(usable)) if ids is None else np.asarray(ids)
        picks, weights, report = [], [], []
        for code, name in enumerate(names):
            mine = rows[codes[rows] == code]
            found = self._choose(values[mine], int(budgets.rows[code]), row_ids[mine])
            picks.append(mine[found.rows.astype(np.int64)])
            weights.append(found.weights)
            report.append(
                {
                    "source": name,
                    "rows": len(mine),
                    "selected": len(found.rows),
                    "small": bool(whole[code]),
                    "cost": found.cost,
                }
            )
        chosen = np.concatenate([np.zeros(0, np.int64), *picks])
        order = np.argsort(chosen)
        return Selection(
            chosen[order].astype(np.uint64),
            np.concatenate(weights)[order] if self.weights == "cluster" and k else None,
            {
                "rows": len(usable),
                "selected": k,
                "sources": report,
                "overflow": budgets.overflow,
                "left_out": row_ids[~usable].tolist(),
            },
        )

    def _choose(self, values: Any, k: int, ids: Any) -> FacilityLocation:
        return facility_location(
            values, k, metric=self.metric, ids=ids, weights=self.weights, refine=self.refine
        )


def _sources(sources: npt.ArrayLike, n: int) -> tuple[list[Any], I64]:
    """Return the sources' names, ascending, and each row's place among them."""
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


def _small(
    names: list[Any], counts: Mapping[Any, int], small: Iterable[Any] | None
) -> npt.NDArray[np.bool_]:
    """Return which of the batch's sources are kept whole."""
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
