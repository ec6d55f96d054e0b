"""The verb that pictures a plan: report; and what `diff --html` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from .output import human_bytes, print_json, progress_of, reporting

__all__ = ["VERBS", "write_difference", "write_page"]


@reporting
def report(
    manifest: opt.ManifestArgument,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE.html", help="The page to write.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Where --column is.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Count rows and compare batches by its values."),
    ] = None,
    signal: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Losses: a signal store, or a file with row and loss."),
    ] = None,
    loss: Annotated[str, typer.Option(help="Name of the signal in --signal.")] = "loss",
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Picture a plan in one HTML file: rows kept and dropped, batches, weights, cost, coverage.

    \b
    batchloom report plan/ --out report.html
    batchloom report plan/ --dataset data/ --column label --out report.html
    batchloom report series/ --signal signals/ --out report.html
    batchloom report plan/ --json
    """
    from ...dataplane.errors import JobSpecError
    from ..report import plan_figures

    if out is None and not as_json:
        raise JobSpecError("Name the file to write (--out report.html), or print --json.")
    figures = plan_figures(
        manifest,
        None if dataset is None else opt.parse_dataset(dataset),
        signal=signal,
        loss=loss,
        column=column,
        storage_options=opt.parse_storage_options(storage_options),
        progress=progress_of(progress, quiet),
    )
    if out is not None:
        from ..report import plan_page

        write_page(out, plan_page(figures), said=not as_json)
    if as_json:
        print_json(figures)


def write_page(path: str, page: str, *, said: bool = True) -> None:
    """Write a page, and print where it is."""
    from ...dataplane.storage import storing

    place = Path(path)
    with storing("Writing the page", place):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    if said:
        print(f"wrote {path}, {human_bytes(place.stat().st_size)}")


def write_difference(
    path: str, a: str, b: str, storage_options: dict[str, object] | None, *, said: bool
) -> None:
    """Write the page of the difference of two plans."""
    from ..report import difference_figures, difference_page

    figures = difference_figures(a, b, storage_options=storage_options)
    write_page(path, difference_page(figures), said=said)


VERBS = (report,)
