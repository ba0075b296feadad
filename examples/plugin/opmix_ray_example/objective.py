"""An objective: every group weighs the same, however many sets it has.

Used with `evaluation: {objective: by-group}`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from opmix_ray.config import SourceConfig


def by_group(sets: Mapping[str, SourceConfig]) -> dict[str, float]:
    """Weight of each evaluation set; a set without a group is a group of its own."""
    groups = {name: source.group or name for name, source in sets.items()}
    sizes = Counter(groups.values())
    return {name: 1 / sizes[group] for name, group in groups.items()}
