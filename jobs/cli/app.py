"""The command line put together, and the verbs that begin: demo, doctor, scan, run.

Each verb imports what it runs when it runs, so that ``--help`` answers at once. `plan` holds the
methods, `reading` the verbs that look into a plan, `changing` those that make one of another,
`packing` the one that packs, `graph` those of graphs, `exporting` the one that hands a plan to
other libraries, `reporting` the one that pictures it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import options as opt
from .changing import VERBS as CHANGING
from .exporting import VERBS as EXPORTING
from .graph import graph_verbs
from .output import print_json, print_table, progress_of, reporting
from .packing import VERBS as PACKING
from .plan import plan_verbs, run_spec
from .reading import VERBS as READING
from .reporting import VERBS as REPORTING
from .serve import VERBS as SERVING

__all__ = ["build"]

HELP = """Know exactly which rows your model sees, before and after you train.

\b
  batchloom demo                                             the whole chain on real data
  batchloom plan shuffle data/ --out plan/ --batch-size 256  write a plan
  batchloom inspect plan/                                    look into it
  batchloom verify plan/ --dataset data/                     check it
  batchloom trace plan/ --dataset data/ --epoch 0 --step 17  which rows were in that step
  batchloom edit plan/ --out calm/ --epoch 0 --skip-steps 17:20    go on without them
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
    app.add_typer(graph_verbs(), name="graph")
    app.command("run")(run)
    for verb in (*PACKING, *READING, *CHANGING, *EXPORTING, *REPORTING, *SERVING):
        app.command(verb.__name__)(verb)
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
    epochs: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Instead of the file's: a series' next member."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Run a job file: the same as plan, with chained stages and several sources.

    \b
    batchloom run job.toml --dry-run
    """
    from ..job_file import load_job

    spec, given = load_job(job), opt.parse_storage_options(storage_options)
    if epochs is not None:
        spec = dataclasses.replace(spec, epochs=epochs)  # type: ignore[arg-type]  # it is parsed
    if given is not None:  # beside the file's own: credentials need not stand in a file
        spec = dataclasses.replace(spec, storage_options={**(spec.storage_options or {}), **given})
    run_spec(spec, dry_run=dry_run, progress=progress, quiet=quiet, as_json=as_json)


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
    quantiles: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=SHARES", help="Exact quantiles, such as loss=0.5,0.99."),
    ] = None,
    on_invalid: Annotated[
        opt.InvalidChoice, typer.Option(help="--quantiles: rows with NaN or null values.")
    ] = opt.InvalidChoice.fail,
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
    batchloom scan data/ --quantiles loss=0.01,0.5,0.99
    """
    from ...dataplane.errors import JobSpecError
    from ..engine import Engine, parse_bytes
    from ..scanning import scan as scan_dataset

    if deep and out is None:
        raise JobSpecError("--deep stores the hashes beside the snapshot: name one with --out.")
    wanted = opt.parse_quantiles(quantiles or [])
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
            quantiles=wanted,
            on_invalid=on_invalid.value,
            engine=engine,
            progress=shown,
            storage_options=opt.parse_storage_options(storage_options),
        )
    if as_json:
        print_json(result.to_json())
        return
    _print_scan(result)
    for path in (out, result.deep_file):
        if path is not None:
            print(f"wrote {path}")


def _print_scan(result: Any) -> None:
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
    if result.quantiles:
        print()
        print_table(
            ("column", "quantile", "value", "rank", "of values", "left out"),
            [
                (c.name, q.share, None if q.value is None else str(q.value), q.rank, c.values,
                 c.invalid)
                for c in result.quantiles for q in c.quantiles
            ],
        )  # fmt: skip
