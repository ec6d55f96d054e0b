"""Series: a directory of manifests that continue one another.

A member is a manifest in ``epochs-000003-000004`` (0-based, half-open). Its parent is the member
that ends at its first epoch. Methods that plan an epoch from what the last one taught add a member
a call; a loader reads the series as one plan.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .dataset import Dataset, DatasetLike
from .epochs import Epoch
from .errors import ManifestError, SelectionError
from .manifest import HEADER, Manifest

__all__ = ["Plan", "Series", "member_name", "open_plan"]

_MEMBER = re.compile(r"epochs-(\d{6,})-(\d{6,})")


def member_name(start: int, stop: int) -> str:
    """Return the name of the member that holds epochs `start` to `stop`."""
    return f"epochs-{start:06d}-{stop:06d}"


class Series:
    """The manifests of a series, opened as they are asked for.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._members: dict[tuple[int, int], Manifest] = {}
        self._checked: set[tuple[int, int]] = set()
        self.refresh()

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: Literal["header", "all"] = "header"
    ) -> Series:
        """Open a series that has at least one member."""
        series = cls(path)
        if not series.ranges:
            raise ManifestError(f"{path} is not a series: it holds no epochs-… member.")
        if verify == "all":
            series.verify()
        return series

    def refresh(self) -> None:
        """Look for members that were added."""
        found = []
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            match = _MEMBER.fullmatch(entry.name)
            if match and (entry / HEADER).exists():
                if int(match[1]) >= int(match[2]):
                    raise ManifestError(f"{entry} is named by no range of epochs; rename it.")
                found.append((int(match[1]), int(match[2])))
        self.ranges: list[tuple[int, int]] = sorted(found)
        for before, after in zip(self.ranges, self.ranges[1:], strict=False):
            if after[0] < before[1]:
                raise ManifestError(
                    f"{self.path}: {member_name(*before)} and {member_name(*after)} overlap; "
                    "remove one of them."
                )

    def member(self, start: int, stop: int) -> Manifest:
        """Return one member, checked against its name and the member before it."""
        manifest = self._opened(start, stop)
        if (start, stop) not in self._checked:
            if manifest.epochs != tuple(range(start, stop)):
                held = ", ".join(map(str, manifest.epochs))
                raise ManifestError(
                    f"{manifest.path} is named for epochs {start} to {stop - 1}, but holds {held}. "
                    "Rename it."
                )
            before = self._before(start)
            if before is not None and manifest.parent != before.manifest_id:
                raise ManifestError(
                    f"{manifest.path} does not continue {before.path.name}: expected parent "
                    f"{before.manifest_id}, found {manifest.parent}. Plan that epoch again."
                )
            self._checked.add((start, stop))
        return manifest

    def _opened(self, start: int, stop: int) -> Manifest:
        """Open a member once, whatever it continues: a check does not walk the whole chain."""
        if (start, stop) not in self._members:
            manifest = Manifest.open(self.path / member_name(start, stop))
            self._members[start, stop] = manifest
        return self._members[start, stop]

    def _before(self, start: int) -> Manifest | None:
        """Return the member that ends where another starts."""
        found = next((r for r in self.ranges if r[1] == start), None)
        return None if found is None else self._opened(*found)

    @property
    def members(self) -> list[Manifest]:
        return [self.member(*r) for r in self.ranges]

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(e for r in self.ranges for e in range(*r))

    def manifest_for(self, epoch: int) -> Manifest:
        """Return the member that holds an epoch."""
        for start, stop in self.ranges:
            if start <= epoch < stop:
                return self.member(start, stop)
        held = ", ".join(map(str, self.epochs))
        raise ManifestError(f"{self.path} holds no epoch {epoch}; it holds {held}.")

    def epoch(self, number: int) -> Epoch:
        """Return one epoch's micro-batches."""
        return self.manifest_for(number).epoch(number)

    def open_dataset(
        self, data: DatasetLike, *, storage_options: Mapping[str, Any] | None = None
    ) -> Dataset:
        """Open the dataset as the newest member planned it."""
        return self.member(*self.ranges[-1]).open_dataset(data, storage_options=storage_options)

    def verify(self, *, deep: bool = False) -> None:
        """Verify every member."""
        for manifest in self.members:
            manifest.verify(deep=deep)

    def next_member(self, start: int, stop: int) -> tuple[Path, str | None]:
        """Return (directory, parent id) for new epochs; they must not overlap what is there."""
        for a, b in self.ranges:
            if (a, b) != (start, stop) and start < b and a < stop:
                raise SelectionError(
                    f"{self.path} holds epochs {a}:{b} already; epochs {start}:{stop} overlap them."
                )
        before = self._before(start)
        parent = None if before is None else before.manifest_id
        return self.path / member_name(start, stop), parent


Plan: TypeAlias = "Manifest | Series"


def open_plan(
    path: str | os.PathLike[str] | Manifest | Series,
    *,
    verify: Literal["header", "all"] = "header",
) -> Plan:
    """Open a manifest or a series of them."""
    if isinstance(path, Manifest | Series):
        return path
    folder = Path(path)
    if not (folder / HEADER).exists() and any(folder.glob("epochs-*")):
        return Series.open(folder, verify=verify)
    return Manifest.open(folder, verify=verify)
