"""The problem that `propose` solves: objective, KL, linear limits and ceilings on metrics; and how it is minimised.

SLSQP goes from one start where the problem is convex, from several elsewhere; for trees there is a search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import linprog, minimize

from opmix_ray.counts.ceilings import Ceiling, upper_bounds
from opmix_ray.errors import UserError
from opmix_ray.laws.fitted import FittedLaw

TINY = 1e-12
STEP = 1e-5  # of shares, for the slopes of standard errors


@dataclass
class Problem:
    """`min value(p) + kl * KL(p spread || prior)` over the simplex with `low <= limits p <= high`.

    Args:
        law: over D components.
        kl: weight of the KL term.
        spread: (D, leaves) share of every leaf in every component.
        prior: (leaves,).
        limit_names, limits, low, high: K linear limits; limits of shape (K, D).
        seed: of the starts.
        baseline: (1, D) mixture that gains are measured from.
        reference: (M,) for the worst case, or None.
        ceilings: by metric.
        soft: whether the mixture that comes nearest to the ceilings will do where none keeps them.
        iterations: of a solution from one start; kinks, as a package's objective may have, never satisfy the solver.
    """

    law: FittedLaw
    kl: float
    spread: np.ndarray
    prior: np.ndarray
    limit_names: list[str]
    limits: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seed: int = 0
    baseline: np.ndarray = field(default_factory=lambda: np.zeros((1, 0)))
    reference: np.ndarray | None = None
    ceilings: dict[int, Ceiling] = field(default_factory=dict)
    soft: bool = False
    iterations: int = 300

    def with_law(self, law: FittedLaw) -> Problem:
        """The same problem for a refitted law; ceilings move with its predictions at the baseline."""
        shift = law.predict(self.baseline)[0] - self.law.predict(self.baseline)[0]
        ceilings = {m: replace(one, most=one.most + float(shift[m])) for m, one in self.ceilings.items()}
        return replace(self, law=law, ceilings=ceilings)

    def without_prior(self) -> set[str]:
        """Names of limits on leaves that have no share in the prior, where KL counts."""
        if self.kl == 0:
            return set()
        empty = self.spread[:, self.prior <= 0]
        return {
            name
            for name, row in zip(self.limit_names, self.limits, strict=True)
            if any(np.array_equal(row, column) for column in empty.T)
        }

    def value(self, shares: np.ndarray) -> np.ndarray:
        """Objective without KL, (n, D) -> (n,)."""
        shares = np.atleast_2d(shares)
        if self.reference is None:
            return self.law.objective(shares)
        return self.excess(shares).max(axis=1)

    def excess(self, shares: np.ndarray) -> np.ndarray:
        """Metrics with weight over the reference, (n, D) -> (n, used)."""
        used = self.law.weights > 0
        reference = np.zeros(0) if self.reference is None else self.reference
        return (self.law.at(shares) - reference)[:, used]

    def divergence(self, shares: np.ndarray) -> np.ndarray:
        """KL to the prior in nats, (n, D) -> (n,)."""
        leaves = np.maximum(np.atleast_2d(shares) @ self.spread, 0)
        held = self.prior > 0
        part = leaves[:, held]
        inside = (part * np.log(np.maximum(part, TINY) / self.prior[held])).sum(axis=1)
        return np.where(leaves[:, ~held].sum(axis=1) > 1e-9, np.inf, inside)

    def total(self, shares: np.ndarray) -> np.ndarray:
        """What is minimised, (n, D) -> (n,)."""
        divergence = np.nan_to_num(self.divergence(shares), posinf=1e6) if self.kl else 0.0
        return self.value(shares) + self.kl * divergence

    def kl_gradient(self, shares: np.ndarray) -> np.ndarray:
        """Gradient of `kl * KL` at one mixture, (D,)."""
        held = self.prior > 0
        leaves = np.maximum(shares @ self.spread, TINY)[held]
        return self.kl * (self.spread[:, held] @ (np.log(leaves / self.prior[held]) + 1))

    def violation(self, shares: np.ndarray) -> np.ndarray:
        """Greatest excess over a limit or ceiling, (n, D) -> (n,)."""
        shares = np.atleast_2d(shares)
        at = shares @ self.limits.T
        worst = np.maximum((self.low - at).max(axis=1), (at - self.high).max(axis=1))
        if self.ceilings:
            most = self.most()
            over = (upper_bounds(self.law, self.ceilings, shares) - most) / np.maximum(1.0, np.abs(most))
            worst = np.maximum(worst, (over * [one.weight for one in self.ceilings.values()]).max(axis=1))
        return worst

    def most(self) -> np.ndarray:
        """The ceilings' values, (C,)."""
        return np.array([ceiling.most for ceiling in self.ceilings.values()])

    def upper_gradient(self, shares: np.ndarray) -> np.ndarray:
        """Derivative of `upper_bounds` at one mixture, (C, D); of standard errors by finite differences."""
        rows = []
        steps = STEP * np.eye(len(shares))
        for metric, ceiling in self.ceilings.items():
            response = ceiling.response or self.law.responses[metric]
            slope = response.gradient(shares[None])[0]
            if ceiling.z:
                stds = np.hypot(response.std(np.vstack([shares, shares + steps])), ceiling.error)
                slope = slope + ceiling.z * (stds[1:] - stds[0]) / STEP
            rows.append(slope)
        return np.array(rows)

    def feasible(self, towards: np.ndarray | None = None) -> np.ndarray:
        """The mixture within the linear limits nearest to `towards` (in total variation), (D,)."""
        domains = self.limits.shape[1]
        towards = np.full(domains, 1 / domains) if towards is None else towards
        eye, none = np.eye(domains), np.zeros((len(self.limits), domains))
        answer = linprog(
            np.concatenate([np.zeros(domains), np.ones(domains)]),
            A_ub=np.block([[-self.limits, none], [self.limits, none], [eye, -eye], [-eye, -eye]]),
            b_ub=np.concatenate([-self.low, self.high, towards, -towards]),
            A_eq=np.concatenate([np.ones(domains), np.zeros(domains)])[None],
            b_eq=[1.0],
            bounds=[(0, 1)] * domains + [(0, None)] * domains,
        )
        return np.clip(answer.x[:domains], 0, 1)

    def pull_inside(self, pool: np.ndarray) -> np.ndarray:
        """Mixtures (n, D) moved straight towards a feasible one until they meet the linear limits."""
        centre = self.feasible()
        middle = self.limits @ centre
        step = pool @ self.limits.T - middle
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(step > 0, (self.high - middle) / step, (self.low - middle) / step)
        length = np.clip(np.where(step == 0, 1.0, room).min(axis=1), 0, 1)
        return centre + length[:, None] * (pool - centre)

    def split_limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Limits as a box `low, high` (D,) and other rows as `sides p <= margin`."""
        box_low, box_high = np.zeros(self.limits.shape[1]), np.ones(self.limits.shape[1])
        sides, margin = [], []
        for row, low, high in zip(self.limits, self.low, self.high, strict=True):
            where = np.flatnonzero(row)
            if len(where) == 1:
                box_low[where] = np.maximum(box_low[where], low / row[where])
                box_high[where] = np.minimum(box_high[where], high / row[where])
                continue
            if low > 0:
                sides.append(-row)
                margin.append(-low)
            if high < 1:
                sides.append(row)
                margin.append(high)
        return box_low, box_high, np.array(sides).reshape(len(sides), len(row)), np.array(margin)


def check_limits(names: Sequence[str], limits: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Refuse linear limits that no mixture meets, naming the least relaxation that would do; see `Problem`."""
    count, domains = limits.shape
    # minimise the total slack: low - s1 <= limits p <= high + s2
    eye = np.eye(count)
    answer = linprog(
        np.concatenate([np.zeros(domains), np.ones(2 * count)]),
        A_ub=np.block([[-limits, -eye, 0 * eye], [limits, 0 * eye, -eye]]),
        b_ub=np.concatenate([-low, high]),
        A_eq=np.concatenate([np.ones(domains), np.zeros(2 * count)])[None],
        b_eq=[1.0],
        bounds=[(0, 1)] * domains + [(0, None)] * (2 * count),
    )
    if answer.fun is None or answer.fun <= 1e-9:
        return
    under, over = answer.x[domains : domains + count], answer.x[domains + count :]
    said = [
        f"`{name}` needs its {which} share {end:.4g} {how} by {more:.4g}"
        for which, how, ends, slack in (("least", "lowered", low, under), ("greatest", "raised", high, over))
        for name, end, more in zip(names, ends, slack, strict=True)
        if more > 1e-9
    ]
    raise UserError(
        f"no mixture meets all limits: least shares sum to {low.sum():.4g}, greatest to {high.sum():.4g}; "
        f"the smallest change that would do: {'; '.join(said)}",
        key="lower" if under.max() > 1e-9 else "upper",
        remedy="relax these bounds or caps (a domain without share in the prior has the cap 0 while kl > 0)",
    )


STARTS = 8  # local solutions of a law that is not convex
SCREEN = 2000  # random mixtures they are chosen from
ROUNDS = 60  # of the search that needs no gradient
DRAWS = 400  # mixtures in each of them
NEARING = 12  # rounds of the search for what comes nearest to ceilings that nothing keeps
TOLERANCE = 1e-6  # of limits


def solve(problem: Problem, start: np.ndarray | None = None) -> np.ndarray:
    """The best mixture found, (D,); `start` is a mixture known to be near it.

    Raises:
        UserError: no mixture keeps every metric below its ceiling.
    """
    convex = problem.law.convex
    starts = _starts(problem, few=convex) if start is None else np.vstack([start, _starts(problem, few=True)])
    if problem.soft:
        starts = _starts(problem, few=False)
        over = problem.violation(starts)
        if (
            over.min() > TOLERANCE
        ):  # none of many keeps the ceilings: what comes nearest is looked for at once
            nearest = _random_search(problem, starts[int(np.argmin(over))], problem.violation, rounds=NEARING)
            if problem.violation(nearest)[0] > TOLERANCE:
                return nearest
            starts = nearest[None]
        starts = starts[: STARTS // 2]
    step = _slsqp if problem.law.smooth else _random_search
    found = np.array([step(problem, one) for one in starts])
    if convex and problem.violation(found).min() > TOLERANCE:
        found = np.array([step(problem, one) for one in _starts(problem, few=False)])
    found = np.vstack([found, starts])
    violation = problem.violation(found)
    if violation.min() > TOLERANCE:
        if problem.soft:
            return found[int(np.argmin(violation))]
        _refuse(problem, found[int(np.argmin(violation))])
    return found[int(np.argmin(np.where(violation <= TOLERANCE, problem.total(found), np.inf)))]


def _refuse(problem: Problem, nearest: np.ndarray) -> None:
    excess = upper_bounds(problem.law, problem.ceilings, nearest)[0] - problem.most()
    over = {m: more for m, more in zip(problem.ceilings, excess, strict=True) if more > 0}
    said = ", ".join(
        f"`{problem.law.metric_names[m]}` exceeds it by {excess:.3g}" for m, excess in over.items()
    )
    raise UserError(
        f"no mixture within the bounds keeps every metric as good as asked; at the nearest one {said}",
        key="no_worse_than",
        remedy="allow these metrics more",
    )


def _starts(problem: Problem, *, few: bool) -> np.ndarray:
    """Mixtures within the linear limits: near the baseline, and the best ones of a random pool."""
    domains = len(problem.law.domains)
    first = problem.feasible(0.95 * problem.baseline[0] + 0.05 / domains)
    if few:
        return first[None]
    pool = spread_out(problem)
    merit = problem.total(pool) + 1e3 * np.maximum(problem.violation(pool), 0)
    chosen: list[int] = []
    for index in np.argsort(merit, kind="stable"):
        if all(np.abs(pool[index] - pool[other]).sum() > 0.2 for other in chosen):
            chosen.append(int(index))
        if len(chosen) == STARTS:
            break
    return np.vstack([first, pool[chosen]])


def spread_out(problem: Problem) -> np.ndarray:
    """Random mixtures within the linear limits, near the corners and at a table's rows, (n, D)."""
    rng, domains = np.random.default_rng([problem.seed, 2]), len(problem.law.domains)
    spread = rng.choice([0.2, 1.0, 5.0], SCREEN)[:, None]
    pool = rng.gamma(spread * np.ones(domains)) + 1e-12
    parts = [pool / pool.sum(axis=1, keepdims=True), 0.97 * np.eye(domains) + 0.03 / domains]
    if problem.law.table is not None:
        parts.append(problem.law.table.ratios)
    return problem.pull_inside(np.vstack(parts))


def _slsqp(problem: Problem, start: np.ndarray) -> np.ndarray:
    """One local solution with analytic gradients; the worst case has its bound as one more variable."""
    law, domains = problem.law, len(start)
    worst = problem.reference is not None
    around = problem.pull_inside(0.5 * np.eye(domains) + 0.5 * start)
    spread = float(np.ptp(problem.total(np.vstack([start, problem.baseline, around]))))
    scale = min(max(spread, 1e-6), 1e3)

    def pad(rows: np.ndarray, last: float = 0.0) -> np.ndarray:
        return np.hstack([rows, np.full((len(rows), 1), last)]) if worst else rows

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = np.maximum(x[:domains], 0)
        held = problem.kl * float(problem.divergence(p)[0]) if problem.kl else 0.0
        slope = problem.kl_gradient(p)
        if worst:
            return (x[-1] + held) / scale, np.append(slope, 1.0) / scale
        return (float(law.objective(p)[0]) + held) / scale, (law.gradient(p)[0] + slope) / scale

    def at_most(
        value: Callable[[np.ndarray], np.ndarray], slope: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, Any]:
        return {"type": "ineq", "fun": lambda x: -value(x), "jac": lambda x: -slope(x)}

    one = pad(np.ones((1, domains)))
    constraints: list[dict[str, Any]] = [{"type": "eq", "fun": lambda x: one @ x - 1, "jac": lambda x: one}]
    low, high, sides, margin = problem.split_limits()
    if len(sides):
        wide = pad(sides)
        constraints.append(at_most(lambda x: wide @ x - margin, lambda x: wide))
    if problem.ceilings:
        # Finite differences leave a rest, so ceilings with standard errors are aimed at from a little below.
        below = np.array([TOLERANCE if ceiling.z else 0.0 for ceiling in problem.ceilings.values()])
        ceilings = problem.most() - below
        constraints.append(
            at_most(
                lambda x: (upper_bounds(law, problem.ceilings, x[:domains])[0] - ceilings) / scale,
                lambda x: pad(problem.upper_gradient(x[:domains])) / scale,
            )
        )
    bounds = list(zip(low, high, strict=True))
    if worst:
        used = np.flatnonzero(law.weights > 0).tolist()
        constraints.append(
            at_most(
                lambda x: (problem.excess(x[:domains])[0] - x[-1]) / scale,
                lambda x: pad(np.vstack([law.metric_gradient(x[:domains], m) for m in used]), -1.0) / scale,
            )
        )
        bounds.append((-np.inf, np.inf))
        start = np.append(start, problem.value(start)[0])
    answer = minimize(
        cost, start, jac=True, bounds=bounds, constraints=constraints, method="SLSQP",
        options={"maxiter": problem.iterations, "ftol": 1e-11},
    )  # fmt: skip
    if not np.isfinite(answer.x).all():
        return start[:domains]
    shares = np.clip(answer.x[:domains], low, high)
    return shares / shares.sum()


def _random_search(
    problem: Problem,
    start: np.ndarray,
    measure: Callable[[np.ndarray], np.ndarray] | None = None,
    rounds: int = ROUNDS,
) -> np.ndarray:
    """Shrinking random steps between pairs and along all shares, for laws without a gradient.

    Args:
        problem: with its linear limits.
        start: (D,) within them.
        measure: (n, D) -> (n,), what is made small; None: the problem's total under its ceilings.
        rounds: of random steps.
    """
    rng = np.random.default_rng([problem.seed, 3])
    domains = len(start)
    best = start

    def total(pool: np.ndarray) -> np.ndarray:
        return problem.total(pool) + 1e3 * np.maximum(problem.violation(pool), 0)

    merit = measure or total
    best_merit = float(merit(best[None])[0])
    radius = 0.5
    for _ in range(rounds):
        steps = radius * rng.standard_normal((DRAWS, domains)) * best.clip(0.05)
        pairs = rng.integers(0, domains, (DRAWS // 2, 2))
        amount = radius * rng.random(DRAWS // 2)
        steps[: DRAWS // 2] = 0
        steps[np.arange(DRAWS // 2), pairs[:, 0]] += amount
        steps[np.arange(DRAWS // 2), pairs[:, 1]] -= amount
        pool = np.maximum(best + steps, 0)
        pool = problem.pull_inside(pool / np.maximum(pool.sum(axis=1, keepdims=True), 1e-12))
        merits = merit(pool)
        if merits.min() < best_merit:
            best, best_merit = pool[int(np.argmin(merits))], float(merits.min())
        else:
            radius *= 0.7
    return best
