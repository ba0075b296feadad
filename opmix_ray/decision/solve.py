"""Minimise a `Problem`: SLSQP from one start where it is convex, from several elsewhere; a search for trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from opmix_ray.counts.ceilings import upper_bounds
from opmix_ray.decision.problem import Problem
from opmix_ray.errors import UserError

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
    rng = np.random.default_rng([problem.seed, 2])
    spread = rng.choice([0.2, 1.0, 5.0], SCREEN)[:, None]
    pool = rng.gamma(spread * np.ones(domains)) + 1e-12
    parts = [pool / pool.sum(axis=1, keepdims=True), 0.97 * np.eye(domains) + 0.03 / domains]
    if problem.law.table is not None:
        parts.append(problem.law.table.ratios)
    pool = problem.pull_inside(np.vstack(parts))
    merit = problem.total(pool) + 1e3 * np.maximum(problem.violation(pool), 0)
    chosen: list[int] = []
    for index in np.argsort(merit, kind="stable"):
        if all(np.abs(pool[index] - pool[other]).sum() > 0.2 for other in chosen):
            chosen.append(int(index))
        if len(chosen) == STARTS:
            break
    return np.vstack([first, pool[chosen]])


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
