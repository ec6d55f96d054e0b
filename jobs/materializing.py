"""Writing a recipe's rows out: the same micro-batches in parts, for readers that want files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..dataplane.errors import ManifestError
from ..dataplane.manifest import Manifest
from ..dataplane.manifest_writer import ManifestWriter
from ..dataplane.series import Series, open_plan
from ..dataplane.targets import target_at
from .progress import LogProgress, Progress

__all__ = ["materialize"]

_ROW_BYTES = 8.3  # of a part, row ids and their blocks' frames


def materialize(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a recipe manifest out, micro-batch by micro-batch.

    The copy names the recipe in ``materialized_from``, and its loader states carry the recipe's id:
    a run may change from one to the other at any step.

    Parameters
    ----------
    path : path or URI
        A manifest with at least one recipe epoch.
    out : path or URI
        Manifest directory to make. The same copy already there is success.
    storage_options : mapping, optional
        Options of the filesystem of both, for URIs.
    progress : Progress, optional

    Returns
    -------
    Manifest

    Raises
    ------
    ManifestError
        Where there is no recipe in it, or it is a series: name a member.
    """
    progress = progress or LogProgress()
    source = open_plan(path, storage_options=storage_options)
    if isinstance(source, Series):
        raise ManifestError(f"{path} is a series of manifests; name the member to write out.")
    recipes = [source.records[e] for e in source.epochs if source.records[e].recipe is not None]
    if not recipes:
        raise ManifestError(f"{path} holds no recipe: its rows are written out already.")
    weighted = source.weight_semantics is not None
    row_bytes = _ROW_BYTES + (4.1 if weighted else 0)
    samples = sum(r.samples for r in source.records.values())
    target = target_at(out, storage_options)
    target.check_space(int(samples * row_bytes))
    with ManifestWriter(
        target,
        snapshot=source.snapshot,
        stages=source.identity["stages"],
        seed=source.seed,
        unit=source.unit,
        weight_semantics=source.weight_semantics,
        side=source.side_columns,
        parent=source.parent,
        materialized_from=source.manifest_id,
        signals=source.identity["signals"],
    ) as writer:
        for number in source.epochs:
            record = source.records[number]
            eligible = record.distinct_rows + record.dropped_rows
            with (
                writer.epoch(number, eligible_rows=eligible),
                progress.step(f"writing epoch {number}", record.samples) as step,
            ):
                for block in source.epoch(number).blocks():
                    writer.append(block)
                    step.advance(len(block.rows))
        return writer.commit(reports=source.provenance["reports"])
