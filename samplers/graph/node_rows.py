"""Which nodes a plan's rows are.

The rows of one source of the planned dataset are the nodes of one kind, in the order of their row
ids: node k is the source's k-th row. Where the dataset has no gaps that is the row id less the
source's first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import DatasetChangedError, ParameterError, SelectionError, nearest
from ...dataplane.manifest import Manifest
from ...dataplane.snapshot import Snapshot

__all__ = ["Nodes", "of_source"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_MARKER = re.compile(r"(?:^|/)graph-([0-9a-f]{16,})\.arrow$")
"""The file without rows by which a graph's folder tells its fingerprint; see `graph_header`."""


def of_source(snapshot: Snapshot, source: str | None) -> Snapshot:
    """Return the fragments of one source; of all where None.

    Raises
    ------
    ParameterError
        Where there is no such source, or None was given and there are several.
    """
    names = sorted({f.source for f in snapshot.fragments})
    if source is None:
        if len(names) > 1:
            raise ParameterError(
                f"The dataset has several sources, {', '.join(names)}: name the one whose rows are "
                "the nodes."
            )
        return snapshot
    if source not in names:
        raise ParameterError(
            f"The dataset has no source '{source}'; it has: {', '.join(names)}."
            f"{nearest(source, names)}"
        )
    own = tuple(f for f in snapshot.fragments if f.source == source)
    return Snapshot(own, snapshot.next_row_id, snapshot.schema_digest)


class Nodes:
    """The nodes that manifests planned; each manifest is checked when it is first seen.

    Parameters
    ----------
    num_nodes : mapping of str → int, or int
        Of each kind, or of a graph of one kind.
    kind : str, optional
        Of the planned nodes, where it is not the name of the dataset's source.
    fingerprint : str, optional
        Of the graph.
    """

    def __init__(
        self, num_nodes: Mapping[str, int] | int, kind: str | None, fingerprint: str | None
    ) -> None:
        self._num_nodes, self._fingerprint = num_nodes, fingerprint
        if kind is not None and isinstance(num_nodes, Mapping) and kind not in num_nodes:
            raise ParameterError(
                f"The graph has no nodes of kind '{kind}'; it has: {', '.join(num_nodes)}."
                f"{nearest(kind, num_nodes)}"
            )
        self.kind: str | None = kind if isinstance(num_nodes, Mapping) else None
        self._given = kind
        self._of: dict[str, Snapshot] = {}

    def bind(self, manifest: Manifest) -> None:
        """Check that a manifest plans nodes of this graph.

        Raises
        ------
        DatasetChangedError
            Where it was planned for another graph.
        SelectionError
            Where its rows are not the nodes of one kind.
        """
        if manifest.manifest_id in self._of:
            return
        planned = graph_of(manifest.snapshot)
        if None not in (planned, self._fingerprint) and planned != self._fingerprint:
            raise DatasetChangedError(
                f"The plan {manifest.path} was made for another graph: expected fingerprint "
                f"{planned}, found {self._fingerprint}. Open the graph that was planned, or plan "
                "this one."
            )
        source = self._source(manifest)
        own = of_source(manifest.snapshot, source)
        sizes: Any = self._num_nodes
        count = sizes if self.kind is None else sizes[self.kind]
        if own.rows != count:
            kind = "" if self.kind is None else f" of kind '{self.kind}'"
            raise SelectionError(
                f"The plan {manifest.path} is of a dataset of {own.rows:,} rows, and the graph has "
                f"{count:,} nodes{kind}: the rows must be the nodes, in the order of their ids. "
                "Plan the dataset that the graph was made of."
            )
        self._of[manifest.manifest_id] = own

    def of(self, manifest: Manifest, rows: U64) -> I64:
        """Return the nodes that rows are."""
        self.bind(manifest)
        nodes: I64 = self._of[manifest.manifest_id].positions(rows)
        return nodes

    def _source(self, manifest: Manifest) -> str:
        """Return the source of the planned rows; sets the kind of nodes where it is not known."""
        fragments = manifest.snapshot.fragments
        planned = sorted({fragments[i].source for i in manifest.planned_fragments()})
        if len(planned) > 1:
            raise SelectionError(
                f"The plan {manifest.path} is of several kinds of nodes, {', '.join(planned)}, and "
                "a batch has seeds of one. Plan one of them."
            )
        source = planned[0] if planned else fragments[0].source
        if not isinstance(self._num_nodes, Mapping):
            return source
        known: Any = self._given
        if source in self._num_nodes:
            if known not in (None, source):
                raise SelectionError(
                    f"The plan {manifest.path} is of nodes of kind '{source}'; expected '{known}'."
                )
            known = source
        if known is None:
            raise ParameterError(
                f"The plan {manifest.path} is of a source '{source}', and the graph's nodes are of "
                f"the kinds {', '.join(self._num_nodes)}: say which of them they are, with kind=…"
            )
        if self.kind not in (None, known):
            raise SelectionError(
                f"The plan {manifest.path} is of nodes of kind '{known}', and others of "
                f"'{self.kind}'. Load the kinds one by one."
            )
        self.kind = known
        return source


def graph_of(snapshot: Snapshot) -> str | None:
    """Return the fingerprint of the graph that a snapshot is of, where it is of one."""
    for fragment in snapshot.fragments:
        if not fragment.rows and (found := _MARKER.search(fragment.path)):
            return found[1]
    return None
