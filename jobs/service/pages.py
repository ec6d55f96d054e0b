"""What a browser is shown: all runs, one run, the report of a plan. No script, no other host.

The pages are made here of what `page_facts` says; while something goes on they ask to be loaded
again every few seconds.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from ...dataplane.errors import needs_extra
from .page_facts import run_facts, service_facts, summary
from .refusals import RefusedError

if TYPE_CHECKING:
    from .runs import Run
    from .service import Service

__all__ = ["front_page", "report_page", "run_page"]

_SHOWN = 100  # runs
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors "
    "'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@cache
def _templates() -> Any:
    with needs_extra("The service", "serve"):
        import jinja2
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(__package__), jinja2.PackageLoader("batchloom.jobs.report")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _page(template: str, **values: Any) -> Any:
    from starlette.responses import HTMLResponse

    return HTMLResponse(_templates().get_template(template).render(**values), headers=_HEADERS)


def front_page(service: Service) -> Any:
    """Return the answer to ``/``."""
    names = service.runs.names()
    runs = [summary(service, name) for name in names[:_SHOWN]]
    return _page(
        "front.html.jinja",
        title="Batchloom: runs",
        busy=True,  # runs may be added
        runs=runs,
        hidden=max(0, len(names) - _SHOWN),
        folder=service.folder,
        facts=service_facts(service),
    )


def run_page(service: Service, name: str) -> Any:
    """Return the answer to ``/runs/NAME``, the address that clients are given."""
    run = run_facts(service, name)
    return _page("run.html.jinja", title=f"{name}: Batchloom", busy=run.busy, run=run)


def report_page(run: Run, epoch: int) -> Any:
    """Return the report of the plan that holds an epoch."""
    from starlette.responses import HTMLResponse

    manifest = run.holds(epoch)
    if manifest is None:
        raise RefusedError(404, f"Epoch {epoch} of '{run.name}' is not planned.")
    return HTMLResponse(_report(str(manifest.path)), headers=_HEADERS)


@lru_cache(maxsize=16)
def _report(path: str) -> str:
    """Make a report; plans never change."""
    from ..report import plan_figures, plan_page

    return plan_page(plan_figures(path))
