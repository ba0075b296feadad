"""Finished trials: one row each, on disk as soon as it is known, in our own form and in olmix's CSV form."""

from __future__ import annotations

import csv
import io
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from opmix_ray.storage import Storage, read_records

TRIALS = "trials.jsonl"
RATIOS = "ratios.csv"
METRICS = "metrics.csv"
Status = Literal["ok", "nan", "failed"]


@dataclass(frozen=True)
class TrialRow:
    """One scored candidate.

    Args:
        run: `000`, `001`, ... or `proposal`.
        weights: component -> interpolation weight.
        ratios: domain -> share of training tokens it simulates.
        losses: set -> nats per token.
        objective: what is minimised, of these losses; NaN where one of them is.
        status: `ok`; `nan`: a loss is not a number; `failed`: the trial died.
        nats: set -> nats of every sequence.
        targets: set -> target tokens of every sequence.
        slopes: set -> derivative of its loss by every component's weight, in their order; empty where not measured.
    """

    run: str
    weights: dict[str, float]
    ratios: dict[str, float]
    losses: dict[str, float] = field(default_factory=dict)
    objective: float = math.nan
    status: Status = "ok"
    nats: Mapping[str, Sequence[float]] = field(default_factory=dict)
    targets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    slopes: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keep values of sequences in arrays: a fifth of the memory that lists take."""
        object.__setattr__(self, "nats", {name: array("d", values) for name, values in self.nats.items()})
        object.__setattr__(
            self, "targets", {name: array("i", values) for name, values in self.targets.items()}
        )

    @property
    def usable(self) -> bool:
        """Whether a law can be fitted on it."""
        return self.status == "ok"


class RowLog:
    """The rows of one decision, in its directory.

    Args:
        storage: the decision's directory.
        domains: columns of ratios.csv.
        sets: columns of metrics.csv, as `eval_<set>_loss`.
    """

    def __init__(self, storage: Storage, domains: Sequence[str], sets: Sequence[str]) -> None:
        self._storage = storage
        self._domains, self._sets = list(domains), list(sets)
        self.rows = read_records(storage, TRIALS, TrialRow)
        if storage.exists(TRIALS):  # a line that a crash cut off goes
            storage.write_text(TRIALS, "".join(_line(row) for row in self.rows))
        self._write_tables(self.rows, new=True)

    def add(self, row: TrialRow) -> None:
        """Write a row; when this returns, it is on disk."""
        self._storage.append(TRIALS, _line(row))
        self.rows.append(row)
        self._write_tables([row], new=False)

    def sort(self) -> None:
        """Bring the rows into the order of their runs, whichever trial ended first."""
        self.rows.sort(key=lambda row: row.run)
        self._storage.write_text(TRIALS, "".join(_line(row) for row in self.rows))
        self._write_tables(self.rows, new=True)

    def _write_tables(self, rows: Sequence[TrialRow], *, new: bool) -> None:
        ratios = [[row.run, *(repr(row.ratios.get(name, 0.0)) for name in self._domains)] for row in rows]
        metrics = [
            [row.run, *(_number(row.losses.get(name, math.nan)) for name in self._sets)] for row in rows
        ]
        if new:
            ratios.insert(0, ["run", *self._domains])
            metrics.insert(0, ["run", *(f"eval_{name}_loss" for name in self._sets)])
            self._storage.write_text(RATIOS, _csv(ratios))
            self._storage.write_text(METRICS, _csv(metrics))
        else:
            self._storage.append(RATIOS, _csv(ratios))
            self._storage.append(METRICS, _csv(metrics))


def usable_losses(rows: Sequence[TrialRow], sets: Sequence[str]) -> np.ndarray:
    """Losses of usable rows, (N, M), nats per token."""
    return np.array([[row.losses[name] for name in sets] for row in rows])


def _line(row: TrialRow) -> str:
    return json.dumps(asdict(row), default=list) + "\n"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else "nan"
