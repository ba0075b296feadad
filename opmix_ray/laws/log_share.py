"""The log-share law `L(p) = a + sum_d s_d log(p_d + eps) + sum_d b_d p_d`, ridge, one `eps` for all metrics.

Two forms are fitted for every metric: the log share of the one domain that explains it best with linear terms in
the others, and log shares of all domains; leave-one-out chooses the form, the penalty and, over all metrics
together, `eps`. With few rows it is the steadiest law, and where the rows bring derivatives of the metrics, they are
fitted along with the values.

`own-share` is the first form alone. It is the law of a decision, since it can be read for other runs than those it was
fitted on (`extrapolate.py`): what a domain does for another one is small and stays linear, so nothing but the effect of
a domain's own share grows when the pseudo-count falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opmix_ray.laws.base import Constant, Law, Response, Table, is_constant
from opmix_ray.laws.linear import Additive, additive
from opmix_ray.numerics.ridge import PENALTIES, RidgeFit, RidgePath, ridge_path, slopes_path

EPS = tuple(float(f"{10**x:.2g}") for x in np.arange(-4, 0.26, 0.25))
RELIEF = 10.0  # the penalty of a metric's own log share over that of the others, as a root
OWN = 3  # domains tried as a metric's own where it is not known
STRAIGHT = 0.35  # with larger pseudo-counts the log is a straight line, and its slope means nothing
CURVED = tuple(eps for eps in EPS if eps < STRAIGHT)


@dataclass(frozen=True)
class _Form:
    """One form of a metric's law, with every penalty.

    Args:
        logged: (D,) domains whose log share is a feature; the share of the others is.
        path: ridge on these features, for `own-share` after `even`.
        even: (D, D) map of the features whose linear coefficients sum to 0; None: as they are.
        features, weights: (N, D) and (N,) of the rows.
    """

    logged: np.ndarray
    path: RidgePath
    even: np.ndarray | None
    features: np.ndarray
    weights: np.ndarray

    def response(self, eps: float, index: int) -> Additive:
        """With the penalty of an index, as a response over all shares."""
        fit = self.path.at(index)
        if self.even is not None:
            fit = _mapped(fit, self.even, self.features, self.weights)
        return additive(fit, self.logged, ~self.logged, eps)


_Choices = dict[int, tuple[_Form, int]]  # metric -> its form and the index of its penalty


def _forms(table: Table, metric: int, eps: float, own: Sequence[int], every_log: bool) -> list[_Form]:
    ratios, values, weights = table.column(metric)
    slopes = table.column_slopes(metric)
    logs = np.log(ratios + eps)
    count = ratios.shape[1]

    def form(logged: np.ndarray, relief: np.ndarray, even: np.ndarray | None) -> _Form:
        features = np.hstack([logs[:, logged], ratios[:, ~logged]])
        plain = np.eye(count) if even is None else even
        if slopes is None:
            path = ridge_path(features @ plain, values, weights, relief)
        else:
            directions, derivatives = slopes
            rates = np.concatenate(
                [directions[:, :, logged] / (ratios + eps)[:, None, logged], directions[:, :, ~logged]],
                axis=2,
            )
            path = slopes_path(features @ plain, values, weights, rates @ plain, derivatives, relief)
        return _Form(logged, path, even, features, weights)

    even = None
    if not every_log:
        even = np.eye(count)
        even[1:, 1:] -= 1 / max(1, count - 1)
    found = []
    for domain in own:
        relief = np.ones(count)
        relief[0] = RELIEF
        found.append(form(np.arange(count) == domain, relief, even))
    if every_log:
        relief = np.ones(count)
        relief[list(own)[:1]] = RELIEF**0.5
        found.append(form(np.ones(count, bool), relief, None))
    return found


def _mapped(fit: RidgeFit, matrix: np.ndarray, features: np.ndarray, weights: np.ndarray) -> RidgeFit:
    """A fit on `features @ matrix` as one on the features themselves."""
    covariance = fit.covariance.copy()
    covariance[1:, 1:] = matrix @ covariance[1:, 1:] @ matrix.T
    beta, mean = matrix @ fit.beta, weights @ features / weights.sum()
    intercept = fit.intercept + float(fit.mean @ fit.beta - mean @ beta)
    return RidgeFit(intercept, beta, covariance, mean, fit.sigma, fit.loo)


class LogShareLaw(Law):
    """Ridge on log shares; every metric by itself but for `eps`.

    Args:
        eps: pseudo-counts among which leave-one-out over all metrics chooses.
    """

    name = "log-share"
    every_log = True

    def __init__(self, eps: Sequence[float] = EPS) -> None:
        self.eps = tuple(eps)

    def fit(self, table: Table) -> list[Response]:
        metrics = [m for m in range(len(table.metric_names)) if not is_constant(table.column(m)[1])]
        owns = {m: self._own(table, m) for m in metrics}
        spreads = {m: table.column(m)[1].std() for m in metrics}
        best: tuple[float, float, _Choices] = (np.inf, self.eps[0], {})
        for eps in self.eps:
            forms = {m: _forms(table, m, eps, owns[m], self.every_log) for m in metrics}
            error, choices = self._agreed(forms, spreads)
            if error < best[0]:
                best = error, eps, choices
        _, eps, choices = best
        return [
            choices[m][0].response(eps, choices[m][1])
            if m in choices
            else Constant(float(table.column(m)[1].mean()))
            for m in range(len(table.metric_names))
        ]

    def _agreed(self, forms: dict[int, list[_Form]], spreads: dict[int, float]) -> tuple[float, _Choices]:
        """Error over all metrics with one pseudo-count, and what they chose; each has a penalty of its own."""
        error = 0.0
        choices: _Choices = {}
        for m, several in forms.items():
            form = min(several, key=lambda form: form.path.sigmas.min())
            error += _log_error(form.path.sigmas.min(), spreads[m])
            choices[m] = form, int(np.argmin(form.path.sigmas))
        return error, choices

    def refit(self, table: Table, fitted: Sequence[Response]) -> list[Response]:
        """The same pseudo-count; form and penalty are chosen anew."""
        chosen = {r.eps for r in fitted if isinstance(r, Additive)}
        return type(self)(sorted(chosen) or self.eps).fit(table)

    def _own(self, table: Table, metric: int) -> list[int]:
        known = table.own[metric]
        if known is not None:
            return [known]
        ratios, values, _ = table.column(metric)
        logs = np.log(ratios + float(np.median(self.eps)))
        logs = logs - logs.mean(axis=0)
        strength = np.abs(logs.T @ (values - values.mean())) / np.maximum(np.linalg.norm(logs, axis=0), 1e-12)
        return [int(d) for d in np.argsort(-strength)[:OWN]]


class OwnShareLaw(LogShareLaw):
    """Ridge on the log share of a metric's own domain and on how the rest is divided among the others.

    The linear coefficients of the others sum to 0, so that they cannot take over the effect of the own share. All
    metrics share one penalty: with eight rows the leave-one-out error of a single metric chooses badly.
    """

    name = "own-share"
    every_log = False

    def __init__(self, eps: Sequence[float] = CURVED) -> None:
        super().__init__(eps)

    def _agreed(self, forms: dict[int, list[_Form]], spreads: dict[int, float]) -> tuple[float, _Choices]:
        errors = np.zeros(len(PENALTIES))
        for m, several in forms.items():
            errors += _log_error(np.min([form.path.sigmas for form in several], axis=0), spreads[m])
        index = int(np.argmin(errors))
        chosen = {m: min(several, key=lambda form: form.path.sigmas[index]) for m, several in forms.items()}
        return float(errors[index]), {m: (form, index) for m, form in chosen.items()}


def _log_error(sigmas: Any, spread: float) -> Any:
    """Leave-one-out errors in the log, in units of the metric's spread."""
    return np.log(np.maximum(sigmas, 1e-12) / spread)
