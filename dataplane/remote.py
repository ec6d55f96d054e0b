"""The plan of a run that the selection service keeps, as if its files were here.

    >>> plan = open_plan("http://127.0.0.1:8765/runs/first")
    >>> for batch in ManifestLoader(plan, "data/"): ...

A run is a series: it gains a member a plan. Headers come whole, and are checked by their own
hashes, as those of files are; micro-batches come in ranges, a few of them ahead of who reads
(`remote_ranges`), so that as much is under way at most. A range is a pure function of (manifest id,
epoch, from, to): whoever jumps asks for another one, and a service that was restarted gives the
same.

``verify="all"`` compares each epoch's logical digest with what the header promises; ranges have
checksums of their own (`remote_wire`).
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from .canonical import known_fields
from .epoch_count import recount
from .epochs import Epoch, EpochRecord
from .errors import BatchloomError, ManifestCorruptError, ManifestError, ServiceError
from .manifest import Manifest
from .manifest_header import malformed, read_header
from .manifest_part import PartRecord, part_schema
from .plan import BatchPlan, SideColumn
from .remote_client import ServiceClient
from .remote_ranges import RangeReader
from .remote_wire import run_address
from .series import Series
from .storage import Location

__all__ = ["RemoteEpoch", "RemoteManifest", "RemoteSeries", "open_remote"]

_LONGEST_POLL = 25.0
_TELL_SECONDS = 5.0


def open_remote(
    address: str,
    *,
    verify: Literal["header", "all"] = "header",
    storage_options: Mapping[str, Any] | None = None,
) -> RemoteSeries:
    """Open a run of a service; see `series.open_plan`."""
    series = RemoteSeries(address, storage_options=storage_options)
    if not series.ranges:
        series.look_for(0, _LONGEST_POLL)
    if not series.ranges:
        raise ManifestError(
            f"{series.path} holds no plan yet: it is being made. Try again in a moment."
        )
    if verify == "all":
        series.verify()
    return series


class RemoteSeries(Series):
    """The manifests of a run, opened as they are asked for."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.address = run_address(path)
        self.client = ServiceClient.of(self.address, storage_options)
        self._ids: dict[tuple[int, int], str] = {}
        self._told = -math.inf
        super().__init__(os.fspath(path).rstrip("/"), storage_options=storage_options)

    def _route(self) -> str:
        return f"/v1/runs/{self.address.run}"

    def refresh(self) -> None:
        """Ask for members that were added."""
        self._take(self.client.get(self._route()).json())

    def look_for(self, epoch: int, seconds: float = 1.0) -> None:
        """Wait some seconds for the member that holds an epoch.

        Raises
        ------
        ManifestError
            Where planning it has failed.
        """
        seconds = max(0.0, min(seconds, _LONGEST_POLL))
        answer = self.client.get(f"{self._route()}/epochs/{epoch}?wait={seconds:g}").json()
        if answer["state"] == "failed":
            raise ManifestError(
                f"Epoch {epoch} of {self.path} could not be planned: {answer['error']} Mend that, "
                f"then ask for it again: POST {self._route()}/epochs/{epoch}/retry."
            )
        if answer["state"] == "ready":
            self.refresh()

    def tell(self, note: Callable[[], dict[str, Any]], *, last: bool = False) -> None:
        """Let the service know where a rank stands; now and again, and whether it listens or not.

        Parameters
        ----------
        note : callable
            Returns rank, world, epoch, step, samples, seconds and waited_seconds.
        last : bool
            Say it in any case.
        """
        now = time.monotonic()
        if last or now - self._told >= _TELL_SECONDS:
            self._told = now
            with suppress(BatchloomError):  # where it waits for its first epoch it stands nowhere
                threading.Thread(target=self._send, args=(note(),), daemon=True).start()

    def _send(self, note: dict[str, Any]) -> None:
        path = f"{self._route()}/ranks/{note.pop('rank')}"
        self.client.send_once("PUT", path, json.dumps(note).encode())

    def _take(self, told: Mapping[str, Any]) -> None:
        try:
            found = {(int(m["start"]), int(m["stop"])): str(m["id"]) for m in told["members"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceError(
                f"{self.path} did not answer as a selection service does; check the address."
            ) from error
        changed = [r for r, i in self._ids.items() if found.get(r) != i]
        if changed:
            raise ManifestError(
                f"{self.path} is another run than it was: epochs {changed[0][0]} to "
                f"{changed[0][1] - 1} have another plan. Open it anew."
            )
        self._ids = found
        self.ranges = sorted(found)

    def _opened(self, start: int, stop: int) -> Manifest:
        if (start, stop) not in self._members:
            manifest = RemoteManifest.fetch(self.client, self._ids[start, stop])
            self._members[start, stop] = manifest
        return self._members[start, stop]


@dataclass(frozen=True)
class _Fetched(Location):
    """The place of a header that has been fetched, whose bytes are at hand."""

    data: bytes = b""

    def join(self, relative: str) -> Location:
        return self

    def read_bytes(self) -> bytes:
        return self.data


class RemoteManifest(Manifest):
    """A manifest whose micro-batches come from a service."""

    def __init__(self, client: ServiceClient, path: str, header: Mapping[str, Any]) -> None:
        # Not the base's: its files are the service's, which checks them as it reads them.
        self.path = path
        self.location = Location(path)
        self.client = client
        self.manifest_id = header["manifest_id"]
        self.identity = header["identity"]
        self.provenance = header["provenance"]
        self.seed = self.identity["seed"]
        self.unit = self.identity["unit"]
        self.weight_semantics = self.identity["weight_semantics"]
        self.side_columns = tuple(
            known_fields(SideColumn, c) for c in self.identity["side_columns"]
        )
        records = [EpochRecord.from_json(e) for e in self.identity["epochs"]]
        self.records = {record.epoch: record for record in records}
        self.parts = [PartRecord.from_json(p) for p in self.provenance["parts"]]
        self._readers = []
        self._bitmaps = {}
        self._open: dict[int, RemoteEpoch] = {}

    @classmethod
    def fetch(cls, client: ServiceClient, manifest_id: str) -> RemoteManifest:
        """Ask for a manifest's header, and check it.

        Raises
        ------
        ManifestCorruptError, ManifestVersionError, ServiceError
        """
        place = f"{client.service}/v1/manifests/{manifest_id}"
        data = client.get(f"/v1/manifests/{manifest_id}").data
        folder = _Fetched(place, data=data)
        header = read_header(folder)
        if header["manifest_id"] != manifest_id:
            raise ManifestCorruptError(
                f"{place}: expected manifest id {manifest_id}, found {header['manifest_id']}."
            )
        with malformed(folder):
            return cls(client, place, header)

    def epoch(self, number: int) -> Epoch:
        if number not in self.records:
            held = ", ".join(map(str, self.epochs))
            raise ManifestError(f"{self.path} holds no epoch {number}; it holds {held}.")
        if number not in self._open:
            self._open[number] = RemoteEpoch(self, self.records[number])
        return self._open[number]

    def verify(self, *, deep: bool = False) -> None:
        """Read every epoch once and compare it with its logical digest."""
        for number, record in self.records.items():
            if record.logical_digest is None:
                continue
            found = self.epoch(number).digest()
            if found != record.logical_digest:
                raise ManifestCorruptError(
                    f"{self.path}, epoch {number}: expected logical digest "
                    f"{record.logical_digest}, found {found}."
                )
        if deep:
            recount(self)


class RemoteEpoch(Epoch):
    """An epoch whose micro-batches come in ranges."""

    def __init__(self, manifest: RemoteManifest, record: EpochRecord) -> None:
        super().__init__(record, manifest.side_columns)
        # The jump index; a recipe has none, and needs none.
        jump = [b for p in manifest.parts if p.epoch == record.epoch for b in p.blocks]
        self._ends = list(accumulate(b.micro_batches for b in jump))
        self._first_steps = [b.first_step for b in jump]
        if record.recipe is None and self._ends[-1:] != [record.micro_batches]:
            raise ManifestCorruptError(
                f"{manifest.path}, epoch {record.epoch}: expected {record.micro_batches} "
                f"micro-batches, the parts list {sum(self._ends[-1:])}. Plan anew."
            )
        schema = part_schema(manifest.weight_semantics is not None, manifest.side_columns)
        route = f"/v1/manifests/{manifest.manifest_id}/epochs/{record.epoch}/batches"
        self._ranges = RangeReader(manifest.client, route, record, schema)

    def _at(self, index: int) -> tuple[BatchPlan, int]:
        first, received = self._ranges.range_of(index)
        return received.plan, index - first

    def run(self, start: int, count: int) -> BatchPlan:
        self._ranges.expect(start)
        return super().run(start, count)

    def _plan(self, start: int, stop: int) -> BatchPlan:
        self._ranges.expect(start)
        return super()._plan(start, stop)

    def blocks(self) -> Iterator[BatchPlan]:
        ends = self._ends
        if self.record.recipe is not None:
            size = self._ranges.size
            ends = [*range(size, len(self), size), len(self)]
        for start, stop in zip([0, *ends], ends, strict=False):
            yield self.plan(start, stop)

    def find_step(self, step: int) -> int:
        record = self.record
        if record.recipe is not None:
            return min(step * record.recipe.micro_per_step, len(self))
        if step <= self._first_steps[0]:
            return 0
        # The last block that begins before the step: it begins in there or with the next block.
        block = bisect_left(self._first_steps, step) - 1
        low = self._ends[block - 1] + 1 if block else 1
        return self._search(step, low, self._ends[block])

    def _search(self, step: int, low: int, high: int) -> int:
        """Return the first index from `low` to `high` whose step is at or after `step`."""
        # Most plans have as many micro-batches in every step: there it stands where it should.
        guess = min(max(step * len(self) // self.record.steps, low), high)
        for first, plan in self._ranges.at_hand():
            a, b = max(low, first), min(high, first + len(plan))
            if a < b and plan.step[a - first] < step <= plan.step[b - 1 - first]:
                return first + bisect_left(plan.step, step, a - first, b - first)
        if self._step(guess - 1) < step and (guess == high or self._step(guess) >= step):
            return guess
        while low < high:
            middle = (low + high) // 2
            if self._step(middle) < step:
                low = middle + 1
            else:
                high = middle
        return low

    def _step(self, index: int) -> int:
        plan, k = self._at(index)
        return plan.step.item(k)

    def rows_before(self, index: int) -> int:
        if index >= len(self):
            return self.record.samples
        first, received = self._ranges.range_of(index)
        return received.rows_before + int(received.plan.offsets[index - first])
