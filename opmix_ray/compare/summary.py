"""From the results of runs to rows, and from rows to means with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from opmix_ray.run.ledger import DECIDING

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One finished run.

    Args:
        losses, perplexity: of every evaluation set at the end, nats per token.
        mean_loss, mean_perplexity: over the sets; `objective` with the configured weights.
        forgetting: see `forgetting`; None: there was nothing to forget.
        steps: of the main run.
        tokens: trained on or passed through for the mixture, reports left out.
        flops: of the main run and of everything that was done to decide.
        search_flops: the part of it that was done to decide.
        worker_seconds: of all workers together, reports left out.
        wall_seconds: from start to end, over all attempts.
    """

    strategy: str
    seed: int
    losses: dict[str, float]
    perplexity: dict[str, float]
    mean_loss: float
    mean_perplexity: float
    objective: float
    forgetting: float | None
    steps: int
    tokens: float
    flops: float
    search_flops: float
    worker_seconds: float
    wall_seconds: float
    mixture: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def row_of(strategy: str, result: Mapping[str, Any], wall_seconds: float, learned: Mapping[str, int]) -> Row:
    """The row of a run.

    Args:
        strategy: its name.
        result: content of its result.json.
        wall_seconds: it took.
        learned: evaluation set -> step at the end of the first stage that trained on it; 0: before the run.
    """
    last, ledger = result["evaluations"][-1], result["ledger"]
    counted = ("main", *DECIDING)
    return Row(
        strategy=strategy,
        seed=result["seed"],
        losses=last["losses"],
        perplexity=last["perplexity"],
        mean_loss=last["mean_loss"],
        mean_perplexity=last["mean_perplexity"],
        objective=last["objective"],
        forgetting=forgetting(result["evaluations"], learned),
        steps=result["steps"],
        tokens=sum(ledger[purpose]["tokens"] for purpose in counted),
        flops=sum(ledger[purpose]["flops"] for purpose in counted),
        search_flops=sum(ledger[purpose]["flops"] for purpose in DECIDING),
        worker_seconds=sum(ledger[purpose]["seconds"] for purpose in counted),
        wall_seconds=wall_seconds,
        mixture=result["final_mixture"],
    )


def forgetting(evaluations: Sequence[Mapping[str, Any]], learned: Mapping[str, int]) -> float | None:
    """Mean rise of the loss of old domains since the best they ever were (Chaudhry et al. 2018, arXiv 1801.10112).

    Args:
        evaluations: in order of steps.
        learned: set -> step at which it had been trained on; sets of the last stage alone have nothing to forget.

    Returns:
        Nats per token, over the sets that had been learned before the last evaluation; None where there are none.
    """
    end = evaluations[-1]["step"]
    rises = []
    for name, step in learned.items():
        before = [e["losses"][name] for e in evaluations if step <= e["step"] < end and name in e["losses"]]
        if step < end and before:
            rises.append(evaluations[-1]["losses"][name] - min(before))
    return float(np.mean(rises)) if rises else None


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; the ends are None where there is one seed only."""

    mean: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and Student's t interval."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) < 2 or not np.isfinite(data).all():
        return Estimate(mean, None, None, len(data))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data)))
    return Estimate(mean, mean - half, mean + half, len(data))


_QUANTITIES: dict[str, Callable[[Row], float]] = {
    name: lambda row, name=name: float(getattr(row, name))  # type: ignore[misc]
    for name in (
        "mean_loss", "mean_perplexity", "objective", "steps", "tokens", "flops", "search_flops",
        "worker_seconds", "wall_seconds",
    )
}  # fmt: skip


def summarise(rows: Sequence[Row], strategies: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per strategy that has rows, in the order given; the first one is the baseline.

    `versus` compares with the baseline seed by seed: `perplexity` is the relative change of the mean perplexity
    (negative: better), `loss` the difference of the mean loss, `flops` the relative change of all FLOPs.
    """
    baseline = {row.seed: row for row in rows if row.strategy == strategies[0]}
    found = []
    for name in strategies:
        own = [row for row in rows if row.strategy == name]
        if not own:
            continue
        entry: dict[str, Any] = {"strategy": name, "seeds": [row.seed for row in own]}
        entry |= {key: asdict(estimate([value(row) for row in own])) for key, value in _QUANTITIES.items()}
        entry["losses"] = {s: asdict(estimate([row.losses[s] for row in own])) for s in own[0].losses}
        entry["perplexity"] = {
            s: asdict(estimate([row.perplexity[s] for row in own])) for s in own[0].perplexity
        }
        forgot = [row.forgetting for row in own if row.forgetting is not None]
        entry["forgetting"] = asdict(estimate(forgot)) if forgot else None
        pairs = [(row, baseline[row.seed]) for row in own if row.seed in baseline]
        entry["versus"] = _versus(pairs) if pairs and name != strategies[0] else None
        found.append(entry)
    return found


def _versus(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    return {
        "perplexity": asdict(estimate([a.mean_perplexity / b.mean_perplexity - 1 for a, b in pairs])),
        "loss": asdict(estimate([a.mean_loss - b.mean_loss for a, b in pairs])),
        "flops": asdict(estimate([a.flops / b.flops - 1 for a, b in pairs])),
    }
