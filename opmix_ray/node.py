"""Where on a cluster a task or an actor is to be, and the small actors that serve a driver.

They stand here, where nothing but Ray is imported: an actor's process imports the module that its class is from, and
beside the training loop that would be Torch, transformers and all that they bring, for a list of rows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # "0": nobody takes machines away, as of a Ray of our own


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """The machine with an id, and no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def here() -> NodeAffinitySchedulingStrategy:
    """This machine: an actor that serves a driver goes with no other."""
    return on(ray.get_runtime_context().get_node_id())


def use_own_threads() -> None:
    """Compute with as many threads as Ray gave this worker, also where Torch was there before Ray said how many."""
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdecimal() and int(asked):
        torch.set_num_threads(int(asked))


@ray.remote(num_cpus=0)
class Reporter:
    """Holds what rank 0 reports until the driver takes it; on the driver's machine, so that it goes with no other."""

    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Note an error that would come again; the first counts."""
        self._error = self._error or error

    def failed(self) -> Exception | None:
        """The error that was noted."""
        return self._error

    def push(self, kind: str, payload: dict[str, Any]) -> None:
        """Add one event."""
        self._events.append((kind, payload))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        """Take all events, oldest first."""
        events, self._events = self._events, []
        return events


@ray.remote(num_cpus=0)
class Desk:
    """Where the evaluators of a search find its arrays and, turn by turn, what they are to score.

    Tune keeps what `tune.with_parameters` is given until the driver ends, and with it everything that it refers to: the
    weights of every decision of a run would stay in the object store. A desk is cleared by `ray.kill`.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = list(arrays)
        self._turns: dict[str, asyncio.Future[Any]] = {}

    async def arrays(self) -> list[Any]:
        """References into the object store."""
        return self._arrays

    async def give(self, turn: str, work: Any) -> None:
        """Put down the work of a turn."""
        self._turn(turn).set_result(work)

    async def take(self, turn: str) -> Any:
        """The work of a turn, as soon as it is there."""
        work = await self._turn(turn)
        self._turns.pop(turn, None)
        return work

    def _turn(self, turn: str) -> asyncio.Future[Any]:
        return self._turns.setdefault(turn, asyncio.get_running_loop().create_future())


@ray.remote(num_cpus=0)
class Over:
    """Whether nobody wants more of what workers make; they ask before they give one."""

    def __init__(self) -> None:
        self._over = False

    def say(self) -> None:
        """Nobody does."""
        self._over = True

    def said(self) -> bool:
        """Whether `say` was called."""
        return self._over
