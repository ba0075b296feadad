"""Where the evaluators of a search find its arrays, for as long as the search lasts.

Tune keeps what `tune.with_parameters` is given until the driver ends, and with it everything that it refers to: the
weights of every decision of a run would stay in the object store. A shelf can be cleared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from opmix_ray.node import here


@ray.remote(num_cpus=0)
class Shelf:
    """Holds references into the object store."""

    def __init__(self, references: Sequence[Any]) -> None:
        self._references = list(references)

    def take(self) -> list[Any]:
        """The references."""
        return self._references


def shelve(references: Sequence[Any]) -> Any:
    """A handle of a shelf with object references, on the driver's machine; it is cleared by `ray.kill`."""
    return Shelf.options(scheduling_strategy=here()).remote(references)  # type: ignore[attr-defined]
