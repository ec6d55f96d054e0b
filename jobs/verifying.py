"""Verifying a manifest: its bytes, what they say, and the dataset that it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dataplane.dataset import DatasetLike, open_dataset
from ..dataplane.deep_hashes import content_sha256
from ..dataplane.epoch_count import recount
from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import DatasetChangedError, DatasetError
from ..dataplane.manifest import Manifest
from ..dataplane.packed import PackedTable
from ..dataplane.packed_header import HEADER
from ..dataplane.series import Series, open_plan
from ..dataplane.snapshot import find_deep_hashes
from ..dataplane.storage import locate
from .progress import Progress, QuietProgress

__all__ = ["Verified", "is_packed", "verify", "verify_packed"]


@dataclass(frozen=True)
class Verified:
    """What was checked and found whole.

    Attributes
    ----------
    manifest_id : str
        Of the last member, for a series.
    manifests, parts, blocks, bytes : int
    epochs, samples : int
    recounted : tuple of EpochRecord
        With `deep`: each epoch as counted again from its blocks, equal to what the identity says.
        A recipe's logical digest, which its identity leaves out, is computed here.
    fragments : int
        Fragments of the dataset whose fingerprint was compared.
    contents : int
        Fragments whose bytes were hashed.
    unplanned : int
        Files of the dataset that the plan does not know.
    """

    manifest_id: str
    manifests: int
    parts: int
    blocks: int
    bytes: int
    epochs: int
    samples: int
    recounted: tuple[EpochRecord, ...] = ()
    fragments: int = 0
    contents: int = 0
    unplanned: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "recounted": [record.to_json() for record in self.recounted]}


def verify(
    path: str | os.PathLike[str],
    data: DatasetLike | None = None,
    *,
    deep: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Check a manifest or series.

    Parameters
    ----------
    path : path or URI
    data : path, URI, list or mapping, optional
        Compare the fragments that hold planned rows, too.
    deep : bool
        Count again what the blocks hold (steps, rows, coverage, weights, digests) and compare it
        with the identity; with `data`, hash the fragments' bytes and compare them with the content
        hashes that were made with the plan.
    storage_options : mapping, optional
        Options of the filesystem of both, for URIs.
    progress : Progress, optional

    Raises
    ------
    BatchloomError
        At the first thing that is not as it should be.
    """
    opened = open_plan(path, storage_options=storage_options)
    manifests = opened.members if isinstance(opened, Series) else [opened]
    recounted: list[EpochRecord] = []
    for manifest in manifests:
        manifest.verify()
        if deep:
            recounted += _recount(manifest, progress or QuietProgress())
    fragments = contents = unplanned = 0
    if data is not None:
        for manifest in manifests:
            dataset = manifest.open_dataset(data, storage_options=storage_options)
            fragments, unplanned = len(manifest.planned_fragments()), dataset.unplanned
            if deep:
                contents = _compare_contents(manifest, dataset)
    parts = [p for m in manifests for p in m.parts]
    return Verified(
        manifest_id=manifests[-1].manifest_id,
        manifests=len(manifests),
        parts=len(parts),
        blocks=sum(len(p.blocks) for p in parts),
        bytes=sum(m.bytes for m in manifests),
        epochs=sum(len(m.epochs) for m in manifests),
        samples=sum(r.samples for m in manifests for r in m.records.values()),
        recounted=tuple(recounted),
        fragments=fragments,
        contents=contents,
        unplanned=unplanned,
    )


def _recount(manifest: Manifest, progress: Progress) -> list[EpochRecord]:
    rows = sum(r.samples for r in manifest.records.values())
    with progress.step(f"counting {manifest.location.name}", rows) as step:
        return recount(manifest, step.advance)


def _compare_contents(manifest: Manifest, dataset: Any) -> int:
    hashes = find_deep_hashes(manifest.location)
    if hashes is None:
        raise DatasetError(
            f"{manifest.path} holds no content hashes to compare with; they are made by "
            "planning with --deep."
        )
    planned = manifest.planned_fragments()
    for index in planned:
        fragment, ref = manifest.snapshot.fragments[index], dataset.refs[index]
        found = content_sha256(ref.location)
        expected = hashes.get(fragment.label)
        if found != expected:
            raise DatasetChangedError(
                f"The bytes of fragment '{fragment.path}' of source '{fragment.source}' changed "
                f"under an unchanged footer: expected SHA-256 {expected}, found {found}. "
                "Restore the file from its source."
            )
    return len(planned)


def is_packed(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> bool:
    """Whether a packed table is at a path or URI."""
    return locate(path, storage_options).join(HEADER).exists()


def verify_packed(
    path: str | os.PathLike[str],
    data: DatasetLike | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> PackedTable:
    """Check every byte of a packed table; with `data`, that the packed fragments are as they were.

    Raises
    ------
    PackedCorruptError, DatasetChangedError
    """
    table = PackedTable.open(path, verify="all", storage_options=storage_options)
    if data is not None:
        open_dataset(
            data,
            snapshot=table.snapshot,
            needed=table.parts.fragments,
            storage_options=storage_options,
        )
    return table
