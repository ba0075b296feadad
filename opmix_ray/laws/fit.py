"""`fit_law`: checks the rows, fits the law asked for, judges it by cross-validation, and reads it for other runs.

Slopes are drawn towards each other where a law is read for other runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opmix_ray import plugins
from opmix_ray.errors import UserError, Weight, Whole, nearest, typed
from opmix_ray.laws.auto import Fit, fit_auto, fit_one
from opmix_ray.laws.base import Law, Response, Slopes, Table, objective_weights
from opmix_ray.laws.curves import LogLinearLaw
from opmix_ray.laws.extrapolate import Extrapolation
from opmix_ray.laws.fitted import FittedLaw, Quality, make_folds, score
from opmix_ray.laws.gaussian_process import GaussianProcessLaw
from opmix_ray.laws.linear import Linear, Ridge
from opmix_ray.laws.log_share import LogShareLaw, OwnShareLaw
from opmix_ray.laws.power import PowerLaw
from opmix_ray.laws.trees import TreesLaw
from opmix_ray.numerics import one_thread


@dataclass(frozen=True)
class OwnSlope:
    """How a metric's loss changes with the log of its own domain's share.

    Args:
        fitted: as in the response; below 0 but for noise.
        error: its standard error.
    """

    fitted: float
    error: float

    @classmethod
    def of(cls, response: Response, own: int | None) -> OwnSlope | None:
        """The steepest fall; where there is none, the slope of the metric's own domain, which noise has turned.

        Args:
            response: of the metric.
            own: index of its own domain; None: not known. What raises such a metric may really do so.

        Returns:
            None where the metric falls with no domain's share and is not known to belong to one.
        """
        slopes = getattr(response, "slopes", np.zeros(1))
        at = int(slopes.argmin())
        if slopes[at] >= 0:
            if own is None or np.count_nonzero(slopes) != 1 or slopes[own] == 0:
                return None
            at = own
        variance = getattr(response, "covariance", np.zeros((at + 2, at + 2)))[at + 1, at + 1]
        return cls(float(slopes[at]), math.sqrt(max(0.0, float(variance))))

    @property
    def value(self) -> float:
        """How steeply the loss falls."""
        return -self.fitted

    def at_least(self, least: float) -> float:
        """The same, and no less than its error: that a slope is small, noise must not say."""
        return max(self.value, self.error, least)


def extrapolated(
    responses: Sequence[Response], metrics: Sequence[str], extrapolation: Extrapolation,
    *, own: Sequence[int | None], weights: np.ndarray,
) -> list[Response]:  # fmt: skip
    """All responses of a law read for other runs, their slopes drawn towards each other.

    Args:
        responses: one per metric.
        metrics: their names.
        extrapolation: how.
        own: for every metric the index of its own domain, or None.
        weights: (M,) in the objective; towards metrics that have none no slope is drawn.
    """
    slopes = [OwnSlope.of(response, domain) for response, domain in zip(responses, own, strict=True)]
    found = [slope for slope, weight in zip(slopes, weights, strict=True) if slope is not None and weight > 0]
    if extrapolation.slope_trust == 1 or not found:
        return [
            response.extrapolate(extrapolation, m) for response, m in zip(responses, metrics, strict=True)
        ]
    least = max(0.05 * float(np.median([slope.value for slope in found])), float(np.finfo(float).tiny))
    common = float(np.exp(np.mean([np.log(slope.at_least(least)) for slope in found])))
    read = []
    for response, metric, slope in zip(responses, metrics, slopes, strict=True):
        how = extrapolation
        if slope is not None:
            wanted = common * (slope.at_least(least) / common) ** extrapolation.slope_trust
            how = replace(extrapolation, slope_ratio=-extrapolation.slope_ratio * wanted / slope.fitted)
        read.append(response.extrapolate(how, metric))
    return read


def own_domain(metric: str, domains: Sequence[str]) -> int | None:
    """The domain a metric is named after, or None: `eval_code_loss` and `metric/the_code_val_loss` -> `code`."""

    def core(name: str) -> str:
        name = re.sub(r"^(metric/|eval/|train/)", "", name.lower())
        name = re.sub(r"^(eval_|train_|metric_)", "", name)
        return re.sub(r"(_val|_eval|_test)?[_/](loss|bpb|ppl|perplexity|nll|ce)$", "", name)

    wanted = core(metric)
    matches = [index for index, domain in enumerate(domains) if core(domain) == wanted]
    return matches[0] if len(matches) == 1 else None


def owners(
    metrics: Sequence[str], domains: Sequence[str], given: Mapping[str, str] | None = None
) -> tuple[int | None, ...]:
    """For every metric the index of its own domain, or None.

    Args:
        metrics: M names.
        domains: D names.
        given: domain by metric, where names do not tell.

    Raises:
        UserError: a domain is given that is not there.
    """
    found = []
    for metric in metrics:
        domain = (given or {}).get(metric)
        if domain is not None and domain not in domains:
            raise UserError(
                f"the metric {metric} cannot belong to it", key="own", value=domain,
                remedy=f"the domains are {', '.join(domains)}",
            )  # fmt: skip
        found.append(own_domain(metric, domains) if domain is None else list(domains).index(domain))
    return tuple(found)


LAWS: dict[str, type[Law]] = {
    law.name: law
    for law in (LogLinearLaw, LogShareLaw, OwnShareLaw, PowerLaw, Linear, Ridge, GaussianProcessLaw, TreesLaw)
}
AUTO = "auto"
LEAST_ROWS = 3
LARGEST = 1e30  # size of a metric of a run that learned; far larger ones have no squares


@typed
@one_thread()
def fit_law(
    ratios: np.ndarray,
    metrics: np.ndarray,
    *,
    domains: Sequence[str],
    metric_names: Sequence[str],
    law: str = AUTO,
    objective: Mapping[str, Weight] | None = None,
    seed: Whole = 0,
    extrapolate: Extrapolation | None = None,
    noise: np.ndarray | None = None,
    slopes: Slopes | None = None,
    own: Mapping[str, str] | None = None,
    strict: bool = False,
) -> FittedLaw:
    """Fit a mixing law.

    Args:
        ratios: (N, D) shares of training tokens; rows sum to 1.
        metrics: (N, M) metrics, lower is better; NaN where a value is missing, as is one of more than `LARGEST`.
        domains: D names.
        metric_names: M names.
        law: `auto`, a name in `LAWS`, or one that another package brings.
        objective: weight per metric; none: the same for all. Normalised to sum to 1.
        seed: of everything random; the same seed gives the same law.
        extrapolate: read the law for other runs than those it is fitted on; `auto` then means `own-share`.
        noise: standard error of the measurements, broadcast to (N, M), in the metrics' units.
        slopes: derivatives of the metrics; `log-share` and `own-share` use them, others do without.
        own: the domain that a metric is the held-out loss of, where its name does not tell.
        strict: refuse rows that tell nothing about other mixtures; `opmix_ray.fit_law` does, unless told otherwise.

    Raises:
        UserError: an unknown law, shapes that do not agree, shares that are no mixture, fewer than 3 rows.
    """
    weights = objective_weights(metric_names, None if objective is None else dict(objective))
    table = check_table(ratios, metrics, domains, metric_names, noise, seed, slopes, own)
    if strict:
        _check_telling(table)
    if law == AUTO and extrapolate is not None:
        law = OwnShareLaw.name
    if law not in law_names():
        raise UserError("unknown law", key="law", value=law, remedy=nearest(law, law_names()))
    folds = make_folds(table.ratios, seed)
    fit = fit_auto(table, weights, folds) if law == AUTO else fit_one(make_law(law), table, weights, folds)
    quality, std_scale = _judge(table, weights, fit)

    def read(responses: Sequence[Response]) -> list[Response]:
        if extrapolate is None:
            return list(responses)
        return extrapolated(responses, metric_names, extrapolate, own=table.own, weights=weights)

    def refit(table: Table) -> tuple[list[Response], Response | None]:
        responses, direct = fit.refit(table)
        return read(responses), direct

    return FittedLaw(
        law,
        domains,
        metric_names,
        weights,
        read(fit.responses),
        fit.direct,
        quality,
        std_scale,
        fit.details,
        table,
        refit,
        np.column_stack([fit.held_out, fit.objective_held_out]),
        np.column_stack([response.predict(table.ratios) for response in fit.responses]),
    )


def _check_telling(table: Table) -> None:
    values, count = table.metrics, len(np.unique(table.ratios.round(6), axis=0))
    if "objective" in table.metric_names:
        raise UserError("is no name for a metric", key="metric_names", value="objective", remedy="rename it")
    if count < LEAST_ROWS:
        problem = f"{len(table)} rows have {count} different mixtures, a law needs at least {LEAST_ROWS}"
        raise UserError(problem, key="ratios", remedy="add rows of other mixtures")
    if not (np.nanmax(values, axis=0) > np.nanmin(values, axis=0)).any():
        raise UserError("every metric is the same in all rows", key="metrics", remedy="measure row by row")


def law_names() -> list[str]:
    """`auto`, the laws of this package and those that others bring."""
    return [AUTO, *LAWS, *(name for name in plugins.names("laws") if name not in LAWS)]


def make_law(name: str) -> Law:
    """A law by its name, from this package or another."""
    built_in = LAWS.get(name)
    own: Law = plugins.find("laws", name)() if built_in is None else built_in()
    return own


def _judge(table: Table, weights: np.ndarray, fit: Fit) -> tuple[Quality, float]:
    """Quality per metric and of the objective, and the factor that makes standard errors match."""
    in_sample = np.column_stack([response.predict(table.ratios) for response in fit.responses])
    quality = {
        name: score(table.metrics[:, m], in_sample[:, m], fit.held_out[:, m])
        for m, name in enumerate(table.metric_names)
    }
    used = weights > 0
    measured = table.metrics[:, used] @ weights[used]
    fitted = in_sample[:, used] @ weights[used] if fit.direct is None else fit.direct.predict(table.ratios)
    quality["objective"] = score(measured, fitted, fit.objective_held_out)
    return quality, calibrate(measured - fit.objective_held_out, fit.objective_std)


def calibrate(errors: np.ndarray, stds: np.ndarray) -> float:
    """Factor on standard errors (N,) that makes them match errors (N,) out of fold, in the mean square."""
    known = np.isfinite(errors) & np.isfinite(stds)
    size = float(np.sqrt((errors[known] ** 2).mean())) if known.any() else 0.0
    said = float(np.sqrt((stds[known] ** 2).mean())) if known.any() else 0.0
    return size / said if size > 0 and said > 0 else 1.0


def check_table(
    ratios: np.ndarray,
    metrics: np.ndarray,
    domains: Sequence[str],
    metric_names: Sequence[str],
    noise: np.ndarray | None = None,
    seed: int = 0,
    slopes: Slopes | None = None,
    own: Mapping[str, str] | None = None,
) -> Table:
    """A table of rows that hold a mixture and at least one metric; rows without any metric are dropped.

    Raises:
        UserError: see `fit_law`.
    """
    ratios = np.asarray(ratios, dtype=np.float64)
    metrics = np.asarray(metrics, dtype=np.float64)
    if ratios.ndim != 2 or metrics.ndim != 2 or len(ratios) != len(metrics):
        raise UserError(
            f"ratios {ratios.shape} and metrics {metrics.shape} must be two tables with the same rows",
            key="ratios",
            remedy="give arrays of shape (rows, domains) and (rows, metrics)",
        )
    for array, names, what in ((ratios, domains, "domains"), (metrics, metric_names, "metric_names")):
        if array.shape[1] != len(names) or len(set(names)) != len(names) or not names:
            raise UserError(
                f"{len(names)} names ({len(set(names))} different) for {array.shape[1]} columns",
                key=what,
                remedy="give one name per column, each once",
            )
    wrong = ~np.isfinite(ratios).all(axis=1) | (ratios < -1e-9).any(axis=1)
    wrong |= np.abs(ratios.sum(axis=1) - 1) > 1e-6
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"row {row} is no mixture: shares must be finite, at least 0 and sum to 1 "
            f"(least {ratios[row].min():g}, sum {ratios[row].sum():g})",
            key="ratios",
            remedy="divide every row by its sum",
        )
    metrics = np.where(np.abs(metrics) > LARGEST, np.nan, metrics)
    counts = np.isfinite(metrics).sum(axis=0)
    if counts.min() < LEAST_ROWS:
        name = metric_names[int(counts.argmin())]
        raise UserError(
            f"only {counts.min()} rows have a number (of at most {LARGEST:g}) for this metric, "
            f"a law needs at least {LEAST_ROWS}",
            key=name,
            remedy="add rows or leave the metric out",
        )
    known = np.isfinite(metrics).any(axis=1)
    weights = np.ones(metrics.shape)
    if noise is not None:
        error = np.broadcast_to(np.asarray(noise, dtype=np.float64), metrics.shape) ** 2
        weights = 1 / (error + np.nanmedian(error, axis=0) + 1e-300)
        weights = weights / np.nanmean(weights, axis=0)
    ratios = np.maximum(ratios, 0)
    ratios = ratios / ratios.sum(axis=1, keepdims=True)
    if slopes is not None:
        _check_slopes(slopes, ratios, metrics)
        slopes = slopes.rows(known)
    return Table(
        ratios[known], metrics[known], tuple(domains), tuple(metric_names), weights[known],
        owners(metric_names, domains, own), seed, slopes,
    )  # fmt: skip


def _check_slopes(slopes: Slopes, ratios: np.ndarray, metrics: np.ndarray) -> None:
    (rows, domains), count, steps = ratios.shape, metrics.shape[1], slopes.directions.shape[1:2]
    if slopes.directions.shape != (rows, *steps, domains) or slopes.values.shape != (rows, count, *steps):
        raise UserError(
            f"directions {slopes.directions.shape} and values {slopes.values.shape} do not fit ratios "
            f"{ratios.shape} and metrics {metrics.shape}",
            key="slopes",
            remedy="give arrays of shape (rows, directions, domains) and (rows, metrics, directions)",
        )
