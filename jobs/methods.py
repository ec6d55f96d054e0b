"""The registry of methods: every stage that a plan can be made of, by name.

Adding a method is one file with a stage class (see `stages`) and one line here, or, from outside,
one call of `register` before `plan` or `run`. Classes are imported when they are used, so that the
command line's help stays fast; that is why their kind and a summary stand here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..dataplane.errors import JobSpecError, ParameterError, nearest

if TYPE_CHECKING:
    from .stages import Stage, StageKind

__all__ = ["METHODS", "Method", "make_stage", "register", "stage_of"]


@dataclass(frozen=True)
class Method:
    """A registered stage.

    Attributes
    ----------
    name : str
    kind : {'select', 'group', 'batch', 'reduce'}
    summary : str
    place : str or class
        ``module:Class`` in this room, or a class that was registered.
    verb : bool
        Whether ``batchloom plan NAME`` makes a plan of it alone.
    """

    name: str
    kind: StageKind
    summary: str
    place: str | type[Stage]
    verb: bool = False

    def load(self) -> type[Stage]:
        """Import the stage's class."""
        if not isinstance(self.place, str):
            return self.place
        module, name = self.place.split(":")
        stage: type[Stage] = getattr(import_module(f".{module}", __package__), name)
        return stage


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "shuffle", "batch", "uniform or stratified micro-batches", "shuffle:Shuffle", verb=True
        ),
        Method(
            "kmeans",
            "group",
            "k-means: batches within or across clusters",
            "kmeans:KMeansGroup",
            verb=True,
        ),
        Method(
            "balanced",
            "group",
            "balanced k-means: clusters of equal sizes; for batches of whole clusters",
            "balanced:BalancedGroup",
            verb=True,
        ),
        Method(
            "ppp",
            "group",
            "PPP: clusters whose number is found; none where no valleys lie between them",
            "ppp:PPPGroup",
            verb=True,
        ),
        Method(
            "groups",
            "group",
            "groups that a column names: batches within or across them, or of whole ones",
            "groups:ColumnGroups",
            verb=True,
        ),
        Method("within", "batch", "micro-batches of one group each", "cluster_batches:Within"),
        Method("across", "batch", "micro-batches of all groups", "cluster_batches:Across"),
        Method("aligned", "batch", "micro-batches of whole groups", "cluster_batches:Aligned"),
        Method(
            "ngame",
            "batch",
            "NGAME: micro-batches of whole clusters, so that each row meets hard negatives",
            "ngame:NGAMEBatches",
            verb=True,
        ),
        Method("where", "select", "rows for which an expression is true", "where:Where"),
        Method("keep", "select", "rows whose key is in a file", "keys:Keep"),
        Method("drop", "select", "rows whose key is not in a file", "keys:Drop"),
        Method("split", "select", "one named share of the rows", "split:Split"),
        Method(
            "seta", "select", "SeTa: a window over groups of loss", "seta:SeTaSelect", verb=True
        ),
        Method(
            "infobatch",
            "select",
            "InfoBatch: fewer of the easy rows, weighed up",
            "infobatch:InfoBatchSelect",
            verb=True,
        ),
        Method(
            "importance",
            "select",
            "rows drawn the more often, the larger their loss",
            "importance:ImportanceSelect",
            verb=True,
        ),
        Method(
            "random", "select", "a random share of the rows", "random_share:RandomSelect", verb=True
        ),
        Method(
            "prototypes",
            "select",
            "rows far from their cluster's centre, or near: to prune abundant, or scarce, data",
            "prototypes:PrototypeSelect",
            verb=True,
        ),
        Method(
            "near-duplicates",
            "select",
            "SemDeDup: one of each set of near-duplicates; for web-scale, repetitive data",
            "near_duplicates:NearDuplicateSelect",
            verb=True,
        ),
        Method(
            "hard-batches",
            "reduce",
            "the micro-batches, or rows, of the highest loss",
            "hard_batches:HardBatchReduce",
            verb=True,
        ),
        Method(
            "colm",
            "reduce",
            "CoLM: small sources whole, of the others rows that stand for them; for mixtures",
            "colm:CoLMReduce",
            verb=True,
        ),
        Method(
            "craig",
            "reduce",
            "CRAIG: of each class weighted rows that stand for it; for redundant labelled data",
            "craig:CRAIGReduce",
            verb=True,
        ),
        Method(
            "gradmatch",
            "reduce",
            "GradMatch: weighted rows that add up to the batch's gradient; for exact gradients",
            "gradmatch:GradMatchReduce",
            verb=True,
        ),
        Method(
            "k-center",
            "reduce",
            "k-centre greedy: rows that leave none far from all; for coverage of clean data",
            "k_center:KCenterReduce",
            verb=True,
        ),
        Method(
            "keep-small",
            "reduce",
            "small sources whole, the others at random: most of CoLM's gain, without features",
            "random_rows:KeepSmallReduce",
            verb=True,
        ),
        Method(
            "random-rows",
            "reduce",
            "random rows of each batch: the baseline of every choice of small batches",
            "random_rows:RandomRowsReduce",
            verb=True,
        ),
    )
}


def register(stage: type[Stage]) -> type[Stage]:
    """Add a stage class of your own; usable as a decorator."""
    METHODS[stage.method] = Method(stage.method, stage.kind, stage.summary, stage)
    return stage


def find_method(name: str) -> Method:
    """Return a method by name; an error with the nearest one where there is none."""
    if name not in METHODS:
        raise JobSpecError(
            f"There is no method '{name}'.{nearest(name, METHODS)} "
            f"Methods: {', '.join(sorted(METHODS))}."
        )
    return METHODS[name]


def make_stage(name: str, parameters: dict[str, Any]) -> Stage:
    """Make a stage of its parameters."""
    try:
        return find_method(name).load()(**parameters)
    except ParameterError as error:
        raise JobSpecError(str(error)) from None


def stage_of(table: Mapping[str, Any]) -> Stage:
    """Make a stage of a job's table: its method, and the method's parameters."""
    return make_stage(str(table["method"]), {k: v for k, v in table.items() if k != "method"})
