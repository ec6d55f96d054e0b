"""Seals: which rank has sent all its signals of an epoch, and which epochs are complete.

``rank-<epoch>-<attempt>-<world>-<rank>.json`` is written when a rank says that it is done with an
epoch and the parts that it counts are there; ``epoch-<epoch>.json`` when all ranks of one attempt
have said so. Both are written once and never changed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...dataplane.canonical import pretty_json
from ...dataplane.commit import create_file
from ...dataplane.storage import locate
from .refusals import RefusedError

__all__ = ["Seals"]

_RANK = re.compile(r"rank-(\d{6})-(\d{5})-(\d{5})-(\d{5})\.json")
_EPOCH = re.compile(r"epoch-(\d{6})\.json")


class Seals:
    """The seals of a run, in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sealed: dict[int, dict[str, Any]] = {}
        self._ranks: dict[tuple[int, int], dict[int, set[int]]] = {}  # (epoch, attempt): by world
        for name, _ in locate(folder).entries():
            if found := _EPOCH.fullmatch(name):
                self._sealed[int(found[1])] = json.loads((folder / name).read_bytes())
            elif found := _RANK.fullmatch(name):
                epoch, attempt, world, rank = map(int, found.groups())
                self._ranks.setdefault((epoch, attempt), {}).setdefault(world, set()).add(rank)
        for (epoch, attempt), worlds in self._ranks.items():
            for world, ranks in worlds.items():  # of a service that was killed in between
                if len(ranks) == world and epoch not in self._sealed:
                    self._complete(epoch, attempt, world)

    def sealed(self, epoch: int) -> dict[str, Any] | None:
        """Return what is known of a complete epoch."""
        return self._sealed.get(epoch)

    def all_sealed(self) -> list[int]:
        return sorted(self._sealed)

    def seal(
        self, epoch: int, attempt: int, rank: int, world: int, parts: Mapping[str, int]
    ) -> list[int]:
        """Take a rank's word that it is done with an epoch; return the ranks that are not."""
        with self._lock:
            if epoch in self._sealed:
                return []
            worlds = self._ranks.setdefault((epoch, attempt), {})
            other = [w for w in worlds if w != world]
            if other:
                raise RefusedError(
                    409,
                    f"Rank {rank} says that epoch {epoch} has {world} ranks; another rank of "
                    f"attempt {attempt} said {other[0]}.",
                )
            body = {"parts": dict(sorted(parts.items()))}
            name = f"rank-{epoch:06d}-{attempt:05d}-{world:05d}-{rank:05d}.json"
            create_file(locate(self._folder / name), pretty_json(body), "Sealing an epoch")
            ranks = worlds.setdefault(world, set())
            ranks.add(rank)
            missing = sorted(set(range(world)) - ranks)
            if not missing:
                self._complete(epoch, attempt, world)
            return missing

    def _complete(self, epoch: int, attempt: int, world: int) -> None:
        body = {"attempt": attempt, "world": world}
        place = locate(self._folder / f"epoch-{epoch:06d}.json")
        create_file(place, pretty_json(body), "Sealing an epoch")
        self._sealed[epoch] = body
