"""What the sampler delivered of every domain, against what the mixtures asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from opmix_ray.draw.numbers import number, numbers
from opmix_ray.report.gather import RunFiles

MANY_EPOCHS = 4.0  # repetition up to about here is as good as new data (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Delivered:
    """One domain.

    Args:
        domain: its name.
        planned: share of all tokens that the mixtures ask for, weighted by steps.
        share: share of all tokens that was delivered.
        tokens: delivered.
        epochs: how often the domain's training tokens were seen; NaN while that is unknown.
    """

    domain: str
    planned: float
    share: float
    tokens: float
    epochs: float


def delivery(run: RunFiles) -> list[Delivered]:
    """Planned and delivered shares up to the last step that metrics.jsonl knows of."""
    rows = [row for row in run.train if isinstance(row.get("delivered"), dict)]
    sequences = numbers(rows[-1]["delivered"]) if rows else {}
    for name, count in numbers(run.state.get("begun")).items():  # read by earlier runs
        if name in sequences:
            sequences[name] -= count
    end = number(rows[-1].get("step")) if rows else math.nan
    length = run.config.data.seq_len if run.config else math.nan
    entries = run.result.get("delivered")
    known = {name: numbers(values) for name, values in entries.items()} if isinstance(entries, dict) else {}
    if not sequences:
        sequences = {name: values.get("sequences", math.nan) for name, values in known.items()}
        end = float(run.step)
    total = sum(value for value in sequences.values() if math.isfinite(value))
    planned = _planned(run, end)
    return [
        Delivered(
            domain=name,
            planned=planned.get(name, math.nan),
            share=sequences.get(name, 0.0) / total if total else math.nan,
            tokens=known.get(name, {}).get(
                "tokens", sequences.get(name, 0.0) * length if total else math.nan
            ),
            epochs=known.get(name, {}).get("epochs", math.nan),
        )
        for name in run.domains
    ]


def _planned(run: RunFiles, end: float) -> dict[str, float]:
    """Mean of the mixtures, weighted by the steps they were in force, up to a step."""
    starts = [number(entry.get("step")) for entry in run.history]
    sums: dict[str, float] = {}
    total = 0.0
    for place, entry in enumerate(run.history):
        until = min(end, starts[place + 1]) if place + 1 < len(starts) else end
        steps = until - starts[place]
        if not steps > 0:
            continue
        total += steps
        for name, value in numbers(entry.get("mixture")).items():
            sums[name] = sums.get(name, 0.0) + steps * value
    return {name: sums.get(name, 0.0) / total for name in run.domains} if total else {}
