"""Exporting a plan to what other libraries take: a directory of files, whole or not at all.

``export.json`` says what the files are: the manifest of each epoch, the form with its parameters,
and bytes and SHA-256 of every file. `export_forms` has the forms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..dataplane.canonical import file_sha256, pretty_json
from ..dataplane.commit import publish, staging, sync_path, write_synced
from ..dataplane.errors import ManifestConflictError, ManifestError, ParameterError, nearest
from ..dataplane.manifest import Manifest
from ..dataplane.parameters import resolved
from ..dataplane.series import Plan, open_plan
from ..dataplane.storage import locate, storing
from .export_forms import FORMS, Advance, Form, PlannedEpoch
from .progress import LogProgress, Progress
from .spec import parse_epochs

__all__ = ["INDEX", "Exported", "ExportedFile", "export"]

INDEX = "export.json"
_FORMAT = "batchloom-export/1"


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : Path
    to : str
    parameters : dict
        Of the form, resolved.
    epochs : dict of int → str
        Manifest id of each epoch.
    rows : int
        Over all epochs, with repeats.
    files : tuple of ExportedFile
    """

    path: Path
    to: str
    parameters: dict[str, Any]
    epochs: dict[int, str]
    rows: int
    files: tuple[ExportedFile, ...]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), **self.header()}

    def header(self) -> dict[str, Any]:
        """Return what ``export.json`` holds."""
        epochs = [{"epoch": e, "manifest_id": i} for e, i in self.epochs.items()]
        return {
            "format": _FORMAT,
            "to": self.to,
            "parameters": self.parameters,
            "epochs": epochs,
            "rows": self.rows,
            "files": [asdict(f) for f in self.files],
        }


def export(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    to: str,
    epochs: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **parameters: Any,
) -> Exported:
    """Write a plan in the form that another library takes.

    Parameters
    ----------
    path : path or URI
        A manifest or series.
    out : path
        Local directory to make. The same export already there is success.
    to : {'indices', 'parquet', 'mosaicml'}
        See `export_forms`.
    epochs : (int, int) or str, optional
        Half-open range, such as ``"0:3"``; all that the plan holds when None.
    storage_options : mapping, optional
        Options of the plan's filesystem, for a URI.
    progress : Progress, optional
    **parameters
        Of the form: ``index`` (``'position'`` or ``'row_id'``), and for ``'mosaicml'``
        ``world_size`` and ``workers``.

    Returns
    -------
    Exported

    Raises
    ------
    ManifestError
        Where the plan cannot be said in this form, before anything is written.
    ManifestConflictError
        Where `out` holds something else.
    ParameterError, StorageError, WorldSizeError
    """
    form, progress = _form(to, parameters), progress or LogProgress()
    target = _target(out)
    opened = open_plan(path, storage_options=storage_options)
    numbers = _epochs(opened, epochs)
    members = {number: opened.manifest_for(number) for number in numbers}
    lost: dict[str, None] = {}
    for number, manifest in members.items():
        planned = _planned(manifest, number, lambda rows: None)
        form.check(planned)
        if said := form.loses(planned):
            lost.setdefault(said)
    rows = sum(m.records[number].samples for number, m in members.items())
    with staging(target) as folder, storing("Writing the export", target):
        with progress.step("exporting", rows) as step:
            for number, manifest in members.items():
                form.write(_planned(manifest, number, step.advance), folder)
        made = Exported(
            path=target,
            to=to,
            parameters=resolved(form),
            epochs={number: manifest.manifest_id for number, manifest in members.items()},
            rows=rows,
            files=tuple(_sealed(file) for file in sorted(folder.iterdir())),
        )
        write_synced(folder / INDEX, pretty_json(made.header()))
        if not publish(folder, target) and not _same(target, folder):
            raise _taken(target)
    for said in list(lost)[:1]:
        progress.warn(said)
    return made


def _form(to: str, parameters: Mapping[str, Any]) -> Form:
    if to == "webdataset":
        raise ManifestError(
            "WebDataset reads tar files from front to back and takes no order of rows, so no plan "
            "can be said to it. Export --to indices and write the tar files in that order, or "
            "train with ManifestLoader."
        )
    if to not in FORMS:
        known = ", ".join(repr(name) for name in FORMS)
        raise ParameterError(
            f"The 'to' parameter of export must be one of {known}. Got {to!r} instead."
            f"{nearest(str(to), FORMS)}"
        )
    made: Form = FORMS[to](**parameters)
    return made


def _target(out: str | os.PathLike[str]) -> Path:
    place = locate(out)
    if not place.is_local:
        raise ParameterError(
            f"The 'out' parameter of export must be a local directory. Got {os.fspath(out)!r} "
            "instead: export to a directory, and copy it there."
        )
    target = Path(os.path.realpath(place.path))
    with storing("Looking at the target", target):
        empty = target.is_dir() and not any(target.iterdir())
        if target.exists() and not empty and not (target / INDEX).exists():
            raise _taken(target)
    return target


def _taken(target: Path) -> ManifestConflictError:
    return ManifestConflictError(
        f"{target} is there already and is not this export; choose another target, or remove it."
    )


def _epochs(plan: Plan, wanted: Any) -> tuple[int, ...]:
    if wanted is None:
        return plan.epochs
    numbers = tuple(range(*parse_epochs(wanted)))
    missing = [number for number in numbers if number not in plan.epochs]
    if missing:
        held = ", ".join(map(str, plan.epochs))
        raise ManifestError(f"{plan.path} holds no epoch {missing[0]}; it holds {held}.")
    return numbers


def _planned(manifest: Manifest, number: int, advance: Callable[[int], None]) -> PlannedEpoch:
    told: Advance = advance
    return PlannedEpoch(manifest, manifest.records[number], told)


def _sealed(file: Path) -> ExportedFile:
    sync_path(file)
    with open(file, "rb") as opened:
        return ExportedFile(file.name, file.stat().st_size, file_sha256(opened))


def _same(target: Path, folder: Path) -> bool:
    """Whether the directory that is there holds this export."""
    with suppress(OSError):
        names = sorted(entry.name for entry in folder.iterdir())
        if sorted(entry.name for entry in target.iterdir()) == names:
            return (target / INDEX).read_bytes() == (folder / INDEX).read_bytes()
    return False
