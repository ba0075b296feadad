"""What a run has spent: tokens, FLOPs, seconds and bytes, by purpose.

    ledger = Ledger()
    ledger.add("probes", tokens=51200, flops=3e12, seconds=4.1)
    ledger.overhead()  # FLOPs of deciding over FLOPs of training

Seconds are those of the workers, summed over them; bytes are what was put into the object store or
written as checkpoints. `idle` are the seconds in which the main run's workers had nothing to do because a
decision was being made: the wall time of every decision, less what was trained meanwhile, times the workers.
Self-distillation's `answers` are tokens that the student generated (prompts read for it included), `teacher` those that
its teacher scored: they are training, as `main` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TRAINING = ("main", "answers", "teacher")
UNITS = ("tokens", "flops", "seconds", "bytes")
DECIDING = ("probes", "search", "fit")
PURPOSES = (*TRAINING, *DECIDING, "evaluation", "idle")


class Ledger:
    """Sums per purpose and unit.

    Args:
        entries: sums to go on from, as `to_dict` gave them.
    """

    def __init__(self, entries: dict[str, dict[str, float]] | None = None) -> None:
        entries = entries or {}
        self._sums = {
            purpose: {unit: float(entries.get(purpose, {}).get(unit, 0.0)) for unit in UNITS}
            for purpose in PURPOSES
        }

    def add(self, purpose: str, **amounts: float) -> None:
        """Add amounts by unit (`tokens`, `flops`, `seconds`, `bytes`) to one purpose."""
        for unit, amount in amounts.items():
            self._sums[purpose][unit] += float(amount)

    def merge(self, other: Ledger) -> None:
        """Add all of another ledger's amounts."""
        for purpose in other:
            self.add(purpose, **other[purpose])

    def overhead(self) -> float:
        """FLOPs of probes, search and fit over those of training; 0 before any training."""
        deciding, training = (
            sum(self._sums[purpose]["flops"] for purpose in kind) for kind in (DECIDING, TRAINING)
        )
        return deciding / training if training else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Every sum, by purpose and unit."""
        return {purpose: dict(units) for purpose, units in self._sums.items()}

    def __getitem__(self, purpose: str) -> dict[str, float]:
        return dict(self._sums[purpose])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)
