"""The verb that serves plans and takes signals."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as opt
from .output import reporting

__all__ = ["VERBS"]


@reporting
def serve(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Runs: DIR/runs/NAME/job.toml, one folder a run.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: one that is free.")] = 8765,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A token that requests must carry; mode 0600."),
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen beyond this machine without token and TLS."),
    ] = False,
    plans_at_once: Annotated[
        int, typer.Option(min=1, max=64, help="Runs that are planned at the same time.")
    ] = 2,
    scheduler: opt.Scheduler = None,
    workers: opt.Workers = None,
    memory: opt.Memory = None,
) -> None:
    r"""Serve plans, take signals, and plan each next epoch from them.

    \b
    batchloom serve service/ --workers 0
    """
    from ...dataplane.errors import ParameterError
    from ..engine import parse_bytes
    from ..service.serving import Address, serve

    if scheduler is not None and workers is not None:
        raise ParameterError("Give either --scheduler or --workers, not both.")
    serve(
        folder,
        Address(host, port, token_file, tls_cert, tls_key, insecure),
        engine={
            "scheduler": scheduler,
            "workers": workers,
            "memory": None if memory is None else parse_bytes(memory),
        },
        plans_at_once=plans_at_once,
    )


VERBS = (serve,)
