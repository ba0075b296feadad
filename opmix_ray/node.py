"""Where on a cluster a task or an actor is to be."""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """The machine with an id, and no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def here() -> NodeAffinitySchedulingStrategy:
    """This machine: an actor that serves a driver goes with no other."""
    return on(ray.get_runtime_context().get_node_id())
