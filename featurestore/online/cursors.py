"""How far the pushes of a version have been written: each server says it itself, in a number that is lost with its rows."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.online.keys import cursor
from featurestore.online.loading import number_at, scripted
from featurestore.online.scripts import ADVANCE, ADVANCE_SHA
from featurestore.online.topology import Endpoint, Topology

__all__ = ["Cursors", "advance", "cursors", "put_cursors"]


@dataclass(frozen=True)
class Cursors:
    """The cursor of each node, as it was read."""

    nodes: dict[Endpoint, int | None]

    @property
    def until(self) -> int | None:
        """The arrival until which all nodes have all pushes; none if one does not say."""
        found = [each for each in self.nodes.values() if each is not None]
        return min(found) if len(found) == len(self.nodes) else None


def cursors(topology: Topology, uid: str) -> Cursors:
    """Return the cursors of a version."""
    layout = topology.layout()
    return Cursors({each: number_at(topology.client(each), cursor(uid, layout.first_slot(each))) for each in layout.endpoints})


def advance(topology: Topology, uid: str, before: Cursors, arrival: int) -> bool:
    """Move the cursors to an arrival where they are what they were: one that is not was lost, and its rows with it."""
    layout = topology.layout()
    moved = [
        scripted(
            topology.client(each),
            ADVANCE,
            ADVANCE_SHA,
            1,
            cursor(uid, layout.first_slot(each)),
            "" if was is None else was,
            arrival,
        )
        for each, was in before.nodes.items()
        if each in layout.endpoints
    ]
    return len(moved) == len(layout.endpoints) and all(moved)


def put_cursors(topology: Topology, uid: str, arrival: int | None) -> None:
    """Set the cursors to an arrival, or remove them."""
    layout = topology.layout()
    for each in layout.endpoints:
        client, key = topology.client(each), cursor(uid, layout.first_slot(each))
        client.delete(key) if arrival is None else client.set(key, arrival)
