"""Responses made of other laws' responses: weighted means, corrections of one, and blends of groups that move alike.

Metrics of one group listen to the same domains, so a law of their mean has few domains to find out about; a law of the
mean of all metrics has many, and errs more than the sum of the groups' laws (benchmarks/fit.py: Spearman .978 against
.960 on olmix's sweep). A dozen groups stand for a hundred metrics, so laws are ten times as fast, and a noisy metric
borrows from its group what it shares with it. The objective is a sum of the groups without a rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from opmix_ray.laws.base import Constant, Response, Table, dump_response, is_constant, load_response, register
from opmix_ray.numerics.ridge import EPS, MAD, first_spread, fit_ridge, tail_spread

EVEN = 14.0  # rows at which the pull to equal weights is as strong as the best law's squared error
LEAST = 0.02  # smaller weights are dropped
ROUNDS = 10


@register
class Stack(Response):
    """`y = sum_k weight_k part_k(p)`.

    Args:
        parts: K responses of the same metric.
        weights: (K,), sum to 1.
    """

    kind = "stack"

    def __init__(self, parts: Sequence[Response], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.weights = [float(weight) for weight in weights]

    @property
    def convex(self) -> bool:
        return all(part.convex for part in self.parts)

    @property
    def smooth(self) -> bool:
        return all(part.smooth for part in self.parts)

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self._mean([part.predict(ratios) for part in self.parts])

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self._mean([part.gradient(ratios) for part in self.parts])

    def std(self, ratios: np.ndarray) -> np.ndarray:
        predicted = np.array([part.predict(ratios) for part in self.parts])
        return stacked_std(predicted, np.array([part.std(ratios) for part in self.parts]), self.weights)

    def _mean(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(np.array(self.weights), np.array(values), axes=1)

    def to_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "parts": [dump_response(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Stack:
        return cls([load_response(part) for part in data["parts"]], data["weights"])


@register
class Corrected(Response):
    """`y = intercept + slope part(p) + slopes . log(p + eps)`: a response corrected by runs of another size.

    Args:
        part: the response.
        intercept, slope, slopes: numbers, and an array (D,).
        eps: pseudo-count.
        mean, covariance: (D + 1,) and (D + 1, D + 1) of `[part(p), log(p + eps)]` and its coefficients.
        sigma: standard deviation of a new run.
    """

    kind = "corrected"
    convex = False

    def __init__(
        self, part: Response, intercept: float, slope: float, slopes: np.ndarray, eps: float, mean: np.ndarray,
        covariance: np.ndarray, sigma: float,
    ) -> None:  # fmt: skip
        self.part, self.intercept, self.slope, self.slopes, self.eps = part, intercept, slope, slopes, eps
        self.mean, self.covariance, self.sigma = mean, covariance, sigma
        self.parts = [part]

    @property
    def smooth(self) -> bool:
        return self.part.smooth

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(ratios, 0) + self.eps)
        return self.intercept + self.slope * self.part.predict(ratios) + logs @ self.slopes

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self.slope * self.part.gradient(ratios) + self.slopes / (np.maximum(ratios, 0) + self.eps)

    def std(self, ratios: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(ratios, 0) + self.eps)
        away = np.column_stack([self.part.predict(ratios), logs]) - self.mean
        return np.sqrt(self.sigma**2 + np.maximum(np.einsum("nf,fg,ng->n", away, self.covariance, away), 0))

    def to_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("slopes", "mean", "covariance")}
        numbers = {name: getattr(self, name) for name in ("intercept", "slope", "eps", "sigma")}
        return {"part": dump_response(self.part), **numbers, **arrays}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Corrected:
        arrays: dict[str, Any] = {name: np.array(data[name]) for name in ("slopes", "mean", "covariance")}
        numbers: dict[str, Any] = {name: float(data[name]) for name in ("intercept", "slope", "eps", "sigma")}
        return cls(load_response(data["part"]), **numbers, **arrays)


def stacked_std(predicted: np.ndarray, stds: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Standard error of a stack: its parts' mean error and their disagreement, (K, ...) twice -> (...).

    Parts err together, so their errors are not divided by their number.
    """
    share = np.asarray(weights)
    mean = np.tensordot(share, predicted, axes=1)
    apart = np.tensordot(share, (predicted - mean) ** 2, axes=1)
    return np.sqrt(np.tensordot(share, stds, axes=1) ** 2 + apart)


def stack_weights(held_out: np.ndarray, measured: np.ndarray, rows: int) -> np.ndarray:
    """Weights (K,) of the stack with the least error out of fold: at least 0, sum 1, small ones dropped.

    Least squares under heavy-tailed noise with a pull to equal weights, which falls with the square of the rows: what a
    dozen rows say about laws is mostly chance (stacking: Breiman 1996, Wolpert 1992).

    Args:
        held_out: (N, K) predictions out of fold, in units of the measured values' spread; rows with NaN are left out.
        measured: (N,).
        rows: of the sweep; N counts each once for every metric.
    """
    even = (EVEN / rows) ** 2
    known = np.isfinite(measured) & np.isfinite(held_out).all(axis=1)
    features, values = held_out[known], measured[known]
    count = held_out.shape[1]
    if not len(values):
        return np.full(count, 1 / count)
    kept = np.ones(count, bool)
    weights = np.zeros(count)
    for _ in range(count):
        weights[:] = 0
        weights[kept] = _simplex(features[:, kept], values, even)
        if weights[kept].min() >= LEAST:
            break
        kept = weights >= LEAST
    return weights


def _simplex(features: np.ndarray, values: np.ndarray, even: float) -> np.ndarray:
    count = features.shape[1]
    best = float(np.median((features - values[:, None]) ** 2, axis=0).min()) * MAD**2
    firm = 1e3 * np.sqrt(len(values)) * np.ones((1, count))
    pull = np.sqrt(even * best * len(values)) * np.eye(count)
    tail = np.ones(len(values))
    for _ in range(ROUNDS):
        left = np.vstack([features * tail[:, None], pull, firm])
        right = np.concatenate([values * tail, pull.sum(axis=0) / count, firm[0, :1]])
        found, _ = nnls(left, right)
        square = (features @ found - values) ** 2
        scale = max(float((tail**2 * square).mean()), 1e-300)
        tail = 1 / np.sqrt(tail_spread(square / scale))
    return found / found.sum()


MANY = 16  # metrics up to which each is fitted by itself
MOST = 12  # groups
ROWS = 5  # for each group at least
PULL = 3.0  # of a metric to its own group alone, in rows
STARTS = 5  # of k-means
BROKEN = 20.0  # variance over that of usual noise, ten standard deviations


class Basis:
    """Responses that several blends have in common; remembers the last mixtures, which all of them are asked for."""

    def __init__(self, parts: Sequence[Response]) -> None:
        self.parts = list(parts)
        self._last: dict[str, tuple[bytes, np.ndarray]] = {}

    def ask(self, what: str, ratios: np.ndarray) -> np.ndarray:
        """`predict`, `gradient` or `std` of all G parts, stacked: (G, n, ...)."""
        key = ratios.tobytes()
        if self._last.get(what, (b"",))[0] != key:
            self._last[what] = key, np.array([getattr(part, what)(ratios) for part in self.parts])
        return self._last[what][1]


@register
class Blend(Response):
    """`y = level + loads . parts(p)`.

    Args:
        basis: the parts, G of them; None until `FittedLaw.from_dict` has read them.
        level: of the metric.
        loads: (G,).
        rest: standard deviation of what the parts do not hold.
    """

    kind = "blend"
    convex = False

    def __init__(self, basis: Basis | None, level: float, loads: np.ndarray, rest: float) -> None:
        self.basis, self.level, self.loads, self.rest = basis, level, loads, rest

    def _ask(self, what: str, ratios: np.ndarray) -> np.ndarray:
        assert self.basis is not None, "a blend is read by FittedLaw.from_dict, with its parts"
        return self.basis.ask(what, np.asarray(ratios, dtype=np.float64))

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.level + np.tensordot(self.loads, self._ask("predict", ratios), axes=1)

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return np.tensordot(self.loads, self._ask("gradient", ratios), axes=1)

    def std(self, ratios: np.ndarray) -> np.ndarray:
        return np.sqrt(self.loads**2 @ self._ask("std", ratios) ** 2 + self.rest**2)

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "loads": self.loads.tolist(), "rest": self.rest}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Blend:
        return cls(None, data["level"], np.array(data["loads"]), data["rest"])


def blends(responses: Sequence[Response]) -> Iterator[Blend]:
    """All blends among responses, in their stacks and corrections."""
    for response in responses:
        if isinstance(response, Blend):
            yield response
        elif isinstance(response, Stack | Corrected):
            yield from blends(response.parts)


def blended(parts: Sequence[Blend], weights: Sequence[float]) -> Blend:
    """The weighted sum of blends of one basis, as one."""
    share = np.asarray(weights, dtype=np.float64)
    rest = float(np.sqrt((share**2) @ np.array([part.rest for part in parts]) ** 2))
    level = float(share @ np.array([part.level for part in parts]))
    return Blend(parts[0].basis, level, share @ np.array([part.loads for part in parts]), rest)


@dataclass(frozen=True)
class Groups:
    """A table of many metrics as one of few.

    Args:
        table: the same rows with the means of G groups as metrics.
        filled: (N, M) the metrics, with predictions of a plain law where a value is missing.
        member: (M, G) whether a metric is of a group; a constant one is of none.
        shares: (M, G) of every metric in its group's mean.
    """

    table: Table
    filled: np.ndarray
    member: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, table: Table, weights: np.ndarray) -> Groups:
        """Groups of a table's metrics; `weights` (M,) of the objective.

        A metric counts in its group's mean as in the objective. Where none of a group does, all count the same in units
        of their spread.
        """
        rows, count = table.metrics.shape
        varying = np.array([m for m in range(count) if not is_constant(table.column(m)[1])])
        filled = np.tile(np.nanmean(table.metrics, axis=0), (rows, 1))
        for m in varying:
            filled[:, m] = _likely(table, int(m))
        away = (filled - filled.mean(axis=0))[:, varying]
        spread = np.maximum(np.linalg.norm(away, axis=0), 1e-300)
        most = max(1, min(MOST, rows // ROWS, len(varying)))
        from sklearn.cluster import KMeans  # half of what `opmix status` would import

        found = KMeans(most, n_init=STARTS, random_state=table.seed % 2**31).fit_predict((away / spread).T)
        member, shares = np.zeros((count, most), bool), np.zeros((count, most))
        member[varying, found] = True
        for group in range(most):
            inside = found == group
            part = weights[varying[inside]]
            part = part if part.sum() > 0 else 1 / spread[inside]
            shares[varying[inside], group] = part / part.sum()
        return cls(_small(table, filled, shares), filled, member, shares)

    def again(self, table: Table) -> Table:
        """Other values or weights of the same rows in the same groups."""
        known = np.isfinite(table.metrics)
        return _small(table, np.where(known, table.metrics, self.filled), self.shares)

    def responses(self, parts: Sequence[Response]) -> list[Response]:
        """One response per metric (M,), given those of the groups (G,)."""
        basis = Basis(parts)
        level, loads, rest = self._loads(np.ones(len(self.filled), bool))
        return [
            Blend(basis, level[m], loads[m], rest[m]) if loads[m].any() else Constant(level[m])
            for m in range(len(level))
        ]

    def named(self, names: Sequence[str]) -> list[list[str]]:
        """Names of the metrics of every group."""
        return [
            [name for name, inside in zip(names, column, strict=True) if inside] for column in self.member.T
        ]

    def objective(
        self, weights: np.ndarray, means: np.ndarray, stds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The objective of weights (M,) and its standard error, (N,) each, given those of the groups (N, G)."""
        loads, constant = weights @ self.member, ~self.member.any(axis=1)
        rest = float(weights[constant] @ self.filled[0, constant])
        return rest + means @ loads, np.sqrt(stds**2 @ loads**2)

    def held_out(
        self, means: np.ndarray, stds: np.ndarray, folds: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Metrics and their standard errors (N, M) out of fold, given those of the groups (N, G)."""
        values, errors = np.full(self.filled.shape, np.nan), np.full(self.filled.shape, np.nan)
        for held in folds:
            level, loads, rest = self._loads(~np.isin(np.arange(len(means)), held))
            values[held] = level + means[held] @ loads.T
            errors[held] = np.sqrt(stds[held] ** 2 @ loads.T**2 + rest**2)
        return values, errors

    def _loads(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levels (M,), loads (M, G) and rests (M,) of blends, by some of the rows.

        Least squares on a metric's own group, then ridge on all groups for what is left. Both are the same for all
        metrics, so that the objective's loads are its weights on the groups.
        """
        means, values = self.table.metrics[kept], self.filled[kept]
        centre, level = means.mean(axis=0), values.mean(axis=0)
        means, values = means - centre, values - level
        unit = np.maximum(means.std(axis=0), 1e-300)
        own = self.member * (values.T @ means) / (len(means) * unit**2)
        scaled = means / unit
        inverse = np.linalg.inv(scaled.T @ scaled + PULL * np.eye(len(unit)))
        loads = own + (inverse @ scaled.T @ (values - means @ own.T)).T / unit
        loads[~self.member.any(axis=1)] = 0
        rest = np.sqrt(((values - means @ loads.T) ** 2).mean(axis=0))
        return level - loads @ centre, loads, rest


def _likely(table: Table, metric: int) -> np.ndarray:
    """A metric's values (N,): a plain law's where one is missing, and near to it where one is broken.

    Values that are only unlikely stay as they are. A domain that few rows have is unlikely too, and drawing such rows
    to a plain law cost .008 of Spearman's correlation on olmix's sweep.
    """
    known = np.isfinite(table.metrics[:, metric])
    ratios, values, weights = table.column(metric)
    spread = first_spread(ratios, values, weights)
    trust = weights / spread
    fit = fit_ridge(np.log(ratios + EPS), values, trust / trust.mean())
    filled = fit.intercept + np.log(table.ratios + EPS) @ fit.beta
    filled[known] = np.where(spread > BROKEN, values - fit.loo * (1 - 1 / spread), values)
    return filled


def _small(table: Table, values: np.ndarray, shares: np.ndarray) -> Table:
    count = shares.shape[1]
    inside = (shares > 0) / np.maximum((shares > 0).sum(axis=0), 1)
    return replace(
        table,
        metrics=values @ shares,
        metric_names=tuple(f"group {k + 1}" for k in range(count)),
        weights=table.weights @ inside,
        own=(None,) * count,
        slopes=None,
    )
