"""The service's OpenAPI description."""

from __future__ import annotations

from typing import Any

__all__ = ["openapi"]

_ERROR = {
    "description": "Refused: {error: {status, type, message}}",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_WHERE = {
    "run": ("path", "string"),
    "id": ("path", "string"),
    "epoch": ("path", "integer"),
    "rank": ("path", "integer"),
    "signal": ("path", "string"),
    "attempt": ("path", "integer"),
    "writer": ("path", "integer"),
    "sequence": ("path", "integer"),
    "from": ("query", "integer"),
    "to": ("query", "integer"),
    "wait": ("query", "number"),
}
_OPTIONAL = ("wait",)
_RUN = "/v1/runs/{run}"
_HTML = "text/html"
_JSON = "application/json"
_ARROW = "application/vnd.apache.arrow.stream"

# Path, method: summary, parameters, type of the body, type of the answer.
_CALLS: tuple[tuple[str, str, str, tuple[str, ...], str | None, str], ...] = (
    ("/", "get", "All runs, for people.", (), None, _HTML),
    ("/runs/{run}", "get", "A run, for people.", ("run",), None, _HTML),
    (
        "/runs/{run}/epochs/{epoch}/report",
        "get",
        "The report of the plan that holds an epoch.",
        ("run", "epoch"),
        None,
        _HTML,
    ),
    ("/healthz", "get", "Whether the service lives; needs no token.", (), None, _JSON),
    ("/readyz", "get", "Whether it can be asked; needs no token.", (), None, _JSON),
    ("/metrics", "get", "Counts, in Prometheus' text format.", (), None, "text/plain"),
    ("/openapi.json", "get", "This description.", (), None, _JSON),
    ("/v1/runs", "get", "Names of the runs.", (), None, _JSON),
    (_RUN, "get", "A run: its members, sealed epochs, what is planned.", ("run",), None, _JSON),
    (
        _RUN + "/attempts",
        "post",
        "Begin an attempt of the training; the body may name the snapshot's fingerprint.",
        ("run",),
        _JSON,
        _JSON,
    ),
    (
        _RUN + "/signals/{signal}/{attempt}/{writer}/{sequence}",
        "put",
        "Part `sequence` of a signal: an Arrow file or stream of row, epoch, step, occurrence, "
        "attempt, value. Durable when it is answered. The same again is fine; other content under "
        "the same number is a conflict (409).",
        ("run", "signal", "attempt", "writer", "sequence"),
        _ARROW,
        _JSON,
    ),
    (
        _RUN + "/ranks/{rank}",
        "put",
        "Where a rank stands: world, epoch, step, samples, seconds, waited_seconds. For people: it "
        "is gone when the service stops.",
        ("run", "rank"),
        _JSON,
        _JSON,
    ),
    (
        _RUN + "/epochs/{epoch}",
        "get",
        "The plan of an epoch: ready with its id, pending, or failed; waits `wait` seconds, at "
        "most 30, for it.",
        ("run", "epoch", "wait"),
        None,
        _JSON,
    ),
    (
        _RUN + "/epochs/{epoch}/seal",
        "post",
        "Say that a rank has sent all its signals of an epoch: {attempt, rank, world, parts}. "
        "When all ranks have, the next epoch is planned.",
        ("run", "epoch"),
        _JSON,
        _JSON,
    ),
    (
        _RUN + "/epochs/{epoch}/retry",
        "post",
        "Plan an epoch again that could not be planned.",
        ("run", "epoch"),
        None,
        _JSON,
    ),
    (
        "/v1/manifests/{id}",
        "get",
        "A manifest's header, manifest.json; its ETag is the id.",
        ("id",),
        None,
        _JSON,
    ),
    (
        "/v1/manifests/{id}/epochs/{epoch}/batches",
        "get",
        "Micro-batches `from` to `to` (not included) of an epoch, 4,096 at most, as an Arrow "
        "stream with the columns of a part.",
        ("id", "epoch", "from", "to"),
        None,
        _ARROW,
    ),
)


def openapi() -> dict[str, Any]:
    """Return the description."""
    paths: dict[str, Any] = {}
    for path, method, summary, names, body, answer in _CALLS:
        call: dict[str, Any] = {
            "summary": summary,
            "responses": {
                "200": {"description": "Done.", "content": {answer: {}}},
                "default": _ERROR,
            },
        }
        if names:
            call["parameters"] = [_parameter(name) for name in names]
        if body is not None:
            call["requestBody"] = {"content": {body: {}}}
        paths.setdefault(path, {})[method] = call
    text = {"type": "string"}
    error = {"status": {"type": "integer"}, "type": text, "message": text}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Batchloom selection service", "version": "1"},
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {"error": {"type": "object", "properties": error}},
                }
            },
        },
    }


def _parameter(name: str) -> dict[str, Any]:
    place, type_ = _WHERE[name]
    return {
        "name": name,
        "in": place,
        "required": name not in _OPTIONAL,
        "schema": {"type": type_},
    }
