"""The verbs of graphs: graph build."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as opt
from .output import human_bytes, print_json, print_table, progress_of, reporting

__all__ = ["graph_verbs", "print_graph", "print_verified"]

_HELP = """Build graphs from tables of edges.

\b
  batchloom graph build edges/ --out graph/
"""


def graph_verbs() -> typer.Typer:
    """Return the verbs below ``graph``."""
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.command("build")(build)
    app.callback()(_nothing)
    return app


def _nothing() -> None:
    pass


_nothing.__doc__ = _HELP


@reporting
def build(
    edges: Annotated[
        str | None,
        typer.Argument(metavar="EDGES", help="Table of edges: directory, file, glob or URI."),
    ] = None,
    # Required, though it stands behind what is not: typer reads `...` so.
    out: Annotated[str, typer.Option(help="Folder to make.")] = ...,  # type: ignore[assignment]
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--edges",
            metavar="SOURCE,RELATION,TARGET=EDGES",
            help="Edges of one kind, of a graph of several; may be given again.",
        ),
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]NODES", help="Table of nodes, a row a node; may be given again."
        ),
    ] = None,
    num_nodes: Annotated[
        list[str] | None,
        typer.Option(metavar="[KIND=]N", help="Nodes of a kind that has no table."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="[KIND=]COLUMN", help="Column of the nodes by which edges name them."),
    ] = None,
    src: Annotated[str | None, typer.Option(metavar="COLUMN", help="The edges' sources.")] = None,
    dst: Annotated[str | None, typer.Option(metavar="COLUMN", help="The edges' targets.")] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Keep the edges' weights.")
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Keep the edges' times, and sort by them."),
    ] = None,
    scheduler: opt.Scheduler = None,
    workers: opt.Workers = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the whole job, such as 4GiB.")
    ] = None,
    storage_options: opt.StorageOptions = None,
    progress: opt.ProgressOption = opt.ProgressChoice.auto,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    r"""Sort tables of edges, of any size, into a graph that samplers map.

    \b
    batchloom graph build edges/ --out graph/ --memory 2GiB
    batchloom graph build edges/ --out graph/ --nodes nodes/ --key doi --src citing --dst cited
    batchloom graph build --out graph/ --edges author,writes,paper=writes/ \
        --edges paper,cites,paper=cites/ --nodes paper=papers/
    """
    from ...dataplane.errors import JobSpecError
    from ..graph_build import ONE_KIND, build_graph

    kinds: dict[tuple[str, str, str], Any] = {}
    for text in more or []:
        name, equals, place = text.partition("=")
        words = tuple(word.strip() for word in name.split(","))
        if not equals or len(words) != 3 or not place:
            raise JobSpecError(
                "--edges takes SOURCE,RELATION,TARGET=EDGES, such as author,writes,paper=writes/. "
                f"Got '{text}' instead."
            )
        if (words[0], words[1], words[2]) in kinds:
            raise JobSpecError(
                f"--edges names the kind {name} twice: put its files into one folder."
            )
        kinds[words[0], words[1], words[2]] = place
    if (edges is None) == (not kinds):
        raise JobSpecError(
            "Give the table of edges, or those of several kinds with --edges, and not both."
        )
    one = ONE_KIND[0] if edges is not None else None
    header = build_graph(
        kinds if edges is None else edges,
        out,
        nodes=_by_kind(nodes or [], one, "--nodes"),
        num_nodes={
            kind: _number(text)
            for kind, text in _by_kind(num_nodes or [], one, "--num-nodes").items()
        },
        key=_by_kind(key or [], one, "--key"),
        src=src,
        dst=dst,
        weights=weights,
        times=times,
        memory=memory,
        workers=workers,
        scheduler=scheduler,
        progress=progress_of(progress, quiet),
        storage_options=opt.parse_storage_options(storage_options),
    )
    facts = {
        "graph_id": header.fingerprint,
        "path": out,
        "nodes": header.num_nodes,
        "edges": {",".join(e.type): e.edges for e in header.edges},
    }
    if as_json:
        print_json(facts)
        return
    print(f"built {header.fingerprint}")
    _print_counts(header)
    print(f"wrote {out}")


def _by_kind(texts: list[str], one: str | None, option: str) -> dict[str, str]:
    """Read ``KIND=VALUE``; the kind may be left out where there is only one."""
    import os
    import re

    from ...dataplane.errors import JobSpecError

    found: dict[str, str] = {}
    for text in texts:
        named = (
            None if os.path.exists(text) else re.match(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", text)
        )
        kind, value = (named[1], named[2]) if named else (one, text)
        if kind is None or kind in found:
            raise JobSpecError(
                f"{option} takes KIND=VALUE, once a kind, such as {option} paper=…. Got '{text}' "
                "instead."
            )
        found[kind] = value
    return found


def _number(text: str) -> int:
    from ...dataplane.errors import JobSpecError

    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise JobSpecError(f"--num-nodes takes a whole number. Got '{text}' instead.") from None


def _print_counts(header: Any) -> None:
    for nodes in header.nodes:
        print(f"{nodes.nodes:,} nodes of kind '{nodes.type}'")
    for edges in header.edges:
        arrays = ", ".join(a.name for a in edges.arrays)
        print(f"{edges.edges:,} edges {' → '.join(edges.type)} ({arrays})")


def print_verified(header: Any, *, as_json: bool) -> None:
    """Print what `verify` found of a graph."""
    if as_json:
        edges = {",".join(e.type): e.edges for e in header.edges}
        print_json({"graph_id": header.fingerprint, "nodes": header.num_nodes, "edges": edges})
        return
    print(f"whole: {header.fingerprint}")
    _print_counts(header)


def print_graph(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print what `inspect` found of a graph."""
    if as_json:
        print_json(facts)
        return
    print(f"{facts['path']}  {facts['graph_id']}")
    for kind, count in facts["nodes"].items():
        print(f"{count:,} nodes of kind '{kind}'")
    for kind, found in facts["edges"].items():
        print(
            f"\n{found['edges']:,} edges {kind.replace(',', ' → ')}, {human_bytes(found['bytes'])}"
        )
        degrees = found["in_degree"]
        print_table(
            ("edges into a node:", *degrees),
            [("", *degrees.values())],
        )
        print(
            f"{found['no_edges_in']:,} nodes have no edge into them, "
            f"{found['isolated']:,} no edge at all"
        )
        print_table(("hub", "edges into it"), [(str(h["node"]), h["edges"]) for h in found["hubs"]])
