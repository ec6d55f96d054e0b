"""NGAME while training: micro-batches of clusters, which are made of the embeddings so far.

    >>> method = NGAME(batch_size=512, schedule={5: 8, 10: 32})
    >>> sampler = NGAMESampler(len(data), method, width=256, labels=labels)
    >>> loader = DataLoader(IndexedDataset(data), batch_sampler=sampler)
    >>> for epoch in range(sampler.epoch, 40):
    ...     sampler.set_epoch(epoch)                            # with new clusters, where due
    ...     for rows, texts in loader:
    ...         x, facts = encoder(texts), sampler.facts(rows)
    ...         similarities = x @ table(facts.positive).T      # both of length 1
    ...         losses = triplet_loss(similarities, facts.mask)
    ...         loss = (facts.weights * losses).mean()
    ...         sampler.update(rows, x)                         # into the memory bank

Micro-batches, positives and masks are those of `NGAME.batches` of the same embeddings; what that
lists as negatives the loss finds by itself. Nothing is read of a global random state.

**Which embeddings.** `update` keeps the latest embedding of each row, as a step has made it anyway.
Where an epoch e makes clusters anew (`NGAME.refreshes`), they are made of the bank as it stood when
epoch e − `lag` began, and an epoch that does not goes on with those it finds. With ``lag=1``
another process makes them in the course of epoch e − 1, of what the epochs before that one wrote;
`set_epoch` waits for it where it is not done. With ``lag=0`` they are made when epoch e is set, of
what the epochs before e wrote, and the training waits. How fast the other process is changes
nothing, nor whether it is killed (`refresh`). Where epochs are left out, clusters are made when
they are needed, of the bank as it is then.

A row that was never written is zeros, which is like no other row; of several such, those of near
row numbers come together. Without any embedding there are no clusters: let the schedule begin at
epoch 1 + `lag` or later, or write all rows before the first epoch is set.

**Ranks.** A step is `micro_per_step` micro-batches, as many as there are ranks unless it is given:
of each step rank r of W takes those with m % W == r, whole. Each rank writes the rows that it has
trained on; they are exchanged when an epoch is set and when a state is taken, which both are
collectives. The clusters are made by rank 0. Where a step has too few micro-batches for the ranks,
a *pad* is a copy of its last one, of weights 0, whose embeddings are not taken.

**State.** The bank, which rows it holds, the clusters, and those of the next epoch where they were
begun: for them the state waits. Of n rows of width d it is n (4 d + 8) bytes and n bits, the same
on every rank, and any number of ranks may load it, at any step, with the same `micro_per_step`.
Training needs the bank's 4 n d bytes on each rank; while clusters are made rank 0 holds a copy of
it, and the other process its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from ..clustering.mining import Labels, mine, sample_positives
from ..clustering.ngame import NGAME, deal_clusters, random_clusters
from ..dataplane.checks import require_int
from ..dataplane.errors import RowIdError, SelectionError, WorldSizeError
from ..dataplane.parameters import resolved
from ..dataplane.plan import BatchPlan
from .exchange import on_several_ranks
from .memory_bank import MemoryBank
from .online_clusters import OnlineClusters
from .ranks import OnUneven, Shares, batches_in_step, resolve_ranks, share_steps
from .state import check_settings
from .triplet import false_negatives

__all__ = ["BatchFacts", "NGAMESampler"]

VERSION = 1

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchFacts:
    """What the loss must know of a micro-batch; tensors on the device of its rows.

    Attributes
    ----------
    positive : int64 tensor, shape (b,)
        The label that each row has drawn in this epoch; −1 without labels, where a row's positive
        is its own.
    mask : bool tensor, shape (b, b)
        Where column j is no negative of row i: its positive is a label of row i, too. The diagonal
        is set.
    weights : float32 tensor, shape (b,)
        1, or 0 where the micro-batch is a pad.
    """

    positive: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor


class NGAMESampler(Sampler[list[int]]):
    """Yields the row numbers of one micro-batch of this rank; for `DataLoader`'s `batch_sampler`.

    Parameters
    ----------
    rows : int
        Rows of the dataset.
    method : NGAME
    width : int
        Of an embedding.
    labels : scipy sparse array, shape (rows, number of labels), optional
        Which labels a row has; each at least one. None: a row's only positive is its own.
    lag : {1, 0}
        How many epochs before an epoch its clusters' embeddings are taken; 1: another process
        makes the clusters meanwhile.
    micro_per_step : int, optional
        Micro-batches a step, over all ranks; as many as there are ranks when None.
    rank, world_size : int, optional
        Those of torch.distributed where it runs, else 0 of 1. Where it does not run, each rank must
        be given the embeddings of all of them.
    on_uneven : {'pad', 'error'}
        What a rank gets of a step that has no micro-batch for it: a copy of the last one, of
        weights 0; or `WorldSizeError`.

    Raises
    ------
    SelectionError
        Where there are fewer than two rows, or a row has no label.
    WorldSizeError
    """

    def __init__(
        self,
        rows: int,
        method: NGAME,
        *,
        width: int,
        labels: Any = None,
        lag: int = 1,
        micro_per_step: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        on_uneven: OnUneven = "pad",
    ) -> None:
        super().__init__()
        require_int("rows", rows, 1)
        require_int("width", width, 1)
        require_int("lag", lag, 0, 2)
        if rows < 2:
            raise SelectionError(f"NGAME needs at least 2 rows, found {rows}.")
        self.rows, self.method, self.lag = rows, method, lag
        self._ranks = resolve_ranks(rank, world_size, on_uneven)
        self._micro_per_step = self._ranks.world_size if micro_per_step is None else micro_per_step
        require_int("micro_per_step", self._micro_per_step, 1)
        self._check_ranks()
        self._labels = None if labels is None else Labels.of(labels, rows, _ids(rows))
        self._bank = MemoryBank(rows, width)
        self._clusters = OnlineClusters(method, rows, lag)
        self._epoch: int | None = None
        self._plan: BatchPlan | None = None
        self._next, self._loaded = 0, False
        self._pads: set[int] = set()
        self._run: object = None

    def _check_ranks(self) -> None:
        batches = self.method.deal(self.rows, self.method.batch_size, 0).batches
        ends = np.append(np.arange(0, batches, self._micro_per_step), batches)
        self._steps: I64 = ends
        uneven = np.flatnonzero(np.diff(ends) % self._ranks.world_size)
        if len(uneven) and self._ranks.on_uneven == "error":
            step = int(uneven[0])
            raise WorldSizeError(
                f"Step {step} of each epoch has {int(np.diff(ends)[step])} whole micro-batches, "
                f"which {self._ranks.world_size} ranks cannot share evenly. Change micro_per_step "
                f"or the batch size ({self.rows:,} rows make {batches:,} micro-batches of at most "
                f"{self.method.batch_size}), or pass on_uneven='pad'."
            )

    # --- the training loop ------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that is set, or the first one."""
        return self._epoch or 0

    @property
    def report(self) -> Mapping[str, Any]:
        """What the epoch's micro-batches are made of.

        ``cluster_size`` 1 is random batches; ``bank_of`` the epoch at whose beginning the bank held
        the embeddings that were clustered; ``written`` the rows that the bank holds by now.
        """
        plan, made = self._planned(), self._clusters.current
        return {
            "epoch": self.epoch,
            "micro_batches": len(plan),
            "cluster_size": self.method.size_at(self.epoch),
            "bank_of": None if made is None else made.bank_of,
            "written": int(self._bank.written.sum()),
        }

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch's micro-batches; nothing where it is set already.

        Waits for the clusters, where they are due, and begins the next ones. A collective where
        torch.distributed runs: every rank sets every epoch.

        Raises
        ------
        SelectionError
            Where clusters are due and the bank holds no embedding.
        InvalidValueError
            Where an embedding that was to be clustered is NaN or infinite.
        """
        require_int("epoch", epoch, 0)
        if epoch == self._epoch:
            return
        self._bank.exchange()
        self._clusters.advance(epoch, self._bank)
        self._begin(epoch, 0, loaded=False)

    def _begin(self, epoch: int, step: int, *, loaded: bool) -> None:
        self._epoch, self._plan = epoch, None
        self._next, self._loaded, self._run = step, loaded, None
        self._pads, self._bank.ignored = set(), set()

    def _planned(self) -> BatchPlan:
        if self._epoch is None:
            self.set_epoch(0)
        if self._plan is None:
            names, settings = _ids(self.rows), {"seed": self.method.seed, "epoch": self.epoch}
            deal = self.method.deal(self.rows, self.method.batch_size, self.epoch)
            made = self._clusters.current
            labels = random_clusters(names, deal, **settings) if made is None else made.labels
            self._plan = deal_clusters(labels, names, deal, **settings)
        return self._plan

    def steps_in_epoch(self) -> int:
        """Return the steps of an epoch, the same on every rank."""
        return len(self._steps) - 1

    def _taken(self) -> I64:
        """Return how many micro-batches a rank takes of each step; int64, shape (steps,)."""
        held, world = np.diff(self._steps), self._ranks.world_size
        return np.array([batches_in_step("micro", int(n), world) for n in held])

    def __len__(self) -> int:
        """Return the micro-batches of an epoch that this rank gets, pads among them."""
        return int(self._taken().sum())

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._planned()
        # A DataLoader may begin twice; a state that was loaded holds until a batch is drawn.
        first = self._next if self._loaded else 0
        run = self._run = object()
        world = self._ranks
        sizes = np.diff(plan.offsets)
        shares = share_steps("micro", sizes, self._steps, world.rank, world.world_size)
        return self._batches(plan, shares, first, run)

    def _batches(
        self, plan: BatchPlan, shares: Shares, first: int, run: object
    ) -> Iterator[list[int]]:
        ends = np.cumsum(self._taken()).tolist()
        for step in range(first, len(ends)):
            for k in range(ends[step - 1] if step else 0, ends[step]):
                at = int(shares.micro_batch[k])
                mine = plan.rows[plan.offsets[at] : plan.offsets[at + 1]].tolist()
                if run is self._run:
                    self._next, self._loaded = step + (k + 1 == ends[step]), False
                    if shares.pad[k]:
                        self._pads.update(mine)
                        if on_several_ranks():  # the rank that the rows are of writes them
                            self._bank.ignored = self._pads
                yield mine

    def facts(self, rows: Any) -> BatchFacts:
        """Return what the loss must know of a micro-batch of this epoch.

        Parameters
        ----------
        rows : int tensor or array, shape (b,)

        Returns
        -------
        BatchFacts
        """
        given = torch.as_tensor(rows)
        at = given.cpu().numpy().astype(np.int64)
        if len(at) and (at.min() < 0 or at.max() >= self.rows):
            raise RowIdError(
                f"Facts of row {int(at[(at < 0) | (at >= self.rows)][0])} were asked for; the "
                f"sampler was made for {self.rows:,} rows, 0 to {self.rows - 1}."
            )
        here, positive = None, np.full(len(at), -1, np.int64)
        if self._labels is not None:
            here = self._labels.take(at)
            positive = sample_positives(
                here, at.astype(np.uint64), seed=self.method.seed, epoch=self.epoch
            )
        mask = mine(np.empty((len(at), 0), np.float32), here, positive, shortlist=0).mask
        weights = np.ones(len(at), np.float32)
        if self._pads:
            weights[np.isin(at, list(self._pads))] = 0
        return BatchFacts(
            torch.from_numpy(positive).to(given.device),
            false_negatives(mask, device=given.device),
            torch.from_numpy(weights).to(given.device),
        )

    def update(self, rows: Any, embeddings: Any) -> None:
        """Write embeddings into the memory bank; the last one of a row counts.

        They are taken as they are now, without a gradient, as float32; from a GPU beside its work.

        Parameters
        ----------
        rows : int tensor or array, shape (b,)
        embeddings : float tensor or array, shape (b, width)

        Raises
        ------
        SelectionError
            Where the shapes are others.
        RowIdError
            Where there is no such row.
        """
        self._bank.write(rows, embeddings)

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where the sampler stands; exact without workers, ahead of the loop with them.

        Asked between two micro-batches of a step it is that step's start. Waits for clusters that
        were begun. A collective where torch.distributed runs: every rank takes it, at the same
        step.
        """
        self._planned()
        return self._state(self._next)

    def state_after(self, step: int) -> dict[str, Any]:
        """Return the state of a training that has finished a step of the epoch; see `state_dict`.

        For a `DataLoader` with workers, which draws batches ahead.
        """
        require_int("step", step, 0)
        self._planned()
        return self._state(step + 1)

    def _identity(self) -> dict[str, Any]:
        settings = resolved(self.method)
        del settings["shortlist"]  # nothing is listed here
        checksum = None
        if self._labels is not None:
            checksum = zlib.crc32(self._labels.values.data, zlib.crc32(self._labels.offsets.data))
        return {
            "version": VERSION,
            "method": type(self.method).__name__,
            "settings": settings,
            "rows": self.rows,
            "width": self._bank.values.shape[1],
            "labels_checksum": checksum,
            "lag": self.lag,
            "micro_per_step": self._micro_per_step,
        }

    def _state(self, next_step: int) -> dict[str, Any]:
        self._bank.exchange()
        return {
            **self._identity(),
            "epoch": self.epoch,
            "next_step": next_step,
            "bank": torch.from_numpy(self._bank.values.copy()),
            "written": torch.from_numpy(np.packbits(self._bank.written)),
            **self._clusters.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a state; any rank of any number of ranks may load it.

        Raises
        ------
        ResumeMismatchError
            Where it is no state, or one of other settings, labels or dataset size.
        """
        check_settings(state, self._identity(), "sampler")
        written = np.unpackbits(state["written"].numpy(), count=self.rows).view(bool)
        self._bank.load(state["bank"].numpy().copy(), written)
        self._clusters.load(state)
        self._begin(int(state["epoch"]), int(state["next_step"]), loaded=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}


def _ids(rows: int) -> npt.NDArray[np.uint64]:
    return np.arange(rows, dtype=np.uint64)
