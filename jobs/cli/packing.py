"""The verb that packs."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as opt
from .output import human_bytes, print_json, progress_of, reporting

__all__ = ["VERBS"]


@reporting
def pack(
    dataset: opt.DatasetArgument,
    out: Annotated[str, typer.Option(help="Packed table to write: directory or URI.")],
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns to pack. [default: all]")
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Pack exactly this snapshot, or a plan's dataset."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="SNAPSHOT", help="Keep its row ids. [default: those of --out]"),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="Write an epoch's rows in the order of this plan."),
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="--order: which epoch. [default: the only one]")
    ] = None,
    scheduler: opt.Scheduler = None,
    workers: opt.Workers = None,
    memory: opt.Memory = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Decode columns once into a packed table, which any row is read from at once.

    \b
    batchloom pack data/ --columns x,y --out packed/
    batchloom pack data/ --columns x,y --out in-order/ --order plan/ --epoch 0
    """
    from ..engine import Engine, parse_bytes
    from ..packing import pack as pack_dataset

    shown = progress_of(progress, quiet)
    budget = None if memory is None else parse_bytes(memory)
    with Engine(
        scheduler=scheduler, workers=workers, memory=budget, note=shown.note, warn=shown.warn
    ) as engine:
        table = pack_dataset(
            opt.parse_dataset(dataset),
            out,
            None if columns is None else [c.strip() for c in columns.split(",") if c.strip()],
            snapshot=snapshot,
            since=since,
            order=order,
            epoch=epoch,
            engine=engine,
            progress=shown,
            storage_options=opt.parse_storage_options(storage_options),
        )
    if as_json:
        print_json(
            {
                "table_id": table.table_id,
                "path": str(table.path),
                "rows": table.rows,
                "columns": table.columns,
                "files": len(table.files),
                "bytes": table.bytes,
            }
        )
        return
    print(f"packed {table.table_id}")
    print(
        f"{table.rows:,} rows, {len(table.columns)} columns, {len(table.files)} files, "
        f"{human_bytes(table.bytes)}"
    )
    print(f"wrote {table.path}")


VERBS = (pack,)
