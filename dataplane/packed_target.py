"""Where a packed table is committed: a directory of this machine, or a prefix of an object store.

As with manifests (`targets`), a local table is built beside its place and renamed once; on a store
files go under the names of their contents, and the header, put last and only if there is none, is
what makes them a table. A table that is extended keeps its files; its header is replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .commit import publish, replace_file, staging, sync_path, write_synced
from .errors import PackedConflictError
from .objects import probe, put, put_if_absent, refuse_no_store
from .packed import PackedTable
from .packed_header import HEADER, PackedFile, TableParts, header_bytes, table_id_of
from .storage import Location, storing

__all__ = ["commit", "place_of", "what_is_there"]

_OURS = re.compile(r"(column|pages)-[0-9a-f]{64}\.(arrow|bin)|\..+\.[0-9a-f]{12}\.tmp")


def what_is_there(
    target: Location, out: str | os.PathLike[str], options: Mapping[str, Any] | None
) -> PackedTable | None:
    """Return the table that stands in the target's place; refuse anything else there."""
    if not target.is_local:
        refuse_no_store(target)
    if target.join(HEADER).exists():
        return PackedTable.open(out, storage_options=options)
    if target.is_local:
        path = Path(os.path.realpath(target.path))
        if path.exists() and not path.is_dir():
            raise PackedConflictError(f"{path} is a file; choose another target.")
        names = [p.name for p in path.iterdir()] if path.is_dir() else []
    else:
        # What a run that was stopped has sent already is taken up again.
        names = [n for n, _ in target.entries() if not n.startswith(("column-", "pages-", "."))]
    if names:
        raise PackedConflictError(
            f"{target} holds other files and no packed table; choose another target."
        )
    return None


def place_of(target: Location, stack: ExitStack) -> Location:
    """Return where files are written to: a staging folder beside the target, or the store."""
    if target.is_local:
        return Location(str(stack.enter_context(staging(Path(os.path.realpath(target.path))))))
    probe(target)
    return target


def commit(
    parts: TableParts,
    files: Mapping[int, Sequence[PackedFile]],
    place: Location,
    target: Location,
    out: str | os.PathLike[str],
    options: Mapping[str, Any] | None,
    there: PackedTable | None,
) -> PackedTable:
    """Commit the files of all chunks, which are in `place`, under a header.

    Raises
    ------
    PackedConflictError
        Where another table was committed meanwhile.
    """
    order = {name: i for i, name in enumerate(parts.schema.names)}
    listed = [
        (chunk, file)
        for chunk in sorted(files)
        for file in sorted(files[chunk], key=lambda f: order[f.column])
    ]
    data = b"".join(f.pages for _, f in listed)
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"pages-{sha256}.bin"
    record = {"name": name, "bytes": len(data), "sha256": sha256}
    header = header_bytes(parts, listed, record)
    if place.is_local:
        folder, final = Path(place.path), Path(os.path.realpath(target.path))
        with storing("Writing the packed table's header", folder):
            write_synced(folder / name, data)
            if there is None:
                write_synced(folder / HEADER, header)
        if there is not None:
            _extend(folder, final, header, {f.name for _, f in listed} | {name}, there)
        elif not publish(folder, final):
            return _won_by_another(parts, out, options)
    else:
        put_if_absent(target.join(name), data)
        if there is not None:
            put(target.join(HEADER), header)
        elif not put_if_absent(target.join(HEADER), header):
            return _won_by_another(parts, out, options)
    return PackedTable.open(out, storage_options=options)


def _extend(folder: Path, final: Path, header: bytes, names: set[str], there: PackedTable) -> None:
    """Move new files into a table's folder, then replace its header.

    Then files go that neither the old header nor the new one names: an extension that was killed
    left them. Those of the old one stay, for processes that have it open.
    """
    with storing("Extending the packed table", final):
        for file in sorted(folder.iterdir()):
            if not file.name.startswith("."):
                file.replace(final / file.name)
        sync_path(final)
        replace_file(final / HEADER, header)
        kept = names | {f.name for _, f in there.files} | {there.pages_name}
        for file in final.iterdir():
            if _OURS.fullmatch(file.name) and file.name not in kept:
                file.unlink(missing_ok=True)


def _won_by_another(
    parts: TableParts, out: str | os.PathLike[str], options: Mapping[str, Any] | None
) -> PackedTable:
    """Return the table that somebody else has committed meanwhile, where it is the same."""
    there = PackedTable.open(out, storage_options=options)
    if there.table_id != table_id_of(parts):
        raise PackedConflictError(
            f"{out}: another packed table was committed there meanwhile. Choose another target."
        )
    return there
