"""The verbs. Each imports what it runs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import options as opt
from .output import (
    human_bytes,
    print_epochs,
    print_json,
    print_table,
    progress_of,
    reporting,
)
from .plan import plan_verbs, run_spec

__all__ = ["build"]

HELP = """Know exactly which rows your model sees, before and after you train.

\b
  batchloom demo                                             the whole chain on real data
  batchloom plan shuffle data/ --out plan/ --batch-size 256  write a plan
  batchloom inspect plan/                                    look into it
  batchloom verify plan/ --dataset data/                     check it
"""


def build(arguments: Sequence[str]) -> typer.Typer:
    """Return the command line; help of a method is filled in where `arguments` name it."""
    app = typer.Typer(
        help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.command("demo")(demo)
    app.command("doctor")(doctor)
    app.command("scan")(scan)
    app.add_typer(plan_verbs(arguments), name="plan")
    app.command("run")(run)
    app.command("inspect")(inspect)
    app.command("verify")(verify)
    app.command("diff")(diff)
    app.callback()(_version)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("batchloom"))
        raise typer.Exit


def _version(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    pass


_version.__doc__ = HELP


@reporting
def run(
    job: Annotated[str, typer.Argument(metavar="JOB.toml", help="Job file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Run a job file: the same as plan, with chained stages and several sources.

    \b
    batchloom run job.toml --dry-run
    """
    from ..spec import load_job

    run_spec(load_job(job), dry_run=dry_run, progress=progress, quiet=quiet, as_json=as_json)


@reporting
def demo(
    out: Annotated[str, typer.Option(help="Directory to write to.")] = "batchloom-demo",
    as_json: opt.Json = False,
) -> None:
    r"""Run the whole chain on real data: plan, verify, train, resume, grow.

    \b
    batchloom demo --out demo/
    """
    from ..demo import run_demo

    result = run_demo(out, say=(lambda _: None) if as_json else print)
    if as_json:
        print_json({**result.to_json(), "kept_its_promises": result.kept_its_promises})
    else:
        result.show(print_table)
    if not result.kept_its_promises:
        sys.exit(1)


@reporting
def doctor(as_json: opt.Json = False) -> None:
    r"""Say what this machine offers: GPU path, packages, memory.

    \b
    batchloom doctor --json
    """
    from ..doctor import examine

    findings = examine()
    if as_json:
        print_json([dataclasses.asdict(f) for f in findings])
        return
    print_table(
        ("", "here", "detail", "needed for"),
        [(f.what, f.here, f.detail, f.needed_for) for f in findings],
    )


@reporting
def scan(
    dataset: opt.DatasetArgument,
    since: Annotated[
        str | None, typer.Option(metavar="SNAPSHOT", help="Keep the row ids of this snapshot.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="SNAPSHOT", help="Snapshot file to write.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash the files' bytes; stored beside --out.")
    ] = False,
    statistics: Annotated[
        bool, typer.Option("--statistics/--no-statistics", help="Read and count all columns.")
    ] = True,
    scheduler: opt.Scheduler = None,
    workers: opt.Workers = None,
    memory: opt.Memory = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""List a dataset: fragments, schema, fingerprint, statistics of its columns.

    \b
    batchloom scan data/ --out data.snapshot.json
    batchloom scan data/ --since data.snapshot.json
    """
    from ...dataplane.errors import JobSpecError
    from ..engine import Engine, parse_bytes
    from ..scan import scan as scan_dataset

    if deep and out is None:
        raise JobSpecError("--deep stores the hashes beside the snapshot: name one with --out.")
    shown = progress_of(progress, quiet)
    budget = None if memory is None else parse_bytes(memory)
    with Engine(
        scheduler=scheduler, workers=workers, memory=budget, note=shown.note, warn=shown.warn
    ) as engine:
        result = scan_dataset(
            opt.parse_dataset(dataset),
            since=since,
            out=out,
            deep=deep,
            statistics=statistics,
            engine=engine,
            progress=shown,
            storage_options=opt.parse_storage_options(storage_options),
        )
    if as_json:
        print_json(result.to_json())
        return
    snapshot = result.dataset.snapshot
    print(f"{snapshot.rows:,} rows in {len(snapshot.fragments)} fragments")
    print(f"fingerprint {snapshot.fingerprint}")
    print_table(
        ("source", "fragment", "rows", "bytes", "first row id"),
        [(f.source, f.path, f.rows, f.bytes, f.first_row_id) for f in snapshot.fragments],
    )
    if result.columns:
        print()
        print_table(
            ("column", "type", "rows", "nulls", "not finite", "low", "high", "mean"),
            [(*dataclasses.astuple(c)[:5], c.low, c.high, c.mean) for c in result.columns],
        )
    for path in (out, result.deep_file):
        if path is not None:
            print(f"wrote {path}")


@reporting
def inspect(
    manifest: opt.ManifestArgument,
    epoch: Annotated[int | None, typer.Option(help="Epoch of --step.")] = None,
    step: Annotated[int | None, typer.Option(help="Show the rows of this step.")] = None,
    as_json: opt.Json = False,
) -> None:
    r"""Show a manifest's header and counts, or one step.

    \b
    batchloom inspect plan/
    batchloom inspect plan/ --epoch 0 --step 3
    """
    from ...dataplane.series import open_plan
    from ..inspect import describe_manifest, describe_step

    opened = open_plan(manifest)
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
        print(f"continues {facts['parent']}")
    print_epochs(manifest)


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
def verify(
    manifest: opt.ManifestArgument,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Compare the planned fragments too.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Recompute digests; with --dataset, hash its bytes.")
    ] = False,
    storage_options: opt.StorageOptions = None,
    as_json: opt.Json = False,
) -> None:
    r"""Check every byte of a manifest; exit 1 where something is not as it should be.

    \b
    batchloom verify plan/ --dataset data/
    """
    from ..verify import verify as verify_plan

    found = verify_plan(
        manifest,
        None if dataset is None else opt.parse_dataset(dataset),
        deep=deep,
        storage_options=opt.parse_storage_options(storage_options),
    )
    if as_json:
        print_json(found.to_json())
        return
    print(f"whole: {found.manifest_id}")
    print(
        f"{found.epochs} epochs, {found.samples:,} rows, {found.parts} parts, {found.blocks} "
        f"blocks, {human_bytes(found.bytes)}" + (", digests recomputed" if found.digests else "")
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
    as_json: opt.Json = False,
) -> None:
    r"""Compare two manifests; exit 0 where they are the same decision, 1 where not.

    \b
    batchloom diff plan/ plan2/
    """
    from ..diff import diff as diff_manifests

    found = diff_manifests(a, b)
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
