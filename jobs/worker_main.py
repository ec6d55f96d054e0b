"""The main module of the embedded cluster's workers (see `engine`).

Ctrl-C goes to the whole process group. The driver answers it and closes its workers; a worker that
answered too would only print a traceback.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
