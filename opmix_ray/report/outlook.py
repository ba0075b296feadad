"""What a decision expects of mixtures side by side: in force, proposed, taken, uniform, proportional."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opmix_ray.counts.response import DataResponse
from opmix_ray.decision.aimed import AimedLaw, aimed
from opmix_ray.decision.choice import Choice, Z
from opmix_ray.draw import numbers as n
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.report.law_check import shares_of
from opmix_ray.report.paired import UNKNOWN, Difference

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
