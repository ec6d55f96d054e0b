"""How far micro-batches are from a random draw of an epoch's rows, by the classes of a column.

Pearson's statistic of a micro-batch of n rows with O_c rows of class c, where the share p_c of the
epoch's rows is of that class:

    X² = Σ_c (O_c − n p_c)² / (n p_c)

Its mean over random draws is the degrees of freedom, the number of classes less one, whatever the
shares are; drawn without replacement it is smaller by (N − n) / (N − 1) for N rows. So X² over the
degrees of freedom is about 1 where micro-batches are drawn at random, larger where they are made of
like rows, and below 1 where they hold the classes in more equal shares than chance would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .counts import BINS

__all__ = ["WARN_ABOVE", "batch_chi_square", "chi_square_figures"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

WARN_ABOVE = 2.0
"""Of the mean over micro-batches."""

_CELLS = 1 << 22  # micro-batches times classes that are counted at a time
_SHOWN = 0.99  # of the micro-batches lie within the bins; the others are counted in the last


def batch_chi_square(codes: npt.NDArray[np.integer], offsets: I64, class_rows: I64) -> F64:
    """Return X² over its degrees of freedom of each micro-batch.

    Parameters
    ----------
    codes : int, shape (n,)
        Class of each row, in order of the plan; negative of a row whose class is not known, which
        is left out.
    offsets : int64, shape (m + 1,)
    class_rows : int64, shape (c,)
        Rows of each class in the whole epoch; at least two of them hold rows.

    Returns
    -------
    float64, shape (m,)
        NaN of a micro-batch without a known row.
    """
    classes = len(class_rows)
    held = class_rows > 0
    shares = class_rows[held] / class_rows.sum()
    out = np.empty(len(offsets) - 1)
    step = max(1, _CELLS // classes)
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        here = codes[offsets[start] : offsets[stop]].astype(np.int64)
        batch = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
        known = here >= 0
        cells = np.bincount(
            batch[known] * classes + here[known], minlength=(stop - start) * classes
        )
        found = cells.reshape(stop - start, classes)[:, held].astype(np.float64)
        rows = found.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            squared = (found * found / shares).sum(axis=1) / rows - rows
        out[start:stop] = squared / (int(held.sum()) - 1)
    return out


def chi_square_figures(found: F64, steps: npt.NDArray[np.uint64]) -> dict[str, Any] | None:
    """Return how X² over its degrees of freedom is spread over micro-batches.

    Parameters
    ----------
    found : float64, shape (m,)
        Of `batch_chi_square`.
    steps : uint64, shape (m,)
        Step of each micro-batch.

    Returns
    -------
    dict or None
        None where no micro-batch has a row of a known class.
    """
    known = np.isfinite(found)
    if not known.any():
        return None
    values = found[known]
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    top = max(float(np.quantile(values, _SHOWN)), WARN_ABOVE)
    edges = np.linspace(0, top, BINS + 1)
    counts, _ = np.histogram(np.minimum(values, top), edges)
    worst = int(np.flatnonzero(known)[np.argmax(values)])
    mean = float(values.mean())
    return {
        "micro_batches": len(values),
        "mean": mean,
        "p05": float(low),
        "median": float(median),
        "p95": float(high),
        "largest": float(found[worst]),
        "step_of_largest": int(steps[worst]),
        "warning": mean > WARN_ABOVE,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }
