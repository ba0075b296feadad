"""Notices that a machine will be taken away: a spot machine's last minutes, or `ray drain-node`."""

from __future__ import annotations

import time

import ray.train

_LOOK = 1.0  # seconds between two looks


class Notice:
    """Tells the workers of a segment, all in the same step, that a checkpoint is due before a machine goes.

    One look is an exchange between all workers, so rank 0 says when the next is due, in an exchange that every step
    has anyway.
    """

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._going: set[str] = set()  # machines that were told to go
        self.pending = False  # one of them was, and no checkpoint was written since

    def due(self, rank: int) -> bool:
        """Whether rank 0 wants to look; always false on the others."""
        return rank == 0 and time.monotonic() - self._looked > _LOOK

    def look(self) -> None:
        """See whether a machine of this segment was told to go; to be called by all workers together."""
        self._looked = time.monotonic()
        info = getattr(ray.train, "get_preemption_info", None)  # Ray before 2.60 has none
        found = info() if info is not None else None
        going = set() if found is None else set(found.preempted_node_ids)
        self.pending = not going <= self._going
        self._going |= going
