"""The problem that `propose` solves: objective, KL, linear limits and ceilings on metrics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linprog

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
        return (self.law.predict(shares) - reference)[:, used]

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
            worst = np.maximum(worst, over.max(axis=1))
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

    def check_limits(self) -> None:
        """Refuse linear limits that no mixture meets, naming the least relaxation that would do."""
        for name, low, high in zip(self.limit_names, self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high)) or low > 1 or high < 0:
                raise UserError(
                    "limits must lie in [0, 1]", key=name, value=(low, high), remedy="give shares"
                )
        count, domains = self.limits.shape
        # minimise the total slack: low - s1 <= limits p <= high + s2
        eye = np.eye(count)
        answer = linprog(
            np.concatenate([np.zeros(domains), np.ones(2 * count)]),
            A_ub=np.block([[-self.limits, -eye, 0 * eye], [self.limits, 0 * eye, -eye]]),
            b_ub=np.concatenate([-self.low, self.high]),
            A_eq=np.concatenate([np.ones(domains), np.zeros(2 * count)])[None],
            b_eq=[1.0],
            bounds=[(0, 1)] * domains + [(0, None)] * (2 * count),
        )
        if answer.fun is None or answer.fun <= 1e-9:
            return
        under, over = answer.x[domains : domains + count], answer.x[domains + count :]
        said = [
            f"`{n}` needs its least share {lo:.4g} lowered by {s:.4g}"
            for n, lo, s in zip(self.limit_names, self.low, under, strict=True)
            if s > 1e-9
        ] + [
            f"`{n}` needs its greatest share {hi:.4g} raised by {s:.4g}"
            for n, hi, s in zip(self.limit_names, self.high, over, strict=True)
            if s > 1e-9
        ]
        raise UserError(
            f"no mixture meets all limits: least shares sum to {self.low.sum():.4g}, greatest to "
            f"{self.high.sum():.4g}; the smallest change that would do: {'; '.join(said)}",
            key="bounds",
            remedy="relax these bounds or caps (a domain without share in the prior has the cap 0 while kl > 0)",
        )

    def feasible(self, towards: np.ndarray | None = None) -> np.ndarray:
        """The mixture within the linear limits nearest to `towards` (in total variation), (D,)."""
        domains = self.limits.shape[1]
        towards = np.full(domains, 1 / domains) if towards is None else towards
        eye = np.eye(domains)
        answer = linprog(
            np.concatenate([np.zeros(domains), np.ones(domains)]),
            A_ub=np.block(
                [
                    [-self.limits, np.zeros((len(self.limits), domains))],
                    [self.limits, np.zeros((len(self.limits), domains))],
                    [eye, -eye],
                    [-eye, -eye],
                ]
            ),
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
