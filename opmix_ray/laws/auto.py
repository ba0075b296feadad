"""`auto`: the stack of laws that cross-validation on the rows at hand prefers.

Every law is fitted and predicts out of fold. One set of weights over the laws, the same for all metrics, minimises the
error of those predictions. Many metrics are fitted as groups that move alike, see `groups`. What is optimised in the
end is the objective, and errors of a few metrics do not cancel in it, so laws of the objective itself stand beside
their stack and take its place in part where they lower the error of the objective out of fold by more than one standard
error.

Few rows cannot tell laws apart, and a power law has as many parameters as rows: below `ROWS` for each of them it is
left out and so are laws of the objective, and the fewer the rows, the more equal are the weights of what is left.

Trees are left out: they have no gradient, so a proposal could not follow the stack, and the result would depend on an
optional package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opmix_ray.laws.base import Law, Response, Table, is_constant
from opmix_ray.laws.combined import MANY, Groups, Stack, stack_weights, stacked_std
from opmix_ray.laws.gaussian_process import GaussianProcessLaw
from opmix_ray.laws.linear import Ridge
from opmix_ray.laws.log_share import LogShareLaw
from opmix_ray.laws.power import PowerLaw
from opmix_ray.numerics import in_order

STACKED: tuple[type[Law], ...] = (GaussianProcessLaw, PowerLaw, LogShareLaw, Ridge)
FEW: tuple[type[Law], ...] = (
    GaussianProcessLaw,
    LogShareLaw,
    Ridge,
)  # where rows are too few for a power law
ROWS = 3  # for each parameter of a power law, D + 2 of them, at least
DIRECT: tuple[type[Law], ...] = (GaussianProcessLaw, LogShareLaw)


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table, before it is judged.

    Args:
        responses: one per metric.
        direct: of the objective, or None where it is the weighted sum of the metrics.
        held_out, std: (N, M) predictions and standard errors out of fold.
        objective_held_out, objective_std: (N,) the same of the objective.
        details: what was chosen, as JSON values.
        refit: the same choices on the same rows with other weights.
    """

    responses: list[Response]
    direct: Response | None
    held_out: np.ndarray
    std: np.ndarray
    objective_held_out: np.ndarray
    objective_std: np.ndarray
    details: dict[str, Any]
    refit: Callable[[Table], tuple[list[Response], Response | None]]


def fit_one(law: Law, table: Table, weights: np.ndarray, folds: Sequence[np.ndarray]) -> Fit:
    """One law for all metrics; `weights` (M,) of the objective."""
    responses = law.fit(table)
    held_out, std = law.held_out(table, folds, responses)
    expected, error = summed(weights, held_out, std)
    return Fit(
        responses, None, held_out, std, expected, error, {}, lambda again: (law.refit(again, responses), None)
    )


def summed(weights: np.ndarray, values: np.ndarray, stds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objective (N,) and its standard error (N,) from those of the metrics, (N, M) twice."""
    used = weights > 0
    return values[:, used] @ weights[used], np.sqrt(((stds[:, used] * weights[used]) ** 2).sum(axis=1))


def objective_table(table: Table, weights: np.ndarray) -> Table:
    """The same rows with the objective as their only metric."""
    used = weights > 0
    values = table.metrics[:, used] @ weights[used]
    trust = 1 / ((1 / table.weights[:, used]) @ weights[used])
    return replace(
        table,
        metrics=values[:, None],
        metric_names=("objective",),
        weights=(trust / trust.mean())[:, None],
    )


def fit_auto(table: Table, weights: np.ndarray, folds: Sequence[np.ndarray]) -> Fit:
    """The stack over all metrics, and the objective's own model where that helps.

    Args:
        weights: (M,) of the objective.
        folds: held-out rows of every fold.
    """
    groups = Groups.of(table, weights) if table.metrics.shape[1] > MANY else None
    inner = table if groups is None else groups.table
    enough = len(table) >= ROWS * (table.ratios.shape[1] + 2)
    laws = [law() for law in (STACKED if enough else FEW)]
    even = np.full(inner.metrics.shape[1], 1 / inner.metrics.shape[1])
    fits = in_order(lambda k: fit_one(laws[k], inner, even, folds), len(laws))
    held_out = np.array([fit.held_out for fit in fits])  # (K, N, M or G)
    shares = _shared_weights(inner, held_out)
    kept = np.flatnonzero(shares)
    std = stacked_std(held_out[kept], np.array([fits[k].std for k in kept]), shares[kept])
    mean = np.tensordot(shares[kept], held_out[kept], axes=1)
    details: dict[str, Any] = {"weights": {laws[k].name: float(shares[k]) for k in kept}}
    chosen: Own | None = None
    direct = None

    def stacked(parts: Sequence[Sequence[Response]]) -> list[Response]:
        """Parts (K, M or G) as one response per metric."""
        one = list(parts[0])
        if len(kept) > 1:
            one = [Stack([part[m] for part in parts], shares[kept].tolist()) for m in range(len(one))]
        return one if groups is None else groups.responses(one)

    def refit(again: Table) -> tuple[list[Response], Response | None]:
        small = again if groups is None else groups.again(again)
        responses = stacked([laws[k].refit(small, fits[k].responses) for k in kept])
        if chosen is None:
            return responses, None
        sum_share, own = chosen
        target = objective_table(again, weights)
        own_again = [law.refit(target, [response])[0] for law, response, _ in own]
        return responses, _direct(responses, weights, sum_share, own_again, [share for _, _, share in own])

    responses = stacked([fits[k].responses for k in kept])
    if groups is not None:
        details["groups"] = groups.named(table.metric_names)
        expected, error = groups.objective(weights, mean, std)
        mean, std = groups.held_out(mean, std, folds)
        return Fit(responses, None, mean, std, expected, error, details, refit)
    measured = objective_table(table, weights).metrics[:, 0]
    sums = [summed(weights, fit.held_out, fit.std)[0] for fit in fits]
    details["rmse_cv"] = {law.name: _rmse(s - measured) for law, s in zip(laws, sums, strict=True)}
    expected, error = summed(weights, mean, std)
    if enough:
        chosen, expected, error = _own_model(table, weights, folds, expected, error, details)
    if chosen is not None:
        direct = _direct(
            responses, weights, chosen[0], [r for _, r, _ in chosen[1]], [share for _, _, share in chosen[1]]
        )
    return Fit(responses, direct, mean, std, expected, error, details, refit)


Own = tuple[float, list[tuple[Law, Response, float]]]


def _own_model(
    table: Table,
    weights: np.ndarray,
    folds: Sequence[np.ndarray],
    expected: np.ndarray,
    error: np.ndarray,
    details: dict[str, Any],
) -> tuple[Own | None, np.ndarray, np.ndarray]:
    """Laws of the objective beside the sum of the metrics' stacks, where they help; and the objective out of fold.

    Args:
        expected, error: (N,) the objective and its standard error out of fold as the sum.
    """
    target = objective_table(table, weights)
    measured = target.metrics[:, 0]
    known = np.isfinite(measured) & np.isfinite(expected)
    if (weights > 0).sum() < 2 or known.sum() < 6 or is_constant(measured[known]):
        return None, expected, error
    laws = [law() for law in DIRECT]
    fits = [fit_one(law, target, np.ones(1), folds) for law in laws]
    held_out = np.column_stack([expected, *(fit.held_out[:, 0] for fit in fits)])
    stds = np.column_stack([error, *(fit.std[:, 0] for fit in fits)])
    level, unit = measured[known].mean(), measured[known].std()
    shares = stack_weights((held_out - level) / unit, (measured - level) / unit, len(table))
    mixed = held_out @ shares
    better = (expected - measured)[known] ** 2 - (mixed - measured)[known] ** 2
    helps = bool(better.mean() > better.std(ddof=1) / np.sqrt(len(better)))
    details["objective"] = {
        "rmse_cv": {
            "sum of metrics": _rmse((expected - measured)[known]),
            **{
                law.name: _rmse((fit.held_out[:, 0] - measured)[known])
                for law, fit in zip(laws, fits, strict=True)
            },
        },
        "weights": {"sum of metrics": float(shares[0]) if helps else 1.0}
        | ({law.name: float(s) for law, s in zip(laws, shares[1:], strict=True) if s > 0} if helps else {}),
    }
    if not helps:
        return None, expected, error
    own = [
        (law, fit.responses[0], float(share))
        for law, fit, share in zip(laws, fits, shares[1:], strict=True)
        if share > 0
    ]
    return (float(shares[0]), own), mixed, stacked_std(held_out.T, stds.T, shares)


def _direct(
    responses: Sequence[Response],
    weights: np.ndarray,
    sum_share: float,
    own: Sequence[Response],
    own_shares: Sequence[float],
) -> Response:
    """`sum_share` of the weighted sum of the metrics' responses and the rest of the objective's own."""
    parts = [(r, sum_share * w) for r, w in zip(responses, weights, strict=True) if w > 0 and sum_share > 0]
    parts += list(zip(own, own_shares, strict=True))
    return Stack([part for part, _ in parts], [share for _, share in parts])


def _shared_weights(table: Table, held_out: np.ndarray) -> np.ndarray:
    """One weight per law (K,) from predictions out of fold (K, N, M), every metric in units of its spread."""
    features, values = [], []
    for m in range(table.metrics.shape[1]):
        measured = table.metrics[:, m]
        known = np.isfinite(measured)
        if is_constant(measured[known]):
            continue
        level, unit = measured[known].mean(), measured[known].std()
        features.append((held_out[:, known, m].T - level) / unit)
        values.append((measured[known] - level) / unit)
    if not features:
        return np.eye(len(held_out))[0]
    return stack_weights(np.vstack(features), np.concatenate(values), len(table))


def _rmse(errors: np.ndarray) -> float | None:
    known = np.isfinite(errors)
    return float(np.sqrt((errors[known] ** 2).mean())) if known.any() else None
