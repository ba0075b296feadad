"""What is known of mixtures: measured differences, how well the law fits, and what a decision expects of each.

A law that is read for models that are really trained (`opmix_ray.laws.Extrapolation`) predicts another level than
simulated candidates have; here it is taken as it was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from opmix_ray.config.objective import Objective
from opmix_ray.counts.ceilings import DataResponse
from opmix_ray.decision.choice import AimedLaw, Choice, Z, aimed
from opmix_ray.decision.old_part import OLD
from opmix_ray.draw import numbers as n
from opmix_ray.draw.numbers import NBSP
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.laws.linear import Extrapolated
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.trials.rows import TrialRow, usable_losses

LEVEL = f"95{NBSP}%"  # of the two-sided intervals here


@dataclass(frozen=True)
class Difference:
    """What is minimised, of the first candidate minus that of the second, with a 95 % interval."""

    mean: float
    low: float
    high: float


UNKNOWN = Difference(math.nan, math.nan, math.nan)


@np.errstate(over="ignore", invalid="ignore")
def difference(old: TrialRow, new: TrialRow, objective: Objective | Mapping[str, float]) -> Difference:
    """The difference from paired ratio estimates by set (Cochran 1977, ch. 6), which count as independent.

    The interval is Student's t with degrees of freedom by Welch and Satterthwaite. An objective that is no mean enters
    by its slopes.

    Args:
        old, new: candidates that saw the same sequences.
        objective: what is minimised; weights by set mean the weighted mean loss.
    """
    aim = Objective.of(objective)
    before, after = (
        [sum(row.nats.get(name, ())) / (sum(row.targets.get(name, ())) or math.nan) for name in aim.sets]
        for row in (old, new)
    )
    slopes = aim.gradient(np.array(before))
    mean, variance, spread = float(aim.value(np.array(before)) - aim.value(np.array(after))), 0.0, 0.0
    for name, weight in zip(aim.sets, slopes.tolist(), strict=True):
        targets = np.asarray(old.targets.get(name) or [], dtype=np.float64)
        first, second = (np.asarray(row.nats.get(name) or [], dtype=np.float64) for row in (old, new))
        if not len(targets) == len(first) == len(second) or targets.sum() <= 0:
            return UNKNOWN
        gap = first - second
        ratio = gap.sum() / targets.sum()
        if len(gap) < 2:
            return UNKNOWN
        rest = gap - ratio * targets
        part = weight**2 * len(gap) / (len(gap) - 1) * float((rest**2).sum()) / targets.sum() ** 2
        variance += part
        spread += part**2 / (len(gap) - 1)
    if not (math.isfinite(mean) and math.isfinite(variance)):
        return UNKNOWN
    half = float(stats.t.ppf(0.975, variance**2 / spread)) * math.sqrt(variance) if spread > 0 else 0.0
    return Difference(mean, mean - half, mean + half)


@dataclass
class LawCheck:
    """Observed and predicted losses, nats per token.

    Args:
        runs: candidates the law was fitted on, N.
        sets: M evaluation sets.
        observed, predicted: (N, M); the law as it was fitted.
        checked: set -> (observed, predicted) of the simulated proposal, which the fit has not seen.
        eps: pseudo-count as fitted and as read; None where the law has none or both are the same.
        steeper: slopes as read over those fitted, geometric mean over the sets; None likewise.
    """

    runs: list[str]
    sets: list[str]
    observed: np.ndarray
    predicted: np.ndarray
    checked: dict[str, tuple[float, float]] = field(default_factory=dict)
    eps: tuple[float, float] | None = None
    steeper: float | None = None


def check_law(files: DecisionFiles) -> LawCheck | None:
    """Predictions for every usable candidate; None where there is no law or the files do not fit together."""
    law = files.law
    if law is None:
        return None
    rows = [row for row in files.rows if row.usable and math.isfinite(row.objective)]
    sets = [name for name in law.metric_names if all(name in row.losses for row in rows)]
    if not rows or not sets:
        return None
    try:
        fitted = _as_fitted(law)
        columns = [law.metric_names.index(name) for name in sets]
        observed = usable_losses(rows, sets)
        predicted = fitted.predict(np.array([shares_of(row.ratios, law) for row in rows]))[:, columns]
        check = LawCheck([row.run for row in rows], sets, observed, predicted, {}, _eps(law), _steeper(law))
        if files.checked is not None and files.checked.losses:
            at = fitted.predict(np.array([shares_of(files.checked.ratios, law)]))[0, columns]
            losses = files.checked.losses
            check.checked = {
                name: (losses.get(name, math.nan), float(value)) for name, value in zip(sets, at, strict=True)
            }
    except (UserError, ValueError, TypeError, LookupError):
        return None
    return check


def shares_of(ratios: Mapping[str, float], law: FittedLaw) -> list[float]:
    """Shares of the law's domains; `old` is all that is not one of the others."""
    rest = 1 - sum(ratios.get(name, 0.0) for name in law.domains)
    return [rest if name == OLD else ratios.get(name, 0.0) for name in law.domains]


def _eps(law: FittedLaw) -> tuple[float, float] | None:
    for response in law.responses:
        if isinstance(response, Extrapolated) and response.origin.eps != response.eps:
            return float(response.origin.eps), float(response.eps)
    return None


def _steeper(law: FittedLaw) -> float | None:
    ratios = [
        r.slopes.min() / r.origin.slopes.min()
        for r in law.responses
        if isinstance(r, Extrapolated) and r.slopes.min() < 0 and r.origin.slopes.min() < 0
    ]
    return float(np.exp(np.log(ratios).mean())) if ratios else None


def _as_fitted(law: FittedLaw) -> FittedLaw:
    """The law as it was fitted."""
    responses = [r.origin if isinstance(r, Extrapolated) else r for r in law.responses]
    return FittedLaw(law.name, law.domains, law.metric_names, law.weights, responses)


IN_FORCE, PROPOSAL, TAKEN = "in force until here", "proposal", "in force from here"
UNIFORM, PROPORTIONAL = "uniform", "proportional"
_IN_CHOICE = {IN_FORCE: Choice.CURRENT}  # names that differ in decision.json
SAME = 1e-6  # of a share


@dataclass(frozen=True)
class Outlook:
    """One mixture.

    Args:
        name: what it is; two names where two are the same.
        shares: by domain.
        expected: objective at the end of the stage; NaN where nothing says it.
        gain: by how much it ends below the uniform mixture, with a 95 % interval.
    """

    name: str
    shares: dict[str, float]
    expected: float
    gain: Difference


def outlooks(files: DecisionFiles, tokens: Mapping[str, float]) -> list[Outlook]:
    """Every mixture that a reader compares; empty before a decision is made.

    Args:
        files: of the decision.
        tokens: training tokens there are, by domain; empty: the proportional mixture is not known.
    """
    mixtures = _mixtures(files, tokens)
    expected = {name: _expected(files, name, mixtures) for name in mixtures}
    found = []
    for name, shares in mixtures.items():
        away = expected[UNIFORM] - expected[name]
        found.append(Outlook(name, shares, expected[name], _interval(files, shares, mixtures[UNIFORM], away)))
    return found


def gain_over(files: DecisionFiles, reference: str) -> Difference:
    """By how much the mixture from here on ends below the uniform one or the one in force until here."""
    mixtures = _mixtures(files, {})
    if not mixtures or TAKEN not in mixtures:
        return UNKNOWN
    away = _expected(files, reference, mixtures) - _expected(files, TAKEN, mixtures)
    return _interval(files, mixtures[TAKEN], mixtures[reference], away)


def same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two mixtures are one."""
    return all(abs(one.get(name, 0.0) - other.get(name, 0.0)) < SAME for name in {*one, *other})


def expected_of(files: DecisionFiles, shares: Mapping[str, float]) -> float:
    """Objective that the law expects at the end of the stage under a mixture; NaN where there is no law."""
    mixtures = _mixtures(files, {})
    return _expected(files, "", mixtures | {"": dict(shares)}) if mixtures else math.nan


def _mixtures(files: DecisionFiles, tokens: Mapping[str, float]) -> dict[str, dict[str, float]]:
    current = n.numbers(files.decision.get("current"))
    if not current:
        return {}
    found = {IN_FORCE: current}
    for name, key in ((PROPOSAL, "proposal"), (TAKEN, "mixture")):
        if shares := n.numbers(files.decision.get(key)):
            found[name] = shares
    found[UNIFORM] = dict.fromkeys(current, 1 / len(current))
    total = sum(tokens.get(name, math.nan) for name in current)
    if total > 0:
        found[PROPORTIONAL] = {name: tokens[name] / total for name in current}
    return found


def _expected(files: DecisionFiles, name: str, mixtures: Mapping[str, dict[str, float]]) -> float:
    """As decision.json has it, else by the law from the mixture in force."""
    choice = files.details.get("choice")
    known = n.numbers(choice.get("expected")) if isinstance(choice, dict) else {}
    base = known.get(Choice.CURRENT, math.nan)
    if same(mixtures[name], mixtures[IN_FORCE]) and math.isfinite(base):
        return base
    if name == TAKEN and isinstance(choice, dict):
        name = str(choice.get("name"))
    if (told := known.get(_IN_CHOICE.get(name, name), math.nan)) and math.isfinite(told):
        return told
    if files.law is None:
        return math.nan
    shares = mixtures[name] if name in mixtures else mixtures[TAKEN]
    here, there = _objective(files.law, mixtures[IN_FORCE]), _objective(files.law, shares)
    return (base if math.isfinite(base) else here) + there - here


def _objective(law: FittedLaw, shares: Mapping[str, float]) -> float:
    try:
        return float(law.objective(np.array([shares_of(shares, law)]))[0])
    except (UserError, ValueError, TypeError, LookupError):
        return math.nan


def _interval(
    files: DecisionFiles, shares: Mapping[str, float], reference: Mapping[str, float], mean: float
) -> Difference:
    if not math.isfinite(mean):
        return UNKNOWN
    if same(shares, reference):
        return Difference(0.0, 0.0, 0.0)
    std = math.nan if files.law is None else difference_std(files.law, shares, reference)
    return Difference(mean, mean - Z * std, mean + Z * std)


def difference_std(law: FittedLaw, one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Standard error of the difference in objective between two mixtures, nats per token.

    A response that rests on counts is sure at its own centre, which is moved to the other mixture; other laws say how
    sure each prediction is, and errors are taken as independent.
    """
    try:
        a, b = np.array([shares_of(one, law)]), np.array([shares_of(other, law)])
        responses = [r for r, weight in zip(law.responses, law.weights, strict=True) if weight > 0]
        if law.direct is None and all(isinstance(r, DataResponse) for r in responses):
            moved = [r.seen_from(b[0]) if isinstance(r, DataResponse) else r for r in law.responses]
            sure = FittedLaw(law.name, law.domains, law.metric_names, law.weights, moved)
            return float((aimed(sure, law.aim) if isinstance(law, AimedLaw) else sure).objective_std(a)[0])
        return float(np.hypot(law.objective_std(a)[0], law.objective_std(b)[0]))
    except (UserError, ValueError, TypeError, LookupError):
        return math.nan
