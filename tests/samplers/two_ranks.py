"""Programs that run as the two ranks of a training."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import Any

__all__ = ["two_ranks"]


def two_ranks(command: list[Any]) -> list[str]:
    """Run a command as two ranks; return what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in ("0", "1"):
        env = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        children.append(
            subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)
        )
    out = [c.communicate(timeout=200)[0] for c in children]
    assert [c.returncode for c in children] == [0, 0]
    return out
