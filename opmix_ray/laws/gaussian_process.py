"""The Gaussian process law: log loss as a line in `log(p + eps)` and what bends away from it, see `gp`.

Every metric has its own parameters (sharing them costs accuracy: each metric listens to other domains); all share the
pseudo-count `eps`, which is chosen by the evidence. Not convex, but smooth: `propose` starts from several places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opmix_ray.laws.base import Constant, Law, Response, Table, fit_columns, is_constant, register
from opmix_ray.numerics import gp
from opmix_ray.numerics.ridge import first_spread

EPS = tuple(float(f"{10**x:.1g}") for x in np.arange(-3.5, 0.1, 0.5))
FIRST = 2  # where the climb over EPS begins
SUBSET = 128  # rows on which eps and first parameters are found
STEPS = 60  # of the first search for parameters
MORE_STEPS = 12  # of each later one
ROUNDS = 4  # of heavy tails
FRESH_BELOW = 40  # rows; above, cross-validation searches from the parameters of all rows
REFIT_BELOW = 160  # rows; above, it keeps them and is in closed form


@register
class GaussianProcess(Response):
    """Posterior mean and variance of one metric.

    Args:
        rows: (n, D) mixtures fitted on.
        eps, centre, scale: inputs are `(log(p + eps) - centre) / scale`; centre of shape (D,).
        theta: (D + 4,), see `gp`.
        alpha, noise: (n,) of `gp.Solved`.
        level, unit: targets are `(y - level) / unit`.
        logs: whether `y` is the log of the metric.
    """

    kind = "gaussian-process"
    convex = False

    def __init__(
        self,
        rows: np.ndarray,
        eps: float,
        centre: np.ndarray,
        scale: float,
        theta: np.ndarray,
        alpha: np.ndarray,
        noise: np.ndarray,
        level: float,
        unit: float,
        logs: bool,
    ) -> None:
        self.rows, self.eps, self.centre, self.scale = rows, eps, centre, scale
        self.theta, self.alpha, self.noise = theta, alpha, noise
        self.level, self.unit, self.logs = level, unit, logs
        self._x = self.inputs(rows)
        self._inverse: np.ndarray | None = None
        self._last: tuple[bytes, tuple[np.ndarray, gp.Kernel]] | None = None

    def inputs(self, ratios: np.ndarray) -> np.ndarray:
        """What the kernel sees, (n, D) -> (n, D)."""
        return (np.log(np.maximum(ratios, 0) + self.eps) - self.centre) / self.scale

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Metric values as standardised targets, (n,) -> (n,)."""
        return ((np.log(values) if self.logs else values) - self.level) / self.unit

    def metric(self, targets: np.ndarray) -> np.ndarray:
        """The inverse of `targets`."""
        values = self.level + self.unit * targets
        return np.exp(values) if self.logs else values

    def _kernel(self, ratios: np.ndarray) -> tuple[np.ndarray, gp.Kernel]:
        """Inputs and kernel at mixtures; a solver asks for the value and the gradient at one in turn."""
        if len(ratios) != 1:
            x = self.inputs(ratios)
            return x, gp.kernel(x, self._x, self.theta)
        key = ratios.tobytes()
        if self._last is None or self._last[0] != key:
            x = self.inputs(ratios)
            self._last = key, (x, gp.kernel(x, self._x, self.theta))
        return self._last[1]

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        _, kernel = self._kernel(ratios)
        return self.metric(kernel.value @ self.alpha + gp.MEAN * self.alpha.sum())

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        x, kernel = self._kernel(ratios)
        pull = kernel.slope * self.alpha
        by_input = pull @ self._x - x * pull.sum(axis=1)[:, None]
        by_input += np.exp(2 * self.theta[gp.LINE]) * (self.alpha @ self._x)
        by_input *= np.exp(2 * self.theta[: -gp.PARAMETERS])
        by_share = self.unit * by_input / self.scale / (np.maximum(ratios, 0) + self.eps)
        if self.logs:
            by_share *= self.metric(kernel.value @ self.alpha + gp.MEAN * self.alpha.sum())[:, None]
        return by_share

    def std(self, ratios: np.ndarray) -> np.ndarray:
        noise = np.exp(2 * self.theta[gp.NOISE])
        if self._inverse is None:
            ones = np.ones(len(self.rows))
            self._inverse = gp.solve(self.theta, self._x, ones, self.noise / noise).inverse
        x = self.inputs(ratios)
        cross = gp.kernel(x, self._x, self.theta).value + gp.MEAN
        known = np.einsum("nm,mk,nk->n", cross, self._inverse, cross, optimize=True)
        std = self.unit * np.sqrt(np.maximum(gp.variance(x, self.theta) - known, 0) + noise)
        return std * self.predict(ratios) if self.logs else std

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows.tolist(),
            "eps": self.eps,
            "centre": self.centre.tolist(),
            "scale": self.scale,
            "theta": self.theta.tolist(),
            "alpha": self.alpha.tolist(),
            "noise": self.noise.tolist(),
            "level": self.level,
            "unit": self.unit,
            "logs": self.logs,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GaussianProcess:
        return cls(
            rows=np.array(data["rows"]),
            eps=data["eps"],
            centre=np.array(data["centre"]),
            scale=data["scale"],
            theta=np.array(data["theta"]),
            alpha=np.array(data["alpha"]),
            noise=np.array(data["noise"]),
            level=data["level"],
            unit=data["unit"],
            logs=data["logs"],
        )


def _bare(ratios: np.ndarray, values: np.ndarray, eps: float) -> GaussianProcess:
    """A response with inputs and targets set up, and nothing fitted."""
    logs = bool(values.min() > 0)
    targets = np.log(values) if logs else values
    shares = np.log(ratios + eps)
    return GaussianProcess(
        rows=ratios,
        eps=eps,
        centre=shares.mean(axis=0),
        scale=float(shares.std(axis=0).mean()) or 1.0,
        theta=gp.start_theta(ratios.shape[1]),
        alpha=np.zeros(len(values)),
        noise=np.ones(len(values)),
        level=float(targets.mean()),
        unit=float(targets.std()),
        logs=logs,
    )


def _first(bare: GaussianProcess, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The variance (n,) of every row's noise over the scale, before anything is fitted."""
    return first_spread(bare.rows, bare.targets(values), weights) / weights


def _posterior(
    bare: GaussianProcess,
    values: np.ndarray,
    weights: np.ndarray,
    theta: np.ndarray,
    steps: int,
    rounds: int = ROUNDS,
) -> tuple[GaussianProcess, gp.Solved]:
    """Alternate between heavy tails and `steps` steps on the parameters; 0 keeps them."""
    x, y = bare.inputs(bare.rows), bare.targets(values)
    spread = _first(bare, values, weights)
    for _ in range(rounds):
        spread = gp.tails(gp.solve(theta, x, y, spread), theta, weights)
        if steps:
            theta, _ = gp.optimise(x, y, spread, theta, steps)
    solved = gp.solve(theta, x, y, spread)
    fitted = GaussianProcess(
        bare.rows, bare.eps, bare.centre, bare.scale, theta, solved.alpha, solved.noise,
        bare.level, bare.unit, bare.logs,
    )  # fmt: skip
    return fitted, solved


def _alone(
    ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, near: GaussianProcess
) -> GaussianProcess:
    """Some of the rows that `near` was fitted to, with its pseudo-count; few rows are searched from the start."""
    bare = _bare(ratios, values, near.eps)
    fresh = len(values) < FRESH_BELOW
    theta = gp.start_theta(ratios.shape[1]) if fresh else near.theta
    theta = _search(bare, values, weights, theta, STEPS if fresh else MORE_STEPS)[0]
    return _posterior(bare, values, weights, theta, MORE_STEPS if fresh else 0, 1)[0]


class GaussianProcessLaw(Law):
    """One Gaussian process per metric.

    Args:
        eps: pseudo-counts among which the evidence over all metrics chooses, in increasing order.
    """

    name = "gaussian-process"

    def __init__(self, eps: Sequence[float] = EPS) -> None:
        self.eps = tuple(eps)

    def fit(self, table: Table) -> list[Response]:
        eps, starts = self._choose_eps(table)
        return self._fit(table, eps, starts)

    def _fit(self, table: Table, eps: float, starts: dict[int, np.ndarray]) -> list[Response]:
        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            return _posterior(_bare(ratios, values, eps), values, weights, starts[metric], MORE_STEPS)[0]

        return fit_columns(table, one)

    def refit(self, table: Table, fitted: Sequence[Response]) -> list[Response]:
        """The same parameters with other row weights."""

        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            before = fitted[metric]
            assert isinstance(before, GaussianProcess)
            return _posterior(before, values, weights, before.theta, 0, 2)[0]

        return fit_columns(table, one)

    def held_out(
        self, table: Table, folds: Sequence[np.ndarray], fitted: Sequence[Response]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Searches parameters again below `REFIT_BELOW` rows; above, keeps them and is in closed form."""
        predicted, std = np.full(table.metrics.shape, np.nan), np.full(table.metrics.shape, np.nan)
        for metric, response in enumerate(fitted):
            ratios, values, weights = table.column(metric)
            if isinstance(response, Constant):
                predicted[:, metric], std[:, metric] = response.value, 0.0
                continue
            assert isinstance(response, GaussianProcess)
            known = np.flatnonzero(np.isfinite(table.metrics[:, metric]))
            many = len(values) >= REFIT_BELOW
            solved = _posterior(response, values, weights, response.theta, 0)[1] if many else None
            for held in folds:
                out = np.isin(known, held)
                if solved is not None:
                    at = np.flatnonzero(out)
                    mean, deviation = gp.leave_out(solved, response.targets(values), at)
                    predicted[known[at], metric] = response.metric(mean)
                    std[known[at], metric] = response.unit * deviation
                    if response.logs:
                        std[known[at], metric] *= response.metric(mean)
                elif not is_constant(values[~out]):
                    left = _alone(ratios[~out], values[~out], weights[~out], response)
                    predicted[held, metric] = left.predict(table.ratios[held])
                    std[held, metric] = left.std(table.ratios[held])
                elif not out.all():
                    predicted[held, metric], std[held, metric] = values[~out].mean(), 0.0
        return predicted, std

    def _choose_eps(self, table: Table) -> tuple[float, dict[int, np.ndarray]]:
        """The pseudo-count with the best evidence over all metrics on at most SUBSET rows, and parameters."""
        part = table
        if len(table) > SUBSET:
            rng = np.random.default_rng([table.seed, len(table)])
            part = table.rows(np.sort(rng.choice(len(table), SUBSET, replace=False)))
        varying = [m for m in range(len(table.metric_names)) if not is_constant(table.column(m)[1])]
        inputs = table.ratios.shape[1]
        searched: dict[int, tuple[float, dict[int, np.ndarray]]] = {}

        def total(place: int, starts: dict[int, np.ndarray]) -> float:
            if not 0 <= place < len(self.eps):
                return np.inf
            if place not in searched:
                cost, found = 0.0, {}
                for m in varying:
                    ratios, values, weights = part.column(m)
                    if is_constant(values):
                        found[m] = starts[m]
                        continue
                    bare = _bare(ratios, values, self.eps[place])
                    found[m], value = _search(bare, values, weights, starts[m], STEPS)
                    cost += value
                searched[place] = cost, found
            return searched[place][0]

        place = min(FIRST, len(self.eps) - 1)
        total(place, {m: gp.start_theta(inputs) for m in varying})
        while True:
            found = searched[place][1]
            best = min((place, place - 1, place + 1), key=lambda other: total(other, found))
            if best == place:
                return self.eps[place], found
            place = best


def _search(
    bare: GaussianProcess, values: np.ndarray, weights: np.ndarray, theta: np.ndarray, steps: int
) -> tuple[np.ndarray, float]:
    return gp.optimise(
        bare.inputs(bare.rows), bare.targets(values), _first(bare, values, weights), theta, steps
    )
