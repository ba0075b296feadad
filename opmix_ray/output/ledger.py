"""What a run has spent, by purpose; and when, where and by which command it was worked on (sessions.json).

    ledger = Ledger()
    ledger.add("probes", tokens=51200, flops=3e12, seconds=4.1)
    ledger.overhead()  # FLOPs of deciding over FLOPs of training

Seconds are those of the workers, summed over them; bytes are what was put into the object store or
written as checkpoints. `idle` are the seconds in which the main run's workers had nothing to do because a
decision was being made: the wall time of every decision, less what was trained meanwhile, times the workers.
Self-distillation's `answers` are tokens that the student generated (prompts read for it included), `teacher` those that
its teacher scored: they are training, as `main` is.

session = Session(storage)
session.save()                # after every step of the plan: seconds so far
"""

from __future__ import annotations

import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.harmless import HIDDEN, in_text, is_secret
from opmix_ray.storage import Storage

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


SESSIONS = "sessions.json"


class Session:
    """This process's work on a run; what earlier ones wrote is kept.

    Args:
        storage: the run's output.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._start = storage, time.monotonic()
        self._before = read_sessions(storage)
        self._entry = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "command": command_line(sys.argv),
        }
        self.save()

    def save(self) -> None:
        """Write the file, with the wall seconds that have passed."""
        seconds = round(time.monotonic() - self._start, 1)
        self._storage.write_json(SESSIONS, [*self._before, {**self._entry, "seconds": seconds}])


def read_sessions(storage: Storage) -> list[dict[str, Any]]:
    """Every entry, in order; what cannot be read is left out, since nothing of a run depends on it."""
    try:
        found = storage.read_json(SESSIONS) if storage.exists(SESSIONS) else []
    except UserError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def command_line(arguments: Sequence[str]) -> str:
    """A command as one would type it, with secrets hidden: `opmix run mine.yaml --set watch.wandb.api_key=***`."""
    program, *rest = arguments or ["python"]
    return " ".join([Path(program).name, *(shlex.quote(_safe(word)) for word in rest)])


def _safe(word: str) -> str:
    key, mark, value = word.partition("=")
    if mark and value and is_secret(key.rpartition(".")[2].lstrip("-")):
        return f"{key}={HIDDEN}"
    return in_text(word)
