"""The verb that hands a plan to other libraries: export."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from . import options as opt
from .output import human_bytes, print_json, print_table, progress_of, reporting

__all__ = ["VERBS"]


class Index(StrEnum):
    """What stands for a row."""

    position = "position"
    row_id = "row_id"


@reporting
def export(
    manifest: opt.ManifestArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="indices, parquet or mosaicml.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Directory to make.")],
    epochs: Annotated[
        str | None, typer.Option(metavar="A:B", help="Epochs, half-open. [default: all]")
    ] = None,
    index: Annotated[
        Index, typer.Option(help="What stands for a row: its place in the files, or its id.")
    ] = Index.position,
    world_size: Annotated[
        int | None, typer.Option(help="--to mosaicml: ranks that train. [default: 1]")
    ] = None,
    dataloader_workers: Annotated[
        int | None, typer.Option(help="--to mosaicml: DataLoader workers a rank. [default: 1]")
    ] = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Write a plan as other libraries take it: index lists, a Parquet table, a streaming order.

    \b
    batchloom export plan/ --to indices --out indices/     torch's Subset, Dataset.select
    batchloom export plan/ --to parquet --out table/       SQL, pandas, Spark
    batchloom export plan/ --to mosaicml --world-size 8 --dataloader-workers 2 --out order/
    """
    from ..exporting import export as export_plan

    given = {"world_size": world_size, "workers": dataloader_workers}
    made = export_plan(
        manifest,
        out=out,
        to=to,
        epochs=epochs,
        storage_options=opt.parse_storage_options(storage_options),
        progress=progress_of(progress, quiet),
        index=index.value,
        **{name: value for name, value in given.items() if value is not None},
    )
    if as_json:
        print_json(made.to_json())
        return
    print_table(
        ("file", "size", "sha256"), [(f.name, human_bytes(f.bytes), f.sha256) for f in made.files]
    )
    print(f"wrote {made.rows:,} rows of {len(made.epochs)} epochs to {made.path}")


VERBS = (export,)
