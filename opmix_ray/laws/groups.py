"""Many metrics as few groups that move alike: every group's mean is fitted, and every metric is a blend of them.

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

from opmix_ray.laws.base import Constant, Response, Table, is_constant, register
from opmix_ray.laws.stack import Corrected, Stack
from opmix_ray.numerics.ridge import EPS, first_spread, fit_ridge

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
