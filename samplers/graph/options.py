"""What a sampler may be told, checked in one place."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy.typing as npt
from pydantic import Field

from ...dataplane.errors import ParameterError
from ...dataplane.parameters import parameters
from .draws import Drawn
from .keys import PlannedBatches
from .sampling import MAX_EDGES, TABLE_BYTES, Subgraph

__all__ = ["Backend", "Bar", "SamplerOptions", "TemporalStrategy", "planned_batches", "word_of"]

TemporalStrategy = Literal["uniform", "last"]
Bar = Literal["none", "forward", "both"]
Backend = Literal["numba", "pyg-lib"]


@parameters
class SamplerOptions:
    """Options of a sampler; see `sampler.NeighborSampler`."""

    method: ClassVar[str] = "NeighborSampler"

    seed: Annotated[int, Field(ge=0, lt=2**64, description="of the draws")] = 0
    replace: Annotated[bool, Field(description="take an edge more than once")] = False
    disjoint: Annotated[bool, Field(description="a subgraph for each seed")] = False
    subgraph_type: Annotated[Subgraph, Field(description="which edges are returned")] = (
        "directional"
    )
    draws: Annotated[Drawn, Field(description="how edges are drawn")] = "uniform"
    temporal_strategy: Annotated[TemporalStrategy, Field(description="of those in time")] = (
        "uniform"
    )
    exclude_seed_edges: Annotated[Bar, Field(description="edges that are left out")] = "none"
    true_negatives: Annotated[bool, Field(description="negatives that are no edges")] = False
    max_edges_per_batch: Annotated[
        int, Field(ge=1, lt=2**31, description="edges of a batch; local numbers have 32 bits")
    ] = MAX_EDGES
    table_bytes: Annotated[int, Field(ge=0, description="of a table of nodes")] = TABLE_BYTES
    backend: Annotated[Backend, Field(description="whose kernels sample")] = "numba"

    def check(self, *, weighted: bool, temporal: bool) -> None:
        """Raise `ParameterError` where options exclude each other."""
        if self.draws == "labor":
            for name, given in (
                ("replace", self.replace),
                ("disjoint", self.disjoint),
                ("weights", weighted),
                ("times", temporal),
            ):
                if given:
                    raise ParameterError(
                        f"draws='labor' cannot go with {name}: it lets the seeds of a batch share "
                        "equally likely edges, each at most once. Use draws='uniform'."
                    )
        if self.temporal_strategy == "last" and not temporal:
            raise ParameterError(
                "temporal_strategy='last' takes the latest edges: give node_time or edge_time."
            )
        if self.temporal_strategy == "last" and weighted:
            raise ParameterError(
                "temporal_strategy='last' takes the latest edges, whatever their weights: leave "
                "the weights out, or use 'uniform'."
            )
        if self.backend == "pyg-lib":
            for lacking, given in (
                ("draws='labor'", self.draws == "labor"),
                ("subgraph_type='induced'", self.subgraph_type == "induced"),
                ("exclude_seed_edges", self.exclude_seed_edges != "none"),
                ("weights together with times", weighted and temporal),
            ):
                if given:
                    raise ParameterError(f"pyg-lib has no {lacking}: use backend='numba'.")


def planned_batches(offsets: npt.ArrayLike | PlannedBatches | None) -> PlannedBatches | None:
    """Return the batches of a plan, however they were given."""
    if offsets is None or isinstance(offsets, PlannedBatches):
        return offsets
    given: Any = offsets
    return PlannedBatches.of_offsets(given)


def word_of(choice: Any) -> Any:
    """Return the word of an enum's member, such as PyG's ``SubgraphType``."""
    return getattr(choice, "value", choice)
