"""What is recorded under which name; the names are stable, and docs/watching.md lists them.

Losses and gains are in nats per token, shares in [0, 1]; every value stands at a global step of the main run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opmix_ray.config.objective import Objective

Scalars = dict[str, float]


def of_row(row: Mapping[str, Any], objective: Objective | Mapping[str, float]) -> Scalars:
    """Scalars of a row of metrics.jsonl.

    Args:
        row: of kind `train` or `evaluation`; others give nothing.
        objective: what is minimised; weights by set mean the weighted mean loss.
    """
    if row["kind"] == "train":
        found = {f"train/{name}": row[name] for name in ("loss", "learning_rate", "tokens_per_second")}
        total = sum(row["delivered"].values())
        return found | {
            f"delivered/{name}": count / total for name, count in row["delivered"].items() if total
        }
    if row["kind"] != "evaluation":
        return {}
    found = {
        f"eval/{kind}/{name}": value
        for kind, key in (
            ("loss", "losses"),
            ("perplexity", "perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        )
        for name, value in row[key].items()
    }
    found["eval/objective"] = Objective.of(objective).at(row["losses"])
    return _finite(found)


def of_mixture(shares: Mapping[str, float]) -> Scalars:
    """Scalars of the mixture that comes into force."""
    return {f"mixture/{name}": share for name, share in shares.items()}


def of_decision(decision: Any) -> Scalars:
    """Scalars of a `Decision`."""
    found: Scalars = {
        "decision/changed": float(decision.kept == "proposal"),
        "decision/candidates": float(decision.trials),
        **{f"decision/proposal/{name}": share for name, share in decision.proposal.items()},
    }
    if decision.gain is not None:
        names = {"mean": "gain", "low": "gain_low", "high": "gain_high"}
        found |= {f"decision/{name}": float(decision.gain[key]) for key, name in names.items()}
    return _finite(found)


def of_costs(ledger: Mapping[str, Mapping[str, float]], overhead: float) -> Scalars:
    """Scalars of what was spent since the run began, by purpose and unit."""
    found = {
        f"cost/{purpose}/{unit}": float(amount)
        for purpose, units in ledger.items()
        for unit, amount in units.items()
        if amount
    }
    return found | {"cost/overhead": overhead}


def _finite(found: Scalars) -> Scalars:
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
