"""CoLM in training: of each large batch the small one that stands for it.

    >>> selector = CoLMSelector(64, source_counts=counts)
    >>> for batch in loader:                                     # of 128 rows, of several sources
    ...     losses = in_micro_batches(lambda part: row_losses(model, batch, part), 128, size=16)
    ...     probes = spsa_probes(losses, parameter, seed=0)      # the same directions at each step
    ...     small = selector.select(probes, sources(batch), ids=batch.rows)
    ...     kept = row_losses(model, batch, small.rows)          # 64 of them
    ...     (world_size * (small.weights * kept).sum() / small.total).backward()

Features may be any that `coresets.gradients` makes, or the caller's own. They are taken through the
moments of Adam, and of each source the largest dimensions are kept, as the paper has it; both can
be left out. Moments are of dimensions that stay the same from step to step, so probes keep their
directions. The memory of a step is that of the small batch and of one micro-batch.

**Ranks.** Each rank has a part of the large batch. Features, sources and ids are exchanged, every
rank makes the same choice, and trains on the chosen rows of its own part; a rank of whose part none
was chosen gets one row of weight 0. `total` is the sum of all weights, over the ranks.

**State.** The step and the moments: what follows a restored state is what would have followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..coresets.colm import CoLM
from ..coresets.gradients import Moments, keep_largest
from ..dataplane.checks import require_int
from ..dataplane.errors import SelectionError
from ..dataplane.parameters import resolved
from .exchange import gather_rows, on_several_ranks, rank_sizes
from .state import check_settings

__all__ = ["CoLMSelector", "SmallBatch", "in_micro_batches"]

VERSION = 1


@dataclass(frozen=True)
class SmallBatch:
    """The rows of a large batch that a rank trains on.

    Attributes
    ----------
    rows : int64 tensor, shape (m,)
        Positions in this rank's part of the large batch, ascending.
    weights : float32 tensor, shape (m,)
    total : float
        Sum of the weights of all ranks.
    report : mapping
        Of `CoLM.select`, over all ranks.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    total: float
    report: Mapping[str, Any]


class CoLMSelector:
    """Chooses small batches; the same on every rank.

    Parameters
    ----------
    k : int
        Rows of a small batch, over all ranks.
    source_counts : mapping
        Rows of each source in the dataset.
    method : CoLM, optional
    small : iterable, optional
        Sources to keep whole, instead of those below the mean.
    adam : bool
        Whether features are taken through Adam's moments.
    largest : int, optional
        Dimensions that are kept of each source; all when None.

    Attributes
    ----------
    k : int
    method : CoLM
    source_counts : dict
    step : int
        Choices so far.
    """

    def __init__(
        self,
        k: int,
        *,
        source_counts: Mapping[Any, int],
        method: CoLM | None = None,
        small: Iterable[Any] | None = None,
        adam: bool = True,
        largest: int | None = None,
    ) -> None:
        require_int("k", k, 1)
        if largest is not None:
            require_int("largest", largest, 1)
        self.k, self.method = k, method or CoLM()
        self.source_counts = dict(source_counts)
        self._places = {name: place for place, name in enumerate(self.source_counts)}
        self._small = None if small is None else sorted(self.place(name) for name in small)
        self._adam, self._largest = adam, largest
        self._moments: Moments | None = None
        self.step = 0

    def select(
        self,
        features: npt.ArrayLike,
        sources: Iterable[Any],
        *,
        ids: npt.ArrayLike | None = None,
    ) -> SmallBatch:
        """Choose of a large batch; a collective where torch.distributed runs.

        Parameters
        ----------
        features : float, shape (n, d)
            Of this rank's part; n may differ from rank to rank.
        sources : iterable of n names
        ids : int, shape (n,), optional
            Row ids, by which ties are decided; positions in the whole batch when None.

        Raises
        ------
        SelectionError
            Where shapes differ, a source has no count, or there are fewer than k rows.
        """
        mine = np.asarray(features, np.float32)
        places = np.array([self.place(name) for name in _listed(sources)], np.int64)
        names = None if ids is None else np.asarray(ids).astype(np.int64)
        if (
            mine.ndim != 2
            or places.shape != mine.shape[:1]
            or not (names is None or names.shape == places.shape)
        ):
            raise SelectionError(
                f"Expected features of shape (n, d), and a source and an id a row; found "
                f"{mine.shape}, {places.shape}" + ("." if names is None else f" and {names.shape}.")
            )
        sizes = rank_sizes(len(mine))
        rows = gather_rows(mine, sizes)
        codes = gather_rows(places, sizes)
        row_ids = np.arange(len(rows)) if names is None else gather_rows(names, sizes)
        found = self.method.select(
            self._seen(rows, codes),
            codes,
            self.k,
            source_counts=dict(enumerate(self.source_counts.values())),
            small=self._small,
            ids=row_ids,
        )
        chosen = found.rows.astype(np.int64)
        weights = np.ones(len(chosen), np.float32) if found.weights is None else found.weights
        self._go_on(rows, codes, chosen, found.report)
        first = sum(sizes[: _rank()])
        inside = (chosen >= first) & (chosen < first + len(mine))
        here, mass = chosen[inside] - first, weights[inside]
        if not len(here) and len(mine):  # so that the rank has something to go backward from
            here, mass = np.zeros(1, np.int64), np.zeros(1, np.float32)
        return SmallBatch(
            torch.from_numpy(here),
            torch.from_numpy(mass.copy()),
            float(weights.sum(dtype=np.float64)),
            self._named(found.report),
        )

    def _seen(self, rows: Any, codes: Any) -> Any:
        """Return the features as the choice sees them."""
        if self._adam:
            self._moments = self._moments or Moments.zeros(rows.shape[1])
            with np.errstate(invalid="ignore", over="ignore"):  # such rows are left out
                rows = self._moments.normalise(rows)
        return rows if self._largest is None else keep_largest(rows, codes, self._largest)

    def _go_on(self, rows: Any, codes: Any, chosen: Any, report: Mapping[str, Any]) -> None:
        """Take the moments on by the chosen rows that were chosen by their features."""
        self.step += 1
        if self._moments is not None:
            whole = [s["source"] for s in report["sources"] if s["small"]]
            self._moments = self._moments.after(rows[chosen[~np.isin(codes[chosen], whole)]])

    def place(self, name: Any) -> int:
        """Return the number of a source: its place in `source_counts`."""
        key = name.item() if isinstance(name, (np.generic, torch.Tensor)) else name
        if key not in self._places:
            raise SelectionError(
                f"Source {key!r} has no count in 'source_counts', which has: "
                f"{', '.join(map(str, self.source_counts)) or 'none'}."
            )
        return self._places[key]

    def _named(self, report: Mapping[str, Any]) -> dict[str, Any]:
        names = list(self.source_counts)
        sources = [{**s, "source": names[s["source"]]} for s in report["sources"]]
        return {**report, "sources": sources}

    # --- state ------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "k": self.k,
            "method": resolved(self.method),
            "sources": [[str(name), count] for name, count in self.source_counts.items()],
            "adam": self._adam,
            "largest": self._largest,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last choice; the same on every rank."""
        moments = None if self._moments is None else self._moments.state_dict()
        return {**self._identity(), "step": self.step, "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a state.

        Raises
        ------
        ResumeMismatchError
            Where it is of other settings.
        """
        check_settings(state, self._identity(), "selector")
        self.step = int(state["step"])
        moments = state["moments"]
        self._moments = None if moments is None else Moments.from_state(moments)


def in_micro_batches(
    losses: Callable[[torch.Tensor], torch.Tensor], rows: int, *, size: int
) -> Callable[[], torch.Tensor]:
    """Return what computes the losses of `rows` rows, so many at a time.

    Parameters
    ----------
    losses : callable
        From positions, int64, shape (m,), to their losses, shape (m,).
    rows : int
    size : int
    """
    require_int("size", size, 1)
    parts = torch.arange(rows).split(size)
    return lambda: torch.cat([losses(part) for part in parts])


def _listed(sources: Iterable[Any]) -> list[Any]:
    return sources.tolist() if hasattr(sources, "tolist") else list(sources)


def _rank() -> int:
    return torch.distributed.get_rank() if on_several_ranks() else 0
