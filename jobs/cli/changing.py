"""The verbs that make a plan of another one, and the one that clears up: edit, rebind, …"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as opt
from .output import human_bytes, print_epochs, print_json, print_table, progress_of, reporting

__all__ = ["VERBS"]

Out = Annotated[str, typer.Option("--out", metavar="MANIFEST", help="Manifest to make.")]


@reporting
def edit(
    manifest: opt.ManifestArgument,
    out: Out,
    epoch: Annotated[
        int | None, typer.Option(help="The epoch to change; --drop without it changes all.")
    ] = None,
    skip_steps: Annotated[
        str | None, typer.Option(metavar="A:B", help="Steps to leave out, half-open.")
    ] = None,
    drop: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rows to leave out: ids, or keys of --key.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Key column of --drop; needs --dataset.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Where --key is read.")
    ] = None,
    scheduler: opt.Scheduler = None,
    workers: opt.Workers = None,
    memory: opt.Memory = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Make a plan of another one, without some steps or rows; the parent is recorded.

    \b
    batchloom edit plan/ --out calm/ --epoch 0 --skip-steps 300:320
    batchloom edit plan/ --out clean/ --drop takedown.csv --key url --dataset data/
    """
    from ..editing import edit as edit_plan
    from ..rewriting import open_parent

    options = opt.parse_storage_options(storage_options)
    child = edit_plan(
        manifest,
        out=out,
        epoch=epoch,
        skip_steps=skip_steps,
        drop=drop,
        key=key,
        data=None if dataset is None else opt.parse_dataset(dataset),
        scheduler=scheduler,
        workers=workers,
        memory=memory,
        storage_options=options,
        progress=progress_of(progress, quiet),
    )
    if _printed_as_json(child, as_json):
        return
    before = open_parent(manifest, options).records
    for left in child.provenance["reports"]["edit"]["epochs"]:
        number = left["epoch"]
        print(
            f"epoch {number}: {left['rows']:,} rows and "
            f"{before[number].steps - child.records[number].steps:,} steps left out; the first "
            f"change is in step {left['first_step']}"
        )


@reporting
def rebind(
    manifest: opt.ManifestArgument,
    old: Annotated[
        str, typer.Option("--from", metavar="OLD_DATASET", help="The dataset that was planned.")
    ],
    new: Annotated[
        str, typer.Option("--to", metavar="NEW_DATASET", help="The files as they are now.")
    ],
    key: Annotated[
        str, typer.Option(metavar="COLUMN", help="A column whose values are unique in both.")
    ],
    out: Out,
    missing: Annotated[
        str, typer.Option(metavar="fail|drop", help="Planned rows that are gone.")
    ] = "fail",
    signal: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A signal store, or a file with a row column."),
    ] = None,
    signal_out: Annotated[
        str | None, typer.Option(metavar="PATH", help="The same with the new row ids.")
    ] = None,
    scheduler: opt.Scheduler = None,
    workers: opt.Workers = None,
    memory: opt.Memory = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Make the same plan for files that were compacted, split or sorted anew.

    \b
    batchloom rebind plan/ --from data/ --to compacted/ --key doc_id --out plan2/
    """
    from ..rebinding import rebind as rebind_plan

    child = rebind_plan(
        manifest,
        opt.parse_dataset(old),
        opt.parse_dataset(new),
        key=key,
        out=out,
        missing=missing,  # type: ignore[arg-type]
        signal=signal,
        signal_out=signal_out,
        scheduler=scheduler,
        workers=workers,
        memory=memory,
        storage_options=opt.parse_storage_options(storage_options),
        progress=progress_of(progress, quiet),
    )
    if _printed_as_json(child, as_json):
        return
    report = child.provenance["reports"]["rebind"]
    print(f"{report['rows_gone']:,} planned rows are gone")
    if signal is not None:
        print(
            f"{signal_out}: {report['signal_rows']:,} values carried over, "
            f"{report['signal_rows_gone']:,} of rows that are gone"
        )


@reporting
def materialize(
    manifest: opt.ManifestArgument,
    out: Out,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Write the rows of a recipe out; loader states fit both forms.

    \b
    batchloom materialize plan/ --out plan-explicit/
    """
    from ..materializing import materialize as materialize_plan

    copy = materialize_plan(
        manifest,
        out=out,
        storage_options=opt.parse_storage_options(storage_options),
        progress=progress_of(progress, quiet),
    )
    _printed_as_json(copy, as_json)


@reporting
def gc(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder to look in, and below.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is found; without, it is listed.")
    ] = False,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="Not written to for so long: 30m, 24h, 7d.")
    ] = "24h",
    storage_options: opt.StorageOptions = None,
    as_json: opt.Json = False,
) -> None:
    r"""List, or remove, what killed jobs left behind; never what a living one holds.

    \b
    batchloom gc plans/
    batchloom gc plans/ --delete --older-than 7d
    """
    from ..cleaning import gc as clear

    found = clear(
        path,
        delete=delete,
        older_than=older_than,
        storage_options=opt.parse_storage_options(storage_options),
    )
    if as_json:
        print_json(found.to_json())
        return
    print_table(
        ("path", "kind", "bytes", "age"),
        [(x.path, x.kind, x.bytes, f"{x.age_hours:.1f} h") for x in found.leftovers],
    )
    done = "removed" if found.deleted else "found; --delete removes them"
    print(f"{len(found.leftovers)} leftovers, {human_bytes(found.bytes)}, {done}")


def _printed_as_json(manifest: Any, as_json: bool) -> bool:
    """Print a manifest that was made; return whether that was all."""
    from ..inspecting import describe_manifest

    if as_json:
        print_json(describe_manifest(manifest))
        return True
    print(f"{manifest.path}  {manifest.manifest_id}")
    print_epochs(manifest)
    return False


VERBS = (edit, rebind, materialize, gc)
