"""The next mixture: minimise the fitted objective plus KL to a prior, within bounds and caps.

    proposal = propose(law, prior=old, kl=0.05, lower=None, upper={"code": 0.4}, current=old)
    proposal.mixture, proposal.objective, proposal.binding

Convex where the law is convex. Infeasible limits raise a `UserError` that says which ones and by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from opmix_ray.counts.ceilings import OVER, Ceiling, eased, surest, upper_bounds
from opmix_ray.decision.choice import AimedLaw
from opmix_ray.decision.problem import STEP, Problem, check_limits, solve, spread_out
from opmix_ray.errors import Share, UserError, Weight, Whole, typed
from opmix_ray.laws.fitted import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.numerics import in_order, one_thread

NEAR_VERTEX = 0.9  # share above which a mixture is called close to one domain
AT_BOUND, NOTHING = 1e-4, 1e-13  # of shares, of the objective
KINKED = 30  # iterations of a package's own objective
LEAST_REFITS = 10  # that an interval of 90 % takes
Limits = Mapping[str, Share] | None
Values = Mapping[str, float] | None


@dataclass(frozen=True)
class Proposal:
    """What `propose` returns.

    Args:
        mixture: over the law's domains (the components, where `expand` was given).
        predicted: metric -> prediction at the mixture, in the metric's unit.
        objective: predicted at the mixture, without the KL term; with `worst_case` the greatest excess over the
            reference.
        baseline_objective: the same at the current mixture (at the prior where there is none).
        kl: KL(mixture || prior) in nats, over leaf domains where `expand` was given.
        binding: in words, which bound, cap or limit holds and whether the mixture is close to one domain.
        weight_intervals: domain -> (low, high) at 90 % from the bootstrap, or None.
        gain_interval: (low, high) at 90 % of `baseline_objective - objective`, or None.
        leaves: the mixture over leaf domains, where `expand` was given.
    """

    mixture: Mixture
    predicted: dict[str, float]
    objective: float
    baseline_objective: float
    kl: float
    binding: list[str]
    weight_intervals: dict[str, tuple[float, float]] | None = None
    gain_interval: tuple[float, float] | None = None
    leaves: Mixture | None = None

    @property
    def gain(self) -> float:
        """By how much the objective falls."""
        return self.baseline_objective - self.objective

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        data = asdict(self) | {"mixture": self.mixture.shares, "gain": self.gain}
        data["leaves"] = None if self.leaves is None else self.leaves.shares
        return data


@typed
@one_thread()
def propose(
    law: FittedLaw,
    *,
    prior: Mapping[str, Weight],
    kl: Weight = 0.05,
    lower: Limits = None,
    upper: Limits = None,
    current: Mapping[str, Weight] | None = None,
    reference: Values = None,
    worst_case: bool = False,
    no_worse_than: Values | float = None,
    ceilings: Mapping[str, Ceiling] | None = None,
    expand: Mapping[str, Mapping[str, Weight]] | None = None,
    seed: Whole = 0,
    bootstrap: Whole = 0,
    first: Callable[[Proposal], None] | None = None,
    step: Callable[[int, int], None] | None = None,
) -> Proposal:
    """Find the mixture that minimises `objective(p) + kl * KL(p || prior)`.

    Args:
        law: a fitted law over D domains.
        prior: mixture the KL term holds on to; over leaf domains or components where `expand` is given.
        kl: weight of the KL term, nats to the metric's unit.
        lower, upper: least and greatest share of tokens by name (of a leaf domain where `expand` is given);
            an upper one holds bounds and repetition caps together.
        current: mixture in force, the baseline of gains and of `no_worse_than`; none: the prior.
        reference: metric -> value, for `worst_case`; none: predictions at the current mixture.
        worst_case: minimise the greatest `metric - reference` over the metrics with weight instead.
        no_worse_than: by how much a metric may exceed its prediction at the current mixture; one number for
            all metrics, or by metric.
        ceilings: metric -> what it must stay below, with the greatest confidence with which a mixture does (`surest`);
            where none is expected to, nearly the nearest one is proposed (`eased`).
        expand: component -> mixture of leaf domains it stands for; KL and limits are then over leaves.
        seed: of starts and of the bootstrap.
        bootstrap: refits for the intervals, see `FittedLaw.redrawn`, at least 10; 0: none.
        first: told the proposal before its intervals are computed.
        step: told how many refits are done, and of how many, before each and at the end.

    Raises:
        UserError: unknown names, or limits that cannot be met together: which, and by how much.
    """
    check_refits(bootstrap, "bootstrap")
    problem = _problem(
        law, Mixture.of(prior), kl, lower, upper, None if current is None else Mixture.of(current), reference,
        worst_case, no_worse_than, expand or {}, seed,
    )  # fmt: skip
    problem, shares = _solve_within(problem, ceilings) if ceilings else (problem, solve(problem))
    at = problem.baseline
    mixture = Mixture.from_array(law.domains, shares)
    found = Proposal(
        mixture=mixture,
        predicted=dict(zip(law.metric_names, law.predict(shares)[0].tolist(), strict=True)),
        objective=float(problem.value(shares)[0]),
        baseline_objective=float(problem.value(at)[0]),
        kl=float(problem.divergence(shares)[0]),
        binding=_binding(problem, shares),
        leaves=mixture.expand(expand) if expand else None,
    )
    if not bootstrap:
        return found
    if first is not None:
        first(found)
    draws, gains = _bootstrap(problem, shares, seed, bootstrap, step)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return replace(
        found,
        weight_intervals={
            name: (float(a), float(b)) for name, a, b in zip(law.domains, low, high, strict=True)
        },
        gain_interval=(float(np.quantile(gains, 0.05)), float(np.quantile(gains, 0.95))),
    )


def _solve_within(problem: Problem, ceilings: Mapping[str, Ceiling]) -> tuple[Problem, np.ndarray]:
    """The problem with ceilings at the greatest confidences that a mixture keeps them with, and its solution (D,).

    What comes nearest to a ceiling that is out of reach is an extreme mixture, for which the other sets pay.
    """
    number = problem.law.metric_names.index

    def reached(name: str, one: Ceiling) -> bool:
        return bool(upper_bounds(problem.law, {number(name): one}, spread_out(problem)).min() <= one.most)

    def tried(bounded: Mapping[str, Ceiling]) -> tuple[tuple[Problem, np.ndarray], bool]:
        by_metric = {number(name): one for name, one in bounded.items()}
        under = replace(
            problem, ceilings=problem.ceilings | by_metric, soft=True, iterations=min(problem.iterations, 60)
        )
        shares = solve(under)
        return (under, shares), bool(under.violation(shares)[0] <= OVER)

    under, shares = surest(ceilings, tried, reached)
    if under.violation(shares)[0] <= OVER:
        return under, shares
    near = eased(problem.law, under.ceilings, shares, solve(problem))
    return under, solve(replace(under, ceilings=near))


def _problem(
    law: FittedLaw, prior: Mixture, kl: float, lower: Limits, upper: Limits, current: Mixture | None,
    reference: Values, worst_case: bool, no_worse_than: Values | float,
    expand: Mapping[str, Mapping[str, float]], seed: int,
) -> Problem:  # fmt: skip
    _known("expand", expand, law.domains)
    parts = {name: Mixture(expand[name]) if name in expand else {name: 1.0} for name in law.domains}
    leaves = list(dict.fromkeys(leaf for part in parts.values() for leaf in part))
    spread = np.array([[part.get(leaf, 0.0) for leaf in leaves] for part in parts.values()])
    over_components = set(prior) <= set(law.domains)
    if not over_components:
        _known("prior", prior, leaves)
    leaf_prior = (prior.over(law.domains).expand(expand) if over_components else prior).array(leaves)
    _known("lower", lower or {}, [*leaves, *law.domains])
    _known("upper", upper or {}, [*leaves, *law.domains])
    names, eye = list(dict.fromkeys([*leaves, *law.domains])), np.eye(len(law.domains))
    rows = [spread[:, leaves.index(n)] if n in leaves else eye[law.domains.index(n)] for n in names]
    low = np.array([float((lower or {}).get(name, 0.0)) for name in names])
    high = np.array([min(1.0, float((upper or {}).get(name, 1.0))) for name in names])
    if kl > 0:
        high[[name in leaves and leaf_prior[leaves.index(name)] == 0 for name in names]] = 0.0
    check_limits(names, np.array(rows), low, high)
    baseline = current if current is not None else (prior if over_components else None)
    if baseline is not None:
        _known("current", baseline, law.domains)
    problem = Problem(
        law, kl, spread, leaf_prior / leaf_prior.sum(), names, np.array(rows), low, high, seed,
        iterations=KINKED if isinstance(law, AimedLaw) and law.aim.own is not None else 300,
    )  # fmt: skip
    problem.baseline = baseline.array(law.domains)[None] if baseline is not None else problem.feasible()[None]
    at_baseline = dict(zip(law.metric_names, law.predict(problem.baseline)[0].tolist(), strict=True))
    if worst_case:
        _known("reference", reference or {}, law.metric_names)
        given = at_baseline | dict(reference or {})
        problem.reference = np.array([given[name] for name in law.metric_names])
    if no_worse_than is not None:
        slack = no_worse_than
        if not isinstance(slack, Mapping):
            slack = dict.fromkeys(law.metric_names, slack)
        _known("no_worse_than", slack, law.metric_names)
        number = law.metric_names.index
        problem.ceilings = {number(name): Ceiling(at_baseline[name] + more) for name, more in slack.items()}
    return problem


def check_refits(count: int, key: str) -> None:
    """Refuse fewer refits than an interval takes."""
    if 0 < count < LEAST_REFITS:
        problem = f"an interval takes at least {LEAST_REFITS} refits"
        raise UserError(problem, key=key, value=count, remedy="give more, or 0 for no interval")


def _known(key: str, given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            remedy = f"known: {', '.join(dict.fromkeys(known))}"
            raise UserError("no such name", key=key, value=name, remedy=remedy)


def _bootstrap(
    problem: Problem, shares: np.ndarray, seed: int, count: int, step: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Solutions (B, D) and the gains (B,) of the given shares under refitted laws."""

    def draw(number: int) -> tuple[np.ndarray, float]:
        again = problem.with_law(problem.law.redrawn(np.random.default_rng([seed, 1, number])))
        gain = float((again.value(again.baseline) - again.value(shares[None]))[0])
        return solve(again, start=shares), gain

    draws, gains = zip(*in_order(draw, count, step), strict=True)
    return np.array(draws), np.array(gains)


def _binding(problem: Problem, shares: np.ndarray) -> list[str]:
    law = problem.law
    said = []
    limits = zip(problem.limit_names, problem.limits, problem.low, problem.high, strict=True)
    for name, row, low, high in limits:
        value = float(row @ shares)
        if high <= 0 and name in problem.without_prior():
            said.append(f"`{name}` stays at 0: the prior gives it no share, so KL to the prior allows none")
        elif high - low <= AT_BOUND:
            only = None if low > 0 else "more"
            said.append(f"`{name}` is fixed at {low:.4g}{_wish(problem, shares, row, only)}")
        elif low > 0 and value <= low + AT_BOUND:
            said.append(f"`{name}` is at its least share {low:.4g}{_wish(problem, shares, row, 'less')}")
        elif high < 1 and value >= high - AT_BOUND:
            said.append(f"`{name}` is at its greatest share {high:.4g}{_wish(problem, shares, row, 'more')}")
        elif value <= AT_BOUND and name in law.domains:
            said.append(f"`{name}` gets nothing ({value:.2g})")
    predicted = law.predict(shares)[0]
    high = upper_bounds(law, problem.ceilings, shares)[0]
    for metric, most, value in zip(problem.ceilings, problem.most(), high, strict=True):
        if value >= most - 1e-4 * max(1e-12, abs(most)):
            said.append(f"metric `{law.metric_names[metric]}` is at the greatest value allowed, {most:.4g}")
    if problem.reference is not None:
        excess = np.where(law.weights > 0, predicted - problem.reference, -np.inf)
        worst = [law.metric_names[m] for m in np.flatnonzero(excess >= excess.max() - 1e-4)]
        said.append(f"the worst case is {', '.join(f'`{name}`' for name in worst)}")
    top = int(np.argmax(shares))
    if shares[top] > NEAR_VERTEX and len(shares) > 1:
        said.append(
            f"the mixture is {100 * shares[top]:.1f} % `{law.domains[top]}`: close to a single domain"
        )
    if law.table is not None:
        ratios = law.table.ratios
        outside = (shares > ratios.max(axis=0) + 0.01) | (shares < ratios.min(axis=0) - 0.01)
        said += [
            f"`{law.domains[d]}` at {shares[d]:.3f} is outside the rows, which hold "
            f"{ratios[:, d].min():.3f} to {ratios[:, d].max():.3f}: an extrapolation"
            for d in np.flatnonzero(outside)
        ]
    if problem.kl > 0:
        divergence = float(problem.divergence(shares[None])[0])
        said.append(f"KL to the prior is {divergence:.4f} nats and costs {problem.kl * divergence:.4g}")
    return said


def _wish(problem: Problem, shares: np.ndarray, row: np.ndarray, only: str | None) -> str:
    """Whether the law would give a share that is held more or less, at the cost of shares that are free; or nothing."""
    low, high, _, _ = problem.split_limits()
    free = shares * ((shares > low + AT_BOUND) & (shares < high - AT_BOUND) & (row == 0))
    taking = row * np.maximum(shares, STEP)
    if not free.any() or problem.ceilings or not problem.law.smooth:
        return ""
    more = shares + STEP * (taking / taking.sum() - free / free.sum())
    before, after = problem.total(np.vstack([shares, more]))
    wish = "less" if after > before else "more"
    flat = abs(after - before) < NOTHING * abs(before)
    return "" if flat or only not in (None, wish) else f"; the law would give it {wish}"
