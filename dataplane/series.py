"""Series: a directory of manifests that continue one another.

A member is a manifest in ``epochs-000003-000004`` (0-based, half-open). Its parent is the member
that ends at its first epoch. Methods that plan an epoch from what the last one taught add a member
a call; a loader reads the series as one plan.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .dataset import Dataset, DatasetLike
from .epochs import Epoch
from .errors import ManifestError, SelectionError
from .manifest import HEADER, Manifest
from .remote_wire import is_run_address
from .storage import locate

__all__ = ["Plan", "Series", "member_name", "open_plan"]

_MEMBER = re.compile(r"epochs-(\d{6,})-(\d{6,})")


def member_name(start: int, stop: int) -> str:
    """Return the name of the member that holds epochs `start` to `stop`."""
    return f"epochs-{start:06d}-{stop:06d}"


class Series:
    """The manifests of a series, opened as they are asked for.

    Attributes
    ----------
    path : Path or str
        As it was opened; the text of a URI.
    location : Location
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.location = locate(path, storage_options)
        self.path = self.location.as_named(path)
        self._whole: set[str] = set()  # names of members that have their header
        self._members: dict[tuple[int, int], Manifest] = {}
        self._checked: set[tuple[int, int]] = set()
        self.refresh()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: Literal["header", "all"] = "header",
        storage_options: Mapping[str, Any] | None = None,
    ) -> Series:
        """Open a series that has at least one member."""
        series = cls(path, storage_options=storage_options)
        if not series.ranges:
            raise ManifestError(f"{path} is not a series: it holds no epochs-… member.")
        if verify == "all":
            series.verify()
        return series

    def refresh(self) -> None:
        """Look for members that were added."""
        found = []
        for name, _ in self.location.entries():
            match = _MEMBER.fullmatch(name)
            if match and self._has_header(name):
                if int(match[1]) >= int(match[2]):
                    place = self.location.join(name)
                    raise ManifestError(f"{place} is named by no range of epochs; rename it.")
                found.append((int(match[1]), int(match[2])))
        self.ranges: list[tuple[int, int]] = sorted(found)
        for before, after in zip(self.ranges, self.ranges[1:], strict=False):
            if after[0] < before[1]:
                raise ManifestError(
                    f"{self.path}: {member_name(*before)} and {member_name(*after)} overlap; "
                    "remove one of them."
                )

    def look_for(self, epoch: int, seconds: float = 1.0) -> None:
        """Look for the member that holds an epoch; where a service tells, wait for it a little."""
        self.refresh()

    def tell(self, note: Callable[[], dict[str, Any]], *, last: bool = False) -> None:
        """Say where a rank stands to whoever listens: a service does, files do not."""

    def _has_header(self, name: str) -> bool:
        """Whether a member is committed; a store is not asked twice of one that is."""
        if self.location.is_local or name not in self._whole:
            if not self.location.join(name).join(HEADER).exists():
                return False
            self._whole.add(name)
        return True

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
                    f"{manifest.path} does not continue {before.location.name}: expected parent "
                    f"{before.manifest_id}, found {manifest.parent}. Plan that epoch again."
                )
            self._checked.add((start, stop))
        return manifest

    def _opened(self, start: int, stop: int) -> Manifest:
        """Open a member once, whatever it continues: a check does not walk the whole chain."""
        if (start, stop) not in self._members:
            place = self._place(member_name(start, stop))
            manifest = Manifest.open(place, storage_options=self.location.options)
            self._members[start, stop] = manifest
        return self._members[start, stop]

    def _place(self, name: str) -> Path | str:
        return self.path / name if isinstance(self.path, Path) else self.location.join(name).path

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

    def next_member(self, start: int, stop: int) -> tuple[Path | str, str | None]:
        """Return (path or URI, parent id) for new epochs; they must not overlap what is there."""
        for a, b in self.ranges:
            if (a, b) != (start, stop) and start < b and a < stop:
                raise SelectionError(
                    f"{self.path} holds epochs {a}:{b} already; epochs {start}:{stop} overlap them."
                )
        before = self._before(start)
        parent = None if before is None else before.manifest_id
        return self._place(member_name(start, stop)), parent


Plan: TypeAlias = "Manifest | Series"


def open_plan(
    path: str | os.PathLike[str] | Manifest | Series,
    *,
    verify: Literal["header", "all"] = "header",
    storage_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Open a manifest or a series of them, by path or URI; or a run of a service, by address."""
    if isinstance(path, Manifest | Series):
        return path
    if is_run_address(path):
        from .remote import open_remote

        return open_remote(str(path), verify=verify, storage_options=storage_options)
    folder = locate(path, storage_options)
    if not folder.join(HEADER).exists() and any(
        name.startswith("epochs-") for name, _ in folder.entries()
    ):
        return Series.open(path, verify=verify, storage_options=storage_options)
    return Manifest.open(path, verify=verify, storage_options=storage_options)
