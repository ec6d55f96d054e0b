"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

__all__ = [
    "parse_dataset",
    "parse_key",
    "parse_quantiles",
    "parse_settings",
    "parse_storage_options",
]


class ProgressChoice(StrEnum):
    """Forms of progress."""

    auto = "auto"
    json = "json"


class InvalidChoice(StrEnum):
    """What to do with rows whose values cannot be used."""

    fail = "fail"
    drop = "drop"


DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="Directory, file, glob or URI; several sources: web=a/,books=b/."
    ),
]
ManifestArgument = Annotated[str, typer.Argument(metavar="MANIFEST", help="Manifest directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ProgressOption = Annotated[
    ProgressChoice, typer.Option("--progress", help="A bar on a terminal, or JSON lines.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Scheduler = Annotated[
    str | None, typer.Option(metavar="URL", help="A running Dask scheduler: tcp://host:8786.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes of the embedded cluster; 0: none. [default: one a core]"),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory of all workers together, such as 4GiB.")
]
StorageOptions = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Options of the dataset's filesystem, as a JSON object."),
]


def parse_dataset(text: str) -> Any:
    """Read ``web=a/,books=b/`` as named sources; anything else is a path."""
    import os
    import re

    if os.path.exists(text) or not re.match(r"^[A-Za-z0-9_.-]+=", text):
        return text
    sources = dict(item.split("=", 1) for item in text.split(",") if "=" in item)
    return {name.strip(): path.strip() for name, path in sources.items()}


def parse_key(text: str | None) -> tuple[str | None, str | None]:
    """Read ``--key COLUMN=VALUE``."""
    from ...dataplane.errors import JobSpecError

    if text is None:
        return None, None
    column, equals, value = text.partition("=")
    if not equals or not column.strip():
        raise JobSpecError(f"--key takes COLUMN=VALUE, such as doc_id=doc-7. Got '{text}' instead.")
    return column.strip(), value


def parse_settings(settings: list[str], options: Mapping[str, Any]) -> dict[str, str]:
    """Read ``--set key=value``; a key that has an option of its own is refused."""
    from ...dataplane.errors import JobSpecError

    found: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise JobSpecError(f"--set takes key=value. Got '{setting}' instead.")
        if key.strip() in options:
            option = f"--{key.strip().replace('_', '-')}"
            raise JobSpecError(f"'{key.strip()}' is not a method's parameter; use {option}.")
        found[key.strip()] = value.strip()
    return found


def parse_quantiles(texts: list[str]) -> dict[str, list[float]]:
    """Read ``--quantiles column=0.5,0.99``; the shares of a column that is named twice add up."""
    from ...dataplane.errors import JobSpecError

    found: dict[str, list[float]] = {}
    for text in texts:
        column, _, shares = text.rpartition("=")
        try:
            found.setdefault(column, []).extend(float(share) for share in shares.split(","))
        except ValueError:
            column = ""
        if not column:
            raise JobSpecError(
                "--quantiles takes a column and shares, such as loss=0.5,0.99. "
                f"Got '{text}' instead."
            )
    return found


def parse_storage_options(text: str | None) -> dict[str, Any] | None:
    """Read ``--storage-options``."""
    import json

    from ...dataplane.errors import JobSpecError

    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise JobSpecError(f"--storage-options is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise JobSpecError("--storage-options takes a JSON object, such as '{\"anon\": true}'.")
    return value
