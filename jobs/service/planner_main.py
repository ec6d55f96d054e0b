"""The process that plans beside the service: a job a line on stdin, its progress on stdout.

A job is ``{"folder", "start", "stop", "scheduler", "workers", "memory"}``. What is told are JSON
lines as of ``--progress json``, and at the end ``{"ready": id}`` or ``{"failed": why}``. When stdin
ends the service has gone, and so does this process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ...dataplane.errors import BatchloomError
from ...dataplane.series import member_name
from ...dataplane.signal_binding import bind
from ...dataplane.storage import locate
from ..planning import run_job
from ..progress import JsonProgress
from .runs import load_spec, member_spec

__all__ = ["main"]

_LEAVE_SECONDS = 10.0


def _plan(order: dict[str, Any], progress: JsonProgress) -> dict[str, Any]:
    folder, start, stop = Path(order["folder"]), int(order["start"]), int(order["stop"])
    spec, _ = load_spec(folder)
    engine = {name: order.get(name) for name in ("scheduler", "workers", "memory")}
    spec = member_spec(spec, start, stop, **engine)
    progress.note(f"planning {member_name(start, stop)} of {folder.name}")
    manifest = run_job(spec, progress=progress)
    bind(locate(folder / "signals"), manifest.snapshot)
    return {"ready": manifest.manifest_id}


def _watch(orders: Any, lines: list[str], there: threading.Condition) -> None:
    for line in orders:
        with there:
            lines.append(line)
            there.notify_all()
    os.kill(os.getpid(), signal.SIGTERM)  # what runs cleans up after itself
    threading.Event().wait(_LEAVE_SECONDS)
    os._exit(1)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Plan until stdin ends."""
    signal.signal(signal.SIGTERM, _interrupt)
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not stand between our lines
    progress = JsonProgress(told)
    lines: list[str] = []
    there = threading.Condition()
    watch = threading.Thread(target=_watch, args=(sys.stdin, lines, there), daemon=True)
    watch.start()
    try:
        while True:
            with there:
                while not lines:
                    there.wait()
                line = lines.pop(0)
            try:
                answer = _plan(json.loads(line), progress)
            except BatchloomError as error:
                answer = {"failed": str(error), "type": type(error).__name__}
            except Exception as error:  # told like any other; the next plan may go well
                answer = {"failed": f"{type(error).__name__}: {error}", "type": "InternalError"}
            progress.write(answer)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(0)


if __name__ == "__main__":
    main()
