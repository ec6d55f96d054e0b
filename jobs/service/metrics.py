"""Counts of what the service does, as Prometheus reads them; and events as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["EventLog", "LogLines", "Metrics"]

_HELP = {
    "batchloom_requests_total": "Requests, by status.",
    "batchloom_request_seconds_total": "Seconds that requests took, long polls and streams too.",
    "batchloom_batches_sent_total": "Micro-batches of ranges that were sent whole.",
    "batchloom_stream_bytes_total": "Bytes of ranges that were handed to connections.",
    "batchloom_streams_open": "Ranges being sent.",
    "batchloom_body_bytes_held": "Bytes of bodies being taken in.",
    "batchloom_signal_parts_total": "Parts of signals that were acknowledged.",
    "batchloom_signal_rows_total": "Observations in them.",
    "batchloom_unauthorized_total": "Requests without the right token.",
    "batchloom_plans_pending": "Plans that are being made or wait.",
    "batchloom_plans_total": "Plans made.",
    "batchloom_plans_failed_total": "Plans that failed.",
    "batchloom_plan_seconds_total": "Seconds that plans took.",
    "batchloom_runs": "Runs.",
}


class Metrics:
    """Numbers by name and labels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[tuple[str, str], float] = defaultdict(float)
        for name in _HELP:
            if name != "batchloom_requests_total":
                self._values[name, ""] = 0

    def add(self, name: str, value: float = 1, labels: str = "") -> None:
        with self._lock:
            self._values[name, labels] += value

    def set(self, name: str, value: float) -> None:
        with self._lock:
            self._values[name, ""] = value

    def get(self, name: str) -> float:
        with self._lock:
            return self._values[name, ""]

    def text(self) -> str:
        """Return all of them in Prometheus' text format."""
        with self._lock:
            values = sorted(self._values.items())
        lines, before = [], ""
        for (name, labels), value in values:
            if name != before:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {name} {_HELP.get(name, name)}", f"# TYPE {name} {kind}"]
                before = name
            shown = f"{{{labels}}}" if labels else ""
            lines.append(f"{name}{shown} {value:g}" if value < 1e6 else f"{name}{shown} {value!r}")
        return "\n".join(lines) + "\n"


class EventLog:
    """Writes a JSON line an event. Times are for people; nothing goes by them."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **fields}, default=str)
        with self._lock:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except (OSError, ValueError):  # nobody reads the log any more
                pass


class LogLines(logging.Handler):
    """Passes what libraries log on as events."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"logger": record.name, "level": record.levelname, "text": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])[:1000]
        self._log("log", **fields)
