"""The verbs that look into a plan: inspect, trace, verify, diff."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from . import options as opt
from .output import human_bytes, print_epochs, print_json, print_table, progress_of, reporting
from .selection import print_selections

__all__ = ["VERBS"]

_ROWS_SHOWN = 20
_VALUE_WIDTH = 40


@reporting
def inspect(
    manifest: opt.ManifestArgument,
    epoch: Annotated[int | None, typer.Option(help="Epoch of --step.")] = None,
    step: Annotated[int | None, typer.Option(help="Show the rows of this step.")] = None,
    storage_options: opt.StorageOptions = None,
    as_json: opt.Json = False,
) -> None:
    r"""Show a manifest's header and counts, or one step; or the degrees of a graph.

    \b
    batchloom inspect plan/
    batchloom inspect plan/ --epoch 0 --step 3
    """
    from ...dataplane.series import open_plan
    from ...samplers.graph.graph_header import is_graph
    from ..inspecting import describe_manifest, describe_step

    if is_graph(manifest):
        from ...samplers.graph.graph_report import describe_graph
        from .graph import print_graph

        print_graph(describe_graph(manifest), as_json=as_json)
        return
    opened = open_plan(manifest, storage_options=opt.parse_storage_options(storage_options))
    if step is not None:
        number = opened.epochs[0] if epoch is None else epoch
        _print_step(describe_step(opened.manifest_for(number), number, step), as_json)
        return
    members = getattr(opened, "members", [opened])
    described = [describe_manifest(m) for m in members]
    if as_json:
        print_json(described[0] if members == [opened] else described)
        return
    for member, facts in zip(members, described, strict=True):
        _print_manifest(member, facts)


def _print_manifest(manifest: Any, facts: dict[str, Any]) -> None:
    data = facts["dataset"]
    print(f"{facts['path']}  {facts['manifest_id']}")
    print(
        f"dataset: {data['rows']:,} rows, {data['fragments']} fragments of "
        f"{', '.join(data['sources'])}"
    )
    for stage in facts["stages"]:
        settings = ", ".join(f"{k}={v}" for k, v in stage["parameters"].items() if v is not None)
        print(f"{stage['stage']}: {stage['method']}({settings})")
    weights = facts["weight_semantics"] or "all 1"
    print(
        f"seed {facts['seed']}, unit {facts['unit']}, weights {weights}, "
        f"{human_bytes(facts['bytes'])}"
    )
    if facts["parent"]:
        changed = facts["stages"] and facts["stages"][-1]["stage"] in ("edit", "rebind")
        print(f"{'made from' if changed else 'continues'} {facts['parent']}")
    if facts["signals"]:
        print(f"losses {facts['signals']}")
    print_epochs(manifest)
    print_selections(facts["reports"])


def _print_step(step: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(step)
        return
    for batch in step["micro_batches"]:
        print(
            f"epoch {step['epoch']}, step {step['step']}, micro-batch {batch['micro']}: "
            f"{len(batch['rows'])} rows"
        )
        print(" ".join(map(str, batch["rows"])))
        if batch["weights"] is not None:
            print("weights " + " ".join(f"{w:g}" for w in batch["weights"]))
        for name, value in batch["side"].items():
            print(f"{name} {value}")


@reporting
def trace(
    manifest: opt.ManifestArgument,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Show the rows' columns, too.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns to show; all when not given.")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(help="Epoch of --step; or the only one to look in.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Show the rows of this step.")] = None,
    row: Annotated[int | None, typer.Option(help="Show the steps of this row id.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="Show the steps of the rows with this value; text as is."
        ),
    ] = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Show which rows a step holds, or in which steps a row is.

    \b
    batchloom trace plan/ --dataset data/ --epoch 0 --step 17
    batchloom trace plan/ --row 4711
    batchloom trace plan/ --dataset data/ --key doc_id=doc-7 --columns doc_id,url
    """
    from ..tracing import StepTrace
    from ..tracing import trace as trace_plan

    column, value = opt.parse_key(key)
    found = trace_plan(
        manifest,
        None if dataset is None else opt.parse_dataset(dataset),
        epoch=epoch,
        step=step,
        row=row,
        key=column,
        value=value,
        columns=None if columns is None else [c.strip() for c in columns.split(",")],
        storage_options=opt.parse_storage_options(storage_options),
        progress=progress_of(progress, quiet),
    )
    if as_json:
        print_json(found.to_json())
    elif isinstance(found, StepTrace):
        _print_step_trace(found)
    else:
        _print_row_trace(found, key)


def _print_step_trace(found: Any) -> None:
    for batch in found.micro_batches:
        side = "".join(f", {name} {_short(value)}" for name, value in batch.side.items())
        print(
            f"epoch {found.epoch}, step {found.step}, micro-batch {batch.micro}: "
            f"{len(batch.rows)} rows{side}"
        )
        first = batch.rows[0]
        sides, columns = list(first.side), list(first.columns or ())
        print_table(
            ("position", "row", "fragment", "offset", "weight", *sides, *columns),
            [
                (
                    r.position,
                    str(r.row),
                    f"{r.source}:{r.fragment}",
                    r.offset,
                    r.weight,
                    *(_short(r.side[name]) for name in sides),
                    *(_short((r.columns or {}).get(name)) for name in columns),
                )
                for r in batch.rows
            ],
        )


def _print_row_trace(found: Any, key: str | None) -> None:
    epochs = ", ".join(map(str, found.epochs))
    if not found.rows:
        print(f"no row has {key}")
    for row in found.rows[:_ROWS_SHOWN]:
        print(f"row {row.row}  {row.source}:{row.fragment}, offset {row.offset}")
        for name, value in (row.columns or {}).items():
            print(f"  {name}: {_short(value)}")
        if row.found:
            places = [(p.epoch, p.step, p.micro, p.position, p.weight) for p in row.found]
            print_table(("epoch", "step", "micro-batch", "position", "weight"), places)
        if row.absent:
            print(f"not in epoch {', '.join(map(str, row.absent))} (looked in {epochs})")
    if len(found.rows) > _ROWS_SHOWN:
        print(f"and {len(found.rows) - _ROWS_SHOWN:,} more rows; --json lists all")


def _short(value: Any) -> str:
    """Return a value in one line of the terminal."""
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _VALUE_WIDTH else text[: _VALUE_WIDTH - 1] + "…"


@reporting
def verify(
    manifest: opt.ManifestArgument,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Compare the planned fragments too.")
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Count all rows again; with --dataset, hash its bytes."),
    ] = False,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Check every byte of a manifest, packed table or graph; exit 1 where one is not as it should.

    \b
    batchloom verify plan/ --dataset data/
    batchloom verify plan/ --deep
    batchloom verify packed/ --dataset data/
    """
    from ...samplers.graph.graph_header import is_graph
    from ..verifying import is_packed, verify_packed
    from ..verifying import verify as verify_plan

    if is_graph(manifest):
        from ...samplers.graph.graph_files import verify_graph
        from .graph import print_verified

        print_verified(verify_graph(manifest), as_json=as_json)
        return
    options = opt.parse_storage_options(storage_options)
    if is_packed(manifest, options):
        table = verify_packed(
            manifest, None if dataset is None else opt.parse_dataset(dataset), options
        )
        if as_json:
            print_json({"table_id": table.table_id, "rows": table.rows, "bytes": table.bytes})
        else:
            print(f"whole: {table.table_id}")
            print(f"{table.rows:,} rows, {len(table.files)} files, {human_bytes(table.bytes)}")
        return
    found = verify_plan(
        manifest,
        None if dataset is None else opt.parse_dataset(dataset),
        deep=deep,
        storage_options=options,
        progress=progress_of(progress, quiet),
    )
    if as_json:
        print_json(found.to_json())
        return
    print(f"whole: {found.manifest_id}")
    print(
        f"{found.epochs} epochs, {found.samples:,} rows, {found.parts} parts, {found.blocks} "
        f"blocks, {human_bytes(found.bytes)}"
    )
    for record in found.recounted:
        form = "computed" if record.recipe is not None else "counted"
        print(
            f"epoch {record.epoch} {form} again: {record.coverage}, {record.distinct_rows:,} "
            f"different rows, logical digest {record.logical_digest}"
        )
    if dataset is not None:
        print(
            f"{found.fragments} fragments of the dataset are as planned"
            + (f", {found.contents} of them byte by byte" if deep else "")
        )
        if found.unplanned:
            print(f"{found.unplanned} files of the dataset are not in the plan; that is fine")


@reporting
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Manifest.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Manifest.")],
    html: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="Write a page with pictures, too.")
    ] = None,
    storage_options: opt.StorageOptions = None,
    as_json: opt.Json = False,
) -> None:
    r"""Compare two manifests; exit 0 where they are the same decision, 1 where not.

    \b
    batchloom diff plan/ plan2/
    batchloom diff plan/ plan2/ --html difference.html
    """
    from ..diffing import diff as diff_manifests

    options = opt.parse_storage_options(storage_options)
    found = diff_manifests(a, b, storage_options=options)
    if html is not None:
        from .reporting import write_difference

        write_difference(html, a, b, options, said=not as_json)
    if as_json:
        print_json(found.to_json())
    elif found.same:
        print("the same decision")
    else:
        _print_difference(found)
    if not found.same:
        sys.exit(1)


def _print_difference(found: Any) -> None:
    for key, (one, two) in found.identity.items():
        print(f"{key}: {one} → {two}")
    for side, paths in (("A", found.fragments_only_in_a), ("B", found.fragments_only_in_b)):
        for path in paths:
            print(f"fragment only in {side}: {path}")
    for side, epochs in (("A", found.epochs_only_in_a), ("B", found.epochs_only_in_b)):
        if epochs:
            print(f"epochs only in {side}: {', '.join(map(str, epochs))}")
    for e in found.epochs:
        print(
            f"epoch {e.epoch}: {e.batches_changed:,} micro-batches differ, the first in step "
            f"{e.first_step}; {e.rows_only_in_a:,} rows only in A, {e.rows_only_in_b:,} only in B"
        )


VERBS = (inspect, trace, verify, diff)
