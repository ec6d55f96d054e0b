"""HTML of figures: one file without scripts, that asks no other host for anything.

A page is made of the figures alone, so what `--json` prints is what the page shows. The templates
escape all text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ...dataplane.errors import needs_extra
from .compared_sections import compared_facts, compared_sections
from .pictures import printable
from .section import Section
from .sections import header_facts, plan_sections

__all__ = ["difference_page", "plan_page"]


@cache
def _template() -> Any:
    with needs_extra("A report", "report"):
        import jinja2
    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    ).get_template("page.html.jinja")


def _printable(value: Any) -> Any:
    """Return text as a page may hold it; what is markup already is ours."""
    return printable(value) if type(value) is str else value


def _page(
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    stages: Sequence[Mapping[str, Any]],
    sections: Sequence[Section],
) -> str:
    text: str = _template().render(
        title=title, lead=lead, facts=facts, stages=stages, sections=sections
    )
    return text


def plan_page(figures: Mapping[str, Any]) -> str:
    """Return a plan's page.

    Parameters
    ----------
    figures : dict
        Of `plan_figures`; or as they were read from JSON.

    Raises
    ------
    MissingExtraError
        Where matplotlib or jinja2 are not installed.
    """
    header, cost = figures["header"], figures["cost"]
    epochs = header["epochs"][1] - header["epochs"][0]
    lead = (
        f"{cost['rows']:,} rows in {cost['steps']:,} steps of {epochs:,} "
        f"{'epoch' if epochs == 1 else 'epochs'}, of a dataset of {header['dataset']['rows']:,} "
        "rows."
    )
    return _page(
        f"Plan: {header['method']}",
        lead,
        header_facts(header),
        header["stages"],
        plan_sections(figures),
    )


def difference_page(figures: Mapping[str, Any]) -> str:
    """Return the page of the difference of two plans; see `plan_page`."""
    lead = (
        "Both are the same decision."
        if figures["same"]
        else "They are different decisions. A is the first plan named, B the second."
    )
    return _page(
        f"Two plans: {figures['a']['method']}, {figures['b']['method']}",
        lead,
        compared_facts(figures),
        [],
        compared_sections(figures),
    )
