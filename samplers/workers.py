"""A transform in worker processes, for one that holds the GIL.

Workers are spawned, never forked: a fork after OpenMP or CUDA was used may hang. Each is asked over
a pipe of its own, several batches a message, by a thread that waits for the answer. What crosses is
pickled bytes; there is no shared memory, so nothing can be left behind, and a worker whose parent
is gone, however it went, ends.

As with any spawned process, the training script must keep its own work under
``if __name__ == "__main__":``, and the transform must be importable from a module.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..dataplane.errors import BatchloomError, ParameterError
from .batch import Batch, batch_of
from .transforms import Outcome, Transform, apply

__all__ = ["Workers", "packed", "unpacked"]

_SECONDS_TO_END = 5.0


class Workers:
    """Processes that run a transform; started when they are first asked.

    Parameters
    ----------
    transform : callable
        Importable from a module.
    count : int
    """

    def __init__(self, transform: Transform | None, count: int) -> None:
        self.count = count
        try:
            self._transform = pickle.dumps(transform)
        except Exception as error:
            raise ParameterError(
                "The 'transform' parameter must be importable from a module, so that "
                f"transform_workers can run it; this one cannot be pickled: {error}. Define it "
                "with def at the top of a module, or use transform_threads."
            ) from error
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._started: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _end, self._started)

    def start(self) -> None:
        """Start the processes, all at once, unless they run."""
        with self._lock, _no_interrupts():
            if not all(worker.process.is_alive() for worker in self._started):
                self._clear()
            while len(self._started) < self.count:
                worker = _Worker(self._transform)
                self._started.append(worker)
                self._idle.put(worker)

    def work(self, batches: list[Batch]) -> Outcome:
        """Have batches transformed by a worker; from as many threads as there are workers."""
        worker = self._idle.get()
        outcome = worker.ask(batches)
        with self._lock:
            if worker in self._started:  # else they were ended meanwhile
                self._idle.put(worker)
        return outcome

    def close(self) -> None:
        """End the processes, whatever they do; they start again when they are needed."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        _end(self._started)
        self._idle = queue.SimpleQueue()


class _Worker:
    def __init__(self, transform: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, transform), name="batchloom-transform", daemon=True
        )
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def ask(self, batches: list[Batch]) -> Outcome:
        try:
            self._pipe.send_bytes(packed(batches))
            outcome: Outcome = unpacked(self._pipe.recv_bytes())
        except (EOFError, OSError):
            return Outcome([], self._gone(batches))
        return outcome

    def _gone(self, batches: list[Batch]) -> BatchloomError:
        self.process.join(_SECONDS_TO_END)
        first, last = batches[0], batches[-1]
        return BatchloomError(
            f"A worker process of transform_workers ended with exit code {self.process.exitcode} "
            f"while it transformed epoch {first.epoch}, step {first.step}, micro {first.micro} to "
            f"epoch {last.epoch}, step {last.step}, micro {last.micro}. Where that is -9, memory "
            "ran out: use fewer workers."
        )

    def end(self) -> None:
        self.process.terminate()
        self._pipe.close()

    def join(self) -> None:
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
    for worker in workers:
        worker.join()
    workers.clear()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Let what is started here never see Ctrl-C, which goes to all processes of a terminal."""
    resource_tracker.ensure_running()  # which would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the worker --------------------------------------------------------------------------------


def _serve(pipe: Connection, pickled: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # the workers are the threads
    threading.Thread(target=_end_with_parent, name="batchloom-parent", daemon=True).start()
    try:
        transform = pickle.loads(pickled)
    except Exception as error:
        transform = _Unusable(error)
    while True:
        try:
            batches = unpacked(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            pipe.send_bytes(_answer(transform, batches))
        except OSError:
            return


def _end_with_parent() -> None:
    """End this process when its parent is gone, in the middle of a transform, too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(transform: Transform, batches: list[Batch]) -> bytes:
    outcome = apply(transform, batches)
    if outcome.error is not None:
        outcome = outcome._replace(error=_portable(outcome.error))
    try:
        return packed(outcome)
    except Exception as error:
        first = batches[0]
        refused = ParameterError(
            f"What the transform made of epoch {first.epoch}, step {first.step}, micro "
            f"{first.micro} cannot be sent from its worker process: {error}. Return tensors, "
            "arrays or a Batch, or use transform_threads."
        )
        return packed(Outcome([], refused))


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        notes = getattr(error, "__notes__", [])
        error = BatchloomError(f"{type(error).__name__}: {error}")
        for note in notes:
            error.add_note(note)
    error.add_note(f"In the worker process:\n{text}")
    return error


class _Unusable:
    """Stands for a transform that cannot be imported in the worker."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, _: Batch) -> Any:
        raise ParameterError(
            "The 'transform' parameter must be importable in a worker process; there: "
            f"{type(self._error).__name__}: {self._error}. Define it in a module, not in an "
            "interactive session."
        )


# --- messages -------------------------------------------------------------------------------------


def packed(value: Any) -> bytes:
    """Pickle a value; of a tensor or Arrow array only what it shows, not what it is a view of."""
    out = io.BytesIO()
    _Pickler(out, protocol=5).dump(value)
    return out.getvalue()


def unpacked(message: bytes) -> Any:
    return pickle.loads(message)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.device.type == "cpu" and not value.is_nested:
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            return _tensor, (flat.numpy(), value.dtype, tuple(value.shape))
        if isinstance(value, Batch):
            return batch_of, (value.values_by_name(),)
        if isinstance(value, pa.Array):
            batch = pa.record_batch([value], ["a"])
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            return _array, (sink.getvalue().to_pybytes(),)
        return NotImplemented


def _tensor(flat: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(flat).view(dtype).reshape(shape)


def _array(stream: bytes) -> pa.Array:
    return pa.ipc.open_stream(stream).read_next_batch().column(0)
