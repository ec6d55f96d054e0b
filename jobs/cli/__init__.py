"""The command line: thin verbs over the modules of `jobs`; nothing heavy before it is needed."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``batchloom``."""
    signal.signal(signal.SIGTERM, _interrupt)  # what a scheduler sends; cleaned up like Ctrl-C
    try:
        from .app import build

        build(sys.argv[1:])()
    except KeyboardInterrupt:
        print("interrupted; nothing was committed", file=sys.stderr)
        sys.exit(130)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
