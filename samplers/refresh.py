"""Clusters that another process makes, while the training goes on.

A `Refresh` copies the rows when it is made, and hands the copy to a process of one thread, which
runs balanced k-means and writes the labels. Both pass through files that have no name, in memory
where the system has such, so nothing is left behind. The labels are those of the same rows in this
process, bit for bit, whenever they are asked for.

The process is a Python of its own that runs this module: it is not forked (a fork after OpenMP or
CUDA was used may hang), it does not import the training script, so that this needs no
``if __name__ == "__main__":`` for it, and it imports no torch. It ends with its parent, however
that goes, and does not see Ctrl-C.

Where it is killed, or cannot be started, the labels are made of the copy in this process, with a
warning. What it raises is raised here.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..clustering.balanced import BalancedKMeans
from ..dataplane.errors import BatchloomError
from ..dataplane.parameters import resolved

__all__ = ["Refresh"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_PROGRAM = ["-P", "-m", __name__]  # -P: the current folder may hold modules of any name
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_RAISED = 3  # exit code: the result is an exception
_SECONDS_BETWEEN_LOOKS = 0.5


class Refresh:
    """Balanced k-means of a copy of some rows, in another process.

    Parameters
    ----------
    model : BalancedKMeans
    values : float32, shape (n, d)
        Copied; they may change afterwards.
    purpose : str
        What for, as messages say it: ``"the clusters of epoch 5"``.
    """

    def __init__(self, model: BalancedKMeans, values: F32, purpose: str) -> None:
        self._model, self._shape, self._purpose = model, values.shape, purpose
        self._found: I32 | Exception | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._refused = ""  # why it could not be started
        self._finalizer: Callable[[], Any] = _nothing
        copy, result = _file_without_name(), _file_without_name()
        self._files: tuple[IO[bytes], ...] = copy, result
        values.tofile(copy)
        copy.flush()
        self._start(copy.fileno(), result.fileno())

    def _start(self, copy: int, result: int) -> None:
        parent = os.getpid()
        task = {
            "parent": parent,
            "model": resolved(self._model),
            "shape": self._shape,
            "copy": copy,
            "result": result,
        }
        try:
            with _no_interrupts():
                self._process = subprocess.Popen(
                    [sys.executable, *_PROGRAM, json.dumps(task)],
                    env=_environment(),
                    pass_fds=(copy, result),
                    stdin=subprocess.DEVNULL,
                )
        except OSError as error:
            self._refused = str(error)
            return
        self._finalizer = weakref.finalize(self, _end, self._process, parent)

    def labels(self) -> I32:
        """Wait for the labels, and return them; int32, shape (n,).

        Raises
        ------
        Exception
            What the process raised, its traceback as a note; each time again.

        Warns
        -----
        UserWarning
            Where the process was killed: the labels are made here.
        """
        self._wait()
        if isinstance(self._found, Exception):
            raise self._found
        assert self._found is not None  # for the type checker: it was just set
        return self._found

    def close(self) -> None:
        """End the process, and give its memory back."""
        self._finalizer()
        self._process = None
        for file in self._files:
            file.close()

    def _wait(self) -> None:
        if self._found is None:
            self._found = self._outcome()
            self.close()

    def _outcome(self) -> I32 | Exception:
        copy, result = self._files
        if self._process is None:
            reason = f"could not be started ({self._refused})"
        else:
            code = self._process.wait()
            result.seek(0)
            if code == 0:
                return np.fromfile(result, np.int32)
            if code == _RAISED:
                raised: Exception = pickle.load(result)
                raised.add_note(f"It was to make {self._purpose}.")
                return raised
            reason = f"ended with exit code {code}"
        warnings.warn(
            f"The process that was to make {self._purpose} {reason}; they are made in the training "
            "process now, which has to wait for them, and are the same. Exit code -9 is a lack of "
            "memory as a rule.",
            stacklevel=2,
        )
        try:
            return self._model.labels(_mapped(copy, self._shape))
        except Exception as error:
            return error

    def __getstate__(self) -> dict[str, Any]:
        """Be pickled and copied by what was found: waits for it."""
        self._wait()
        return {**self.__dict__, "_files": (), "_finalizer": _nothing}


def _nothing() -> None:
    """Stands for the finalizer where there is no process."""


def _end(process: subprocess.Popen[bytes], parent: int) -> None:
    if os.getpid() == parent:  # not in a worker that was forked meanwhile
        process.kill()
        process.wait()


def _file_without_name() -> IO[bytes]:
    """Return a file that is gone when the last process has closed it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batchloom"), "w+b")
    return tempfile.TemporaryFile()


def _mapped(file: IO[bytes], shape: tuple[int, ...]) -> F32:
    return np.memmap(file, np.float32, "r", shape=shape)


def _environment() -> dict[str, str]:
    path = [place or os.getcwd() for place in sys.path]
    return {
        **os.environ,
        **dict.fromkeys(_ONE_THREAD, "1"),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(path),
    }


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Let what is started here never see Ctrl-C, which goes to all processes of a terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the other process -------------------------------------------------------------------------


def main(told: str) -> int:
    """Make the labels of a task; return the exit code."""
    task = json.loads(told)
    end_with(task["parent"])
    with os.fdopen(task["copy"], "rb") as copy, os.fdopen(task["result"], "wb") as result:
        try:
            values = _mapped(copy, tuple(task["shape"]))
            labels = BalancedKMeans(**task["model"]).labels(values, threads=1)
        except Exception as error:
            result.write(pickle.dumps(_portable(error)))
            return _RAISED
        labels.tofile(result)
    return 0


def end_with(parent: int) -> None:
    """End this process when another one, its parent, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, name="batchloom-parent", daemon=True).start()


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = BatchloomError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the process that makes clusters:\n{text}")
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
