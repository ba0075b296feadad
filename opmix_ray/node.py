"""Where on a cluster a task or an actor is to be, and the small actors that serve a driver.

They stand here, where nothing but Ray is imported: an actor's process imports the module that its class is from, and
beside the training loop that would be Torch, transformers and all that they bring, for a list of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """The machine with an id, and no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def here() -> NodeAffinitySchedulingStrategy:
    """This machine: an actor that serves a driver goes with no other."""
    return on(ray.get_runtime_context().get_node_id())


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
class Holder:
    """Holds references into the object store for as long as a search lasts; it is cleared by `ray.kill`.

    Tune keeps what `tune.with_parameters` is given until the driver ends, and with it everything that it refers to: the
    weights of every decision of a run would stay in the object store. A holder can be cleared.
    """

    def __init__(self, references: Sequence[Any]) -> None:
        self._references = list(references)

    def take(self) -> list[Any]:
        """The references."""
        return self._references


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
