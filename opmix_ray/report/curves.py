"""The learning curve of every domain: what the main run's own batches lost on it, step by step."""

from __future__ import annotations

import math

import numpy as np

from opmix_ray.draw.numbers import number
from opmix_ray.report.gather import RunFiles
from opmix_ray.train.domain_curves import DomainCurves

Curve = tuple[list[float], list[float]]  # steps, nats per token


def domain_curves(run: RunFiles) -> dict[str, Curve]:
    """By domain: blocks of steps as state.json keeps them, and rows of metrics.jsonl before and after these."""
    kept = _kept(run)
    first, last = (math.inf, math.inf) if kept is None else (float(kept.start), float(kept.steps[-1]))
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in run.domains}

    def add(step: float, name: object, nats: float, tokens: float) -> None:
        if tokens > 0 and math.isfinite(nats) and math.isfinite(step):
            points.setdefault(str(name), []).append((step, nats / tokens))

    for row in run.train:
        step, sums = number(row.get("step")), row.get("domains")
        if (step <= first or step > last) and isinstance(sums, dict):
            for name, pair in sums.items():
                if isinstance(pair, list) and len(pair) == 2:
                    add(step, name, number(pair[0]), number(pair[1]))
    if kept is not None:
        for block, step in enumerate(kept.steps.tolist()):
            for place, name in enumerate(kept.domains):
                add(float(step), name, float(kept.nats[block, place]), float(kept.tokens[block, place]))
    return {
        name: ([step for step, _ in sorted(found)], [loss for _, loss in sorted(found)])
        for name, found in points.items()
        if found
    }


def _kept(run: RunFiles) -> DomainCurves | None:
    """The blocks since the weights in force were begun with; None where there are none, or they are damaged."""
    values = run.state.get("curves")
    if not isinstance(values, dict) or not values:
        return None
    try:
        found = DomainCurves.from_dict(values)
        whole = len(found.steps) and np.isfinite(found.nats).all() and (found.tokens >= 0).all()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if whole else None
