"""The verb ``plan``: one command a method, all with the same options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..methods import METHODS
from . import options as opt
from .output import human_bytes, print_epochs, print_json, progress_of, reporting

__all__ = ["plan_verbs", "run_spec"]


def plan_verbs(arguments: Sequence[str]) -> typer.Typer:
    """One command a method, all with the same options."""
    verbs = typer.Typer(
        help="Plan a dataset with a method and write the manifest.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for name, method in METHODS.items():
        if method.verb:
            text = _method_help(name) if name in arguments else method.summary
            verbs.command(name, help=text, short_help=method.summary)(_plan_verb(name))
    return verbs


def _method_help(name: str) -> str:
    """Return summary, example, parameters with ranges and defaults, and source of a method."""
    from ...dataplane.parameters import describe_parameters

    stage = METHODS[name].load()
    lines = [f"{stage.summary[0].upper()}{stage.summary[1:]}.", "", "\b", stage.example]
    lines += ["", stage.about] if stage.about else []
    lines += ["", "\b", "Parameters, as --set name=value:"]
    for p in describe_parameters(stage):
        default = "required" if p.required else f"default {p.default}"
        lines.append(f"  {p.name}: {p.allowed}; {default}. {p.description}")
    if stage.source:
        lines += ["", f"Source: {stage.source}."]
    return "\n".join(lines)


def _plan_verb(method: str) -> Any:
    @reporting
    def command(
        dataset: opt.DatasetArgument,
        out: Annotated[str, typer.Option(metavar="MANIFEST", help="Manifest to make.")],
        batch_size: Annotated[int, typer.Option(help="Rows a micro-batch.")] = 256,
        micro_per_step: Annotated[int, typer.Option(help="Micro-batches a step.")] = 1,
        epochs: Annotated[
            str, typer.Option(metavar="A:B", help="Epochs, 0-based and half-open; N means 0:N.")
        ] = "0:1",
        seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
        settings: Annotated[
            list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter.")
        ] = None,
        snapshot: Annotated[
            str | None,
            typer.Option(metavar="FILE", help="Plan exactly this snapshot; or a manifest's."),
        ] = None,
        since: Annotated[
            str | None,
            typer.Option(metavar="FILE", help="Keep this snapshot's row ids; or a manifest's."),
        ] = None,
        added_only: Annotated[
            bool,
            typer.Option("--added-only", help="Only rows added after --since, or to a --series."),
        ] = False,
        signal: Annotated[
            str | None,
            typer.Option(
                metavar="PATH",
                help="What a training wrote: a signal store, or a file with row, loss.",
            ),
        ] = None,
        where: Annotated[
            str | None, typer.Option(metavar="EXPR", help="Only rows for which this is true.")
        ] = None,
        keep: Annotated[
            str | None, typer.Option(metavar="FILE", help="Only rows whose key is in the file.")
        ] = None,
        drop: Annotated[
            str | None, typer.Option(metavar="FILE", help="No rows whose key is in the file.")
        ] = None,
        key: Annotated[
            str | None,
            typer.Option(metavar="COLUMN", help="Key of --keep, --drop, --split; else row ids."),
        ] = None,
        split: Annotated[
            str | None,
            typer.Option(metavar="SHARES:NAME", help="One share: train=0.9,val=0.1:train."),
        ] = None,
        on_invalid: Annotated[
            str, typer.Option(metavar="fail|drop", help="Rows with NaN, infinite or null values.")
        ] = "fail",
        form: Annotated[
            str,
            typer.Option(
                metavar="auto|explicit|recipe",
                help="Write rows out, or a recipe; auto: a recipe for more than 1 GB.",
            ),
        ] = "auto",
        series: Annotated[
            bool, typer.Option("--series", help="Add a member to the series at --out.")
        ] = False,
        deep: Annotated[bool, typer.Option("--deep", help="Hash the dataset's bytes too.")] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
        ] = False,
        scheduler: opt.Scheduler = None,
        workers: opt.Workers = None,
        memory: opt.Memory = None,
        storage_options: opt.StorageOptions = None,
        progress: opt.ProgressOption = opt.ProgressChoice.auto,
        quiet: opt.Quiet = False,
        as_json: opt.Json = False,
    ) -> None:
        from ..planning import make_spec

        job = {
            "batch_size": batch_size,
            "micro_per_step": micro_per_step,
            "epochs": epochs,
            "seed": seed,
            "snapshot": snapshot,
            "since": since,
            "added_only": added_only,
            "signal": signal,
            "on_invalid": on_invalid,
            "form": form,
            "series": series,
            "deep": deep,
            "scheduler": scheduler,
            "workers": workers,
            "memory": memory,
            "storage_options": opt.parse_storage_options(storage_options),
        }
        spec = make_spec(
            method,
            dataset=opt.parse_dataset(dataset),
            out=out,
            selects={"where": where, "keep": keep, "drop": drop, "key": key, "split": split},
            options=opt.parse_settings(settings or [], options=job) | job,
        )
        run_spec(spec, dry_run=dry_run, progress=progress, quiet=quiet, as_json=as_json)

    return command


def run_spec(spec: Any, *, dry_run: bool, progress: str, quiet: bool, as_json: bool) -> None:
    from ..planning import run_job

    if dry_run:
        from ..estimate import estimate

        _print_estimate(estimate(spec), as_json)
        return
    from ..inspecting import describe_manifest

    manifest = run_job(spec, progress=progress_of(progress, quiet))
    if as_json:
        print_json(describe_manifest(manifest))
        return
    print(f"{manifest.path}  {manifest.manifest_id}")
    print_epochs(manifest)


def _print_estimate(estimate: Any, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(estimate))
        return
    e = estimate
    print(
        f"{e.rows:,} rows, {e.micro_batches:,} micro-batches an epoch, {e.epochs} epochs, at most"
    )
    print(f"{human_bytes(e.bytes)} of manifest")
    print(f"{human_bytes(e.scanned_bytes)} of files to read, in {e.tasks} tasks a pass")
    print(f"about {e.cpu_seconds:g} CPU seconds")
    print("nothing was written")
