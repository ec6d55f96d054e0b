"""Unified tensors: host tables whose rows are asked for on the GPU and come there by themselves.

    >>> table = UnifiedTensor.from_tensor(features)        # features: a CPU tensor
    >>> rows = table[ids]                                  # ids on CUDA: rows on CUDA, zero copy
    >>> future = table.gather_rows_async(next_ids)         # on a stream beside the training's
    >>> rows = future.wait()

Rows go where `placement` says: to the CPU for CPU ids, to the GPU for CUDA ids or an `out` there.
How they go is the backend's business (`backends`); `backend` and `backend_reason` tell.

A row that does not exist raises `RowIndexError`, an `IndexError` that names the first bad id, and
nothing is written for it. CPU ids are checked before anything starts. CUDA ids are checked on the
GPU, so the error comes from `GatherFuture.wait`, which `gather_rows` calls.

A unified tensor belongs to the process that made it. It is pickled by the path that it was read
from, never by content, and in a forked child it raises an error instead of touching CUDA.
"""

from __future__ import annotations

import os
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from ..dataplane.errors import (
    HostRegistrationError,
    ReleasedTableError,
    UnifiedAccessUnavailable,
)
from .backends import Backend, BackendChoice, Cpu, make_backend, select_backend
from .fast_path import FastPath, fast_path
from .gather import GatherFuture, Job, check_ids, check_output, check_sort, gather
from .host_memory import HostTable
from .mapping import can_be_mapped, map_table
from .placement import resolve_placement
from .registration import HostRegistration
from .row_table import RowTable
from .stats import GatherStats

__all__ = ["UnifiedTensor", "is_unified"]

Sort = Literal["auto"] | bool


class UnifiedTensor:
    """Rows in host memory that a GPU reads. Use one of the ``from_`` constructors.

    Attributes
    ----------
    shape : tuple of int
        (rows, *shape of a row).
    dtype : torch.dtype
    device : torch.device
        Where rows for CUDA ids go; the CPU on a machine without a GPU.
    row_stride : int
        Bytes from a row to the next.
    backend : {'zero_copy', 'alias', 'staged', 'cpu'}
    backend_reason : str
    choice : BackendChoice
        With all that was tried.
    stats : GatherStats
    """

    is_unified = True

    def __init__(self, table: RowTable, choice: BackendChoice, *, forced: bool = False) -> None:
        self._table: RowTable | None = table
        self.shape, self.dtype, self.row_stride = table.shape, table.dtype, table.stride
        self.choice = choice
        self.stats = GatherStats()
        self._cpu: Backend = Cpu()
        self._pid = os.getpid()
        self._origin: tuple[Any, ...] | None = None
        self._registration: HostRegistration | None = None
        self._mapped_choice: BackendChoice | None = None  # what pinning goes back to
        self._fast: FastPath | None = None
        self._use(choice, forced)

    # --- constructors -----------------------------------------------------------------------------

    @classmethod
    def from_tensor(
        cls,
        tensor: torch.Tensor | HostTable,
        *,
        device: str | torch.device | None = None,
        backend: str = "auto",
        copy: Literal["auto", True, False] = "auto",
    ) -> UnifiedTensor:
        """Make a CPU tensor's rows readable for a GPU.

        Parameters
        ----------
        tensor : torch.Tensor or HostTable
            Rows contiguous.
        device : device, optional
            Default: the current GPU where there is one, else the CPU.
        backend : {'auto', 'zero_copy', 'alias', 'staged', 'cpu'}
        copy : {'auto', True, False}
            ``'auto'`` leaves the tensor where it is, kept alive, and later gathers see what is
            written to it; only where a GPU is to read memory that may share its pages with other
            memory (a storage below 64 MiB that is not pinned; see `row_table`) it is copied to a
            `HostTable`, once. ``False`` never copies: such memory is then staged.

        Raises
        ------
        ParameterError
            For a tensor that is not on the CPU or whose rows are not contiguous.
        UnifiedAccessUnavailable
            Where the backend asked for does not work here.
        """
        choice = select_backend(backend, device)
        table = tensor.table if isinstance(tensor, HostTable) else RowTable.of(tensor)
        mapped = choice.name in ("zero_copy", "alias")
        if copy is True or (copy == "auto" and mapped and not can_be_mapped(table)):
            table = HostTable.from_tensor(table.tensor()).table
        return cls(table, choice, forced=backend != "auto")

    @classmethod
    def from_arrow(
        cls,
        column: Any,
        *,
        device: str | torch.device | None = None,
        backend: str = "auto",
        copy: Literal["auto", True, False] = "auto",
        **layout: Any,
    ) -> UnifiedTensor:
        """Make a fixed-width Arrow column readable for a GPU.

        Parameters
        ----------
        column : pyarrow.Array or pyarrow.ChunkedArray
            Numbers, booleans or fixed-size lists of them, without nulls.
        device, backend
            As for `from_tensor`.
        copy : {'auto', True, False}
            ``'auto'`` leaves a column of one chunk where it is, and copies one of several chunks,
            of booleans, or in memory that the driver does not map or that may share its pages (see
            `from_tensor`), to a `HostTable`. ``False`` raises where that would copy.
        **layout
            Of the copy; as for `HostTable.allocate`.

        Raises
        ------
        InvalidValueError, ColumnTypeError
            For nulls, and for rows of variable length.
        UnifiedAccessUnavailable
        """
        return cls._of_column(column, device, backend, copy, layout, mapped=False)

    @classmethod
    def _of_column(
        cls,
        column: Any,
        device: str | torch.device | None,
        backend: str,
        copy: Literal["auto", True, False],
        layout: dict[str, Any],
        *,
        mapped: bool,
    ) -> UnifiedTensor:
        from .arrow_columns import in_place

        choice = select_backend(backend, device)
        table = None if copy is True else in_place(column, mapped=mapped)
        if table is not None:
            try:
                return cls(table, choice, forced=True)
            except UnifiedAccessUnavailable:
                if copy is False:
                    raise
        elif copy is False:
            raise UnifiedAccessUnavailable(
                "This column cannot stay where it is: several chunks, or booleans, which Arrow "
                "keeps as bits, are copied to a host table. Use copy='auto'."
            )
        return cls(HostTable.from_arrow(column, **layout).table, choice, forced=backend != "auto")

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        column: str | None = None,
        *,
        device: str | torch.device | None = None,
        backend: str = "auto",
        copy: Literal["auto", True, False] = "auto",
        **layout: Any,
    ) -> UnifiedTensor:
        """Make a column of an Arrow IPC file readable for a GPU; the file is mapped.

        Parameters
        ----------
        path : path
        column : str, optional
            May be left out where the file holds one column.
        device, backend, copy, **layout
            As for `from_arrow`.
        """
        from .arrow_columns import column_of_file

        values = column_of_file(Path(path), column)
        made = cls._of_column(values, device, backend, copy, layout, mapped=True)
        options = {"device": device, "backend": backend, "copy": copy, **layout}
        made._origin = (os.path.abspath(path), column, options)
        return made

    # --- rows -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> torch.Tensor:
        return self.gather_rows(ids)

    def gather_rows(
        self,
        ids: Any,
        *,
        out: torch.Tensor | None = None,
        sort: Sort = "auto",
        stream: torch.cuda.Stream | None = None,
    ) -> torch.Tensor:
        """Return rows in the order of `ids`, repeats included.

        Parameters
        ----------
        ids : torch.Tensor, array or sequence of int, shape (n,)
            Tensors of int32 or int64 are taken as they are.
        out : torch.Tensor, shape (n, *row_shape), optional
            Contiguous, of the table's type, on the CPU or on `device`; rows go there.
        sort : {'auto', True, False}
            Whether the GPU sorts the ids, so that its threads read the host in order.
        stream : torch.cuda.Stream, optional
            Where GPU work runs; the caller's stream waits for it. Default: the caller's.

        Raises
        ------
        RowIndexError
            An `IndexError` that names the first id that is no row.
        ParameterError
            For ids or an output of the wrong type, shape or device.
        ReleasedTableError, UnifiedAccessUnavailable
            After `release`, and in a forked child.
        """
        if self._fast is not None and sort == "auto" and os.getpid() == self._pid:
            rows = self._fast(ids, out)
            if rows is not None:
                return rows
        check_sort(sort)
        return self._start(check_ids(ids), out, sort, stream, aside=False).wait()

    def gather_rows_async(
        self,
        ids: Any,
        *,
        out: torch.Tensor | None = None,
        sort: Sort = "auto",
        stream: torch.cuda.Stream | None = None,
    ) -> GatherFuture:
        """Start `gather_rows` on a stream of its own and return its future.

        The rows are there after `GatherFuture.wait`. CPU gathers are done on return.
        """
        check_sort(sort)
        return self._start(check_ids(ids), out, sort, stream, aside=True)

    def _start(
        self,
        ids: torch.Tensor,
        out: torch.Tensor | None,
        sort: Sort,
        stream: torch.cuda.Stream | None,
        *,
        aside: bool,
    ) -> GatherFuture:
        job, out = self._job(ids, out)
        if self._fast is None and isinstance(job.backend, Cpu) and out.is_cpu:
            self._fast = fast_path(job.table, self.stats)
        return gather(job, ids, out, sort=sort, stream=stream, aside=aside)

    def _job(self, ids: torch.Tensor, out: torch.Tensor | None) -> tuple[Job, torch.Tensor]:
        """Return how rows for these ids come, and where they go."""
        table = self.table
        place = resolve_placement([self, ids if out is None else out]).compute
        device = torch.device("cpu")
        if place == "cuda":
            other = ids.device if out is None else out.device
            device = self.device if self.device.type == "cuda" else other
        shape = (ids.shape[0], *table.row_shape)
        if out is None:
            out = torch.empty(shape, dtype=self.dtype, device=device)
        check_output(out, shape, self.dtype, device)
        backend = self._backend if device == self.device else self._cpu
        return Job(table, backend, self.stats, self._registration), out

    # --- memory -----------------------------------------------------------------------------------

    @property
    def table(self) -> RowTable:
        """The rows by address.

        Raises
        ------
        ReleasedTableError, UnifiedAccessUnavailable
        """
        if os.getpid() != self._pid:
            raise UnifiedAccessUnavailable(
                "A unified tensor belongs to the process that made it, and this is a forked child: "
                "make it anew here, or send ids to the parent."
            )
        if self._table is None:
            raise ReleasedTableError(
                f"This unified tensor of {len(self):,} rows was released: make a new one."
            )
        return self._table

    @property
    def backend(self) -> str:
        return self._backend.name

    @property
    def backend_reason(self) -> str:
        return self.choice.reason

    @property
    def device(self) -> torch.device:
        return self.choice.device

    @property
    def is_pinned(self) -> bool:
        """Whether the driver has the memory mapped."""
        return self._registration is not None

    @property
    def device_ptr(self) -> int | None:
        """The GPU's address of the first row; None unless the memory is mapped."""
        return None if self._registration is None else self.table.address

    def pin_memory_(self) -> UnifiedTensor:
        """Map the memory for the GPU, where it is; nothing where it is mapped.

        Raises
        ------
        HostRegistrationError, UnifiedAccessUnavailable
        """
        if self._registration is None:
            self._registration = map_table(self.table, self.device)
            self.choice = self._mapped_choice or self.choice
            self._backend = make_backend(self.choice.name, self.device)
        return self

    def unpin_memory_(self) -> UnifiedTensor:
        """Unmap the memory, after the gathers in flight; rows are staged from now on."""
        if self._registration is not None:
            self._registration.release()
            self._registration = None
            if self._backend.mapped:
                self._mapped_choice = self.choice
                self._stage("its memory was unmapped by unpin_memory_().")
        return self

    def release(self) -> None:
        """Unmap the memory and let go of it."""
        self.unpin_memory_()
        self._table = self._fast = None

    def _use(self, choice: BackendChoice, forced: bool) -> None:
        """Take a backend, with the registration that it needs."""
        self._backend = make_backend(choice.name, choice.device)
        if not self._backend.mapped or not self.table.nbytes:
            return
        try:
            self._registration = map_table(self.table, choice.device)
        except HostRegistrationError as error:
            if forced:
                raise UnifiedAccessUnavailable(
                    f"backend='{choice.name}' cannot be used for this memory: {error}"
                ) from error
            self._mapped_choice = choice
            self._stage(str(error))

    def _stage(self, reason: str) -> None:
        self.choice = replace(self.choice, name="staged", reason=reason)
        self._backend = make_backend("staged", self.device)

    # --- elsewhere --------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            raise UnifiedAccessUnavailable(
                "A unified tensor is sent to another process by its path, and this one was not "
                "read from a file: make it with UnifiedTensor.from_file, or make it there."
            )
        return _from_file, self._origin

    def __repr__(self) -> str:
        state = "released" if self._table is None else f"{self.backend} to {self.device}"
        return f"<UnifiedTensor {self.shape} {self.dtype}, {state}>"


def is_unified(value: Any) -> bool:
    """Return whether a value is a unified tensor."""
    return bool(getattr(value, "is_unified", False))


def _from_file(path: str, column: str | None, options: dict[str, Any]) -> UnifiedTensor:
    return UnifiedTensor.from_file(path, column, **options)
