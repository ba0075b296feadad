"""Whether a decision can be trusted: what was measured about it, what was to be expected, and what would help.

A decision rests on three things: the law describes the candidates, adding up probes does what training on the mixture
does, and the proposal measures better than the mixture in force. Each is a number here. Where one of the first two
fails, the mixture in force stays, whatever the third says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from opmix_ray.config.objective import UNITS
from opmix_ray.decision.rule import Decision
from opmix_ray.trials.rows import TrialRow

LEAST_R2 = 0.1  # of the middle set, out of fold, weighted as in the objective; docs/decisions.md
MOST_GAP = 0.5  # of the spread of the candidates
_SAME_MIXTURE = 2e-3  # greatest difference of a share


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: `law`, `interpolation` or `gain`.
        value: what was measured; None: it could not be.
        limit: where trust ends.
        passed: whether the decision stands on it; None: unknown, and not held against it.
        words: what it means.
        remedy: what would help, if it failed.
    """

    name: str
    value: float | None
    limit: float
    passed: bool | None
    words: str
    remedy: str = ""


def examine(
    decision: Decision,
    rows: Sequence[TrialRow],
    objective: Mapping[str, float],
    check: Mapping[str, Mapping[str, float]] | None,
) -> list[Check]:
    """Everything that speaks for or against a decision.

    Args:
        decision: as concluded.
        rows: its candidates.
        objective: weight per evaluation set.
        check: of the probe that was trained on a mixture of all domains: `data` (share by domain) and `measured` (loss
            by set); None: there is none.
    """
    return [_law(decision, objective), _interpolation(rows, objective, check), _gain(decision)]


def with_health(decision: Decision, checks: Sequence[Check], *, verify: bool) -> Decision:
    """The decision with its checks in `details.health`; taken back where one that it stands on failed.

    Args:
        decision: as concluded.
        checks: from `examine`.
        verify: whether a proposal has to prove itself; if not, the checks are only noted.
    """
    failed = [check for check in checks if check.passed is False and check.name != "gain"]
    health = {"trusted": not failed, "checks": [asdict(check) for check in checks]}
    decision = replace(decision, details={**decision.details, "health": health})
    if not failed or not verify or decision.kept != "proposal":
        return decision
    why = "; ".join(f"{check.words} (what would help: {check.remedy})" for check in failed)
    return replace(
        decision,
        kept="old",
        mixture=decision.current,
        reason=f"the proposal measures better, but the decision cannot be trusted: {why}",
    )


def _law(decision: Decision, objective: Mapping[str, float]) -> Check:
    """By set: candidates that a search has drawn together differ little in the objective, whatever the law."""
    scores = {name: decision.law.get(name, {}).get("r2_cv") for name, weight in objective.items() if weight}
    known = {name: float(score) for name, score in scores.items() if score is not None}
    if not known:
        return Check("law", None, LEAST_R2, None, "how well the law predicts candidates is not known")
    value = _middle(known, objective)
    return Check(
        "law",
        value,
        LEAST_R2,
        value >= LEAST_R2,
        f"of the variance of the middle set's loss over candidates that it has not seen the law explains "
        f"{100 * value:.0f} %",
        "more candidates (search.trials) or more held-out sequences (search.sequences)",
    )


def _middle(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted median: a few sets that candidates hardly move must not speak for all."""
    order = sorted(scores, key=lambda name: scores[name])
    reached = np.cumsum([weights[name] for name in order])
    return scores[order[int(np.searchsorted(reached, reached[-1] / 2))]]


def _interpolation(
    rows: Sequence[TrialRow], objective: Mapping[str, float], check: Mapping[str, Mapping[str, float]] | None
) -> Check:
    unknown = Check(
        "interpolation",
        None,
        MOST_GAP,
        None,
        "no probe was trained on a mixture to compare with (probe.check)",
    )
    scored = [row for row in rows if row.status == "ok" and math.isfinite(row.objective)]
    if check is None or len(scored) < 2:
        return unknown
    data, measured = check["data"], check["measured"]

    def distance(row: TrialRow) -> float:
        return max(abs(share - data.get(name, 0.0)) for name, share in row.ratios.items())

    nearest = min(scored, key=distance)
    sets = [
        name for name, weight in objective.items() if weight and name in measured and name in nearest.losses
    ]
    if distance(nearest) > _SAME_MIXTURE or not sets:
        return unknown
    weights = np.array([objective[name] for name in sets])
    weights = weights / weights.sum()

    def weighed(losses: Mapping[str, float]) -> float:
        return float(weights @ [losses[name] for name in sets])

    spread = float(np.ptp([weighed(row.losses) for row in scored]))
    gap = abs(weighed(measured) - weighed(nearest.losses))
    value = gap / spread if spread > 0 else math.inf
    return Check(
        "interpolation",
        value if math.isfinite(value) else None,
        MOST_GAP,
        value <= MOST_GAP,
        f"a probe trained on the mixture and the sum of probes differ by {gap:.4f} nats per token, where candidates "
        f"differ by up to {spread:.4f}",
        "a lower probe.learning_rate_ratio or another number of probe.steps",
    )


def _gain(decision: Decision) -> Check:
    if decision.gain is None:
        return Check("gain", None, 0.0, None, "the gain of the proposal was not measured")
    low, unit = decision.gain["low"], decision.gain.get("unit", UNITS["loss"])
    return Check(
        "gain",
        low,
        0.0,
        low > 0,
        f"the measured gain of the proposal is {decision.gain['mean']:+.4f} {unit}, at least {low:+.4f}",
        "more held-out sequences (search.sequences), or deciding later",
    )
