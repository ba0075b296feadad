"""Two objectives: every group weighs the same, however many sets it has; or the set of greatest loss decides alone.

Used with `evaluation: {objective: by-group}` and `evaluation: {objective: worst}`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from opmix_ray.config import SourceConfig


def by_group(sets: Mapping[str, SourceConfig]) -> dict[str, float]:
    """Weight of each evaluation set; a set without a group is a group of its own."""
    groups = {name: source.group or name for name, source in sets.items()}
    sizes = Counter(groups.values())
    return {name: 1 / sizes[group] for name, group in groups.items()}


def worst(sets: Mapping[str, SourceConfig]) -> Callable[[Mapping[str, float]], float]:
    """From losses by set to the greatest of them, nats per token."""
    return lambda losses: max(losses.values())
