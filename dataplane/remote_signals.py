"""Signals that a training sends to the selection service.

    >>> with SignalStore.for_writing("http://127.0.0.1:8765/runs/first", plan) as store:
    ...     for epoch in range(8):
    ...         loader.set_epoch(epoch)
    ...         for batch in loader:
    ...             losses = ...
    ...             store.append(batch.rows, epoch=epoch, step=batch.step, loss=losses)
    ...         store.seal(epoch)  # every rank: the next epoch is planned from what all have sent

What is appended is collected and sent as for a store of files (`signal_writer`): in parts, by a
thread, each part numbered. A part that was not acknowledged is sent again under its number, with
the same bytes; so the service holds it once, whatever broke in between. `flush` returns when the
service has made all of it durable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from .errors import ParameterError, SignalError
from .observations import Observations
from .remote_client import ServiceClient
from .remote_wire import run_address
from .rowset import RowSet
from .signal_binding import snapshot_given
from .signal_parts import SignalPart, part_bytes
from .signal_writer import SignalWriter
from .signals import SignalStore
from .snapshot import Snapshot
from .storage import Location

__all__ = ["RemoteSignals", "open_remote_signals"]

_PART_BYTES = 16 << 20
_KEY_BYTES = 24  # of an observation, its value left out


def open_remote_signals(
    address: str,
    dataset: Any,
    *,
    writer: int = 0,
    attempt: int | None = None,
    part_rows: int = 1 << 18,
    flush_seconds: float = 10.0,
    storage_options: Mapping[str, Any] | None = None,
) -> RemoteSignals:
    """Open the signals of a run for appending; see `SignalStore.for_writing`.

    Raises
    ------
    DatasetChangedError
        Where the run belongs to another dataset.
    """
    where = run_address(address)
    client, snapshot = ServiceClient.of(where, storage_options), snapshot_given(dataset)
    if attempt is None:
        body = json.dumps({"fingerprint": snapshot.fingerprint}).encode()
        told = client.request("POST", f"/v1/runs/{where.run}/attempts", body=body).json()
        attempt = int(told["attempt"])
    location = Location(address.rstrip("/"))
    writes = _RemoteWriter(
        client,
        f"/v1/runs/{where.run}",
        location,
        RowSet(snapshot),
        writer=writer,
        attempt=attempt,
        part_rows=part_rows,
        seconds=flush_seconds,
    )
    return RemoteSignals(location, snapshot, writes, attempt, rank=writer)


class RemoteSignals(SignalStore):
    """The signals of a run, for appending; they are read where the service keeps them."""

    def __init__(
        self,
        location: Location,
        snapshot: Snapshot,
        writer: _RemoteWriter,
        attempt: int,
        *,
        rank: int,
    ) -> None:
        super().__init__(location, snapshot, writer, attempt)
        self._remote, self._rank = writer, rank

    def seal(self, epoch: int, *, world: int | None = None) -> bool:
        """Say that this rank has sent all that it will send of an epoch and those before it.

        When the last of the ranks has said so, the service plans the next epoch. May be repeated.

        Parameters
        ----------
        epoch : int
        world : int, optional
            Ranks that send signals. Default: those of torch.distributed where it runs, else 1.

        Returns
        -------
        bool
            Whether all ranks have.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ParameterError(
                f"The 'epoch' parameter must be an int of at least 0. Got {epoch!r} instead."
            )
        self.flush()
        body = {
            "attempt": self.attempt,
            "rank": self._rank,
            "world": _world_size() if world is None else world,
            "parts": self._remote.sent,
        }
        return self._remote.seal(epoch, body)

    @property
    def signals(self) -> tuple[str, ...]:
        raise self._not_here()

    def parts(self, signal: str = "loss") -> list[SignalPart]:
        raise self._not_here()

    def _not_here(self) -> SignalError:
        return SignalError(
            f"The signals of {self.location} are read where the service runs: SignalStore.open of "
            "the folder 'signals' in the run's folder."
        )


class _RemoteWriter(SignalWriter):
    """Sends the parts that are made.

    Attributes
    ----------
    sent : dict of str to int
        Parts of each signal that the service has acknowledged.
    """

    def __init__(self, client: ServiceClient, route: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._client, self._route = client, route
        self.sent: dict[str, int] = {}
        self._waiting: tuple[Observations, list[bytes]] | None = None  # of one part, in pieces

    def _write_part(self, name: str, observed: Observations) -> None:
        if self._waiting is None or self._waiting[0] is not observed:
            self._waiting = observed, self._pieces(name, observed)
        pieces = self._waiting[1]
        while pieces:  # what fails is sent again, under its number, when the thread tries again
            number = self.sent.get(name, 0)
            place = f"{self._attempt}/{self._writer}/{number}"
            self._client.request(
                "PUT",
                f"{self._route}/signals/{name}/{place}",
                body=pieces[0],
                headers={"Content-Type": "application/vnd.apache.arrow.file"},
            )
            self.sent[name] = number + 1
            del pieces[0]
        self._waiting = None

    def _pieces(self, name: str, observed: Observations) -> list[bytes]:
        step = max(1, _PART_BYTES // (_KEY_BYTES + 4 * max(1, observed.width)))
        first = self.sent.get(name, 0)
        return [
            part_bytes(
                observed.take(slice(start, start + step)),
                writer=self._writer,
                sequence=first + number,
                attempt=self._attempt,
            )[1].to_pybytes()
            for number, start in enumerate(range(0, len(observed), step))
        ]

    def seal(self, epoch: int, body: Mapping[str, Any]) -> bool:
        answer = self._client.request(
            "POST", f"{self._route}/epochs/{epoch}/seal", body=json.dumps(body).encode()
        )
        return bool(answer.json()["state"] == "sealed")


def _world_size() -> int:
    torch = sys.modules.get("torch")
    distributed = None if torch is None else getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())
