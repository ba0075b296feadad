"""From the results of runs to rows, and from rows to means with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from opmix_ray.output.ledger import DECIDING, TRAINING

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One finished run.

    Args:
        losses: of every evaluation set at the end, nats per token; of questions the rate of wrong answers.
        perplexity, accuracy: of the sets of text, and of questions.
        mean_loss, mean_perplexity, mean_accuracy: over the sets of their kind; None: there are none.
        objective: of all sets with the configured weights.
        forgetting: see `forgetting`; None: there was nothing to forget.
        steps: of the main run.
        tokens: trained on or passed through for the mixture, reports left out.
        flops: of the main run and of everything that was done to decide.
        search_flops: the part of it that was done to decide.
        worker_seconds: of all workers together, reports left out.
        wall_seconds: from start to end, over all attempts.
        mixture: the last one.
        kept: step of each stage's weights, with `train.keep: best`.
    """

    strategy: str
    seed: int
    losses: dict[str, float]
    perplexity: dict[str, float]
    accuracy: dict[str, float]
    mean_loss: float | None
    mean_perplexity: float | None
    mean_accuracy: float | None
    objective: float
    forgetting: float | None
    steps: int
    tokens: float
    flops: float
    search_flops: float
    worker_seconds: float
    wall_seconds: float
    mixture: dict[str, float]
    kept: dict[str, int] = field(default_factory=dict)

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
    counted = [purpose for purpose in (*TRAINING, *DECIDING) if purpose in ledger]
    return Row(
        strategy=strategy,
        seed=result["seed"],
        losses=last["losses"],
        perplexity=last["perplexity"],
        accuracy=last.get("accuracy", {}),
        mean_loss=last["mean_loss"],
        mean_perplexity=last["mean_perplexity"],
        mean_accuracy=last.get("mean_accuracy"),
        objective=last["objective"],
        forgetting=forgetting(result["evaluations"], learned),
        steps=result["steps"],
        tokens=sum(ledger[purpose]["tokens"] for purpose in counted),
        flops=sum(ledger[purpose]["flops"] for purpose in counted),
        search_flops=sum(ledger[purpose]["flops"] for purpose in DECIDING),
        worker_seconds=sum(ledger[purpose]["seconds"] for purpose in counted),
        wall_seconds=wall_seconds,
        mixture=result["final_mixture"],
        kept=result.get("kept", {}),
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


_QUANTITIES = (
    "mean_loss", "mean_perplexity", "mean_accuracy", "objective", "forgetting", "steps", "tokens", "flops",
    "search_flops", "worker_seconds", "wall_seconds",
)  # fmt: skip
_BY_SET = ("losses", "perplexity", "accuracy")


def summarise(rows: Sequence[Row], strategies: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per strategy that has rows, in the order given; the first one is the baseline.

    A quantity that no run has is None. `versus` compares with the baseline seed by seed: `loss`, `accuracy` and
    `objective` are differences, `relative_loss`, `perplexity` and `flops` relative changes of the mean loss, the
    mean perplexity and all FLOPs.
    """
    baseline = {row.seed: row for row in rows if row.strategy == strategies[0]}
    found = []
    for name in strategies:
        own = [row for row in rows if row.strategy == name]
        if not own:
            continue
        entry: dict[str, Any] = {"strategy": name, "seeds": [row.seed for row in own]}
        entry |= {key: _known(getattr(row, key) for row in own) for key in _QUANTITIES}
        for key in _BY_SET:
            sets = getattr(own[0], key)
            entry[key] = {each: _known(getattr(row, key)[each] for row in own) for each in sets}
        pairs = [(row, baseline[row.seed]) for row in own if row.seed in baseline]
        entry["versus"] = _versus(pairs) if pairs and name != strategies[0] else None
        found.append(entry)
    return found


def _versus(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    def differences(key: str, relative: bool = False) -> dict[str, Any] | None:
        both = [(getattr(a, key), getattr(b, key)) for a, b in pairs]
        return _known(None if a is None or b is None else a / b - 1 if relative else a - b for a, b in both)

    return {
        "perplexity": differences("mean_perplexity", relative=True),
        "loss": differences("mean_loss"),
        "relative_loss": differences("mean_loss", relative=True),
        "accuracy": differences("mean_accuracy"),
        "objective": differences("objective"),
        "flops": differences("flops", relative=True),
    }


def _known(values: Iterable[float | None]) -> dict[str, Any] | None:
    """The estimate over the values there are; None where there is none."""
    there = [float(value) for value in values if value is not None]
    return asdict(estimate(there)) if there else None
