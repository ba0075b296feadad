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

import re
from collections.abc import Sequence

import numpy as np

from opmix_ray.laws.base import Constant, Law, Response, Table, is_constant
from opmix_ray.laws.linear import Additive, additive
from opmix_ray.laws.ridge import RidgeFit, fit_ridge, fit_ridge_slopes

EPS = tuple(float(f"{10**x:.2g}") for x in np.arange(-4, 0.26, 0.25))
RELIEF = 10.0  # the penalty of a metric's own log share over that of the others, as a root
OWN = 3  # domains tried as a metric's own where its name does not tell
STRAIGHT = 0.35  # with larger pseudo-counts the log is a straight line, and its slope means nothing
CURVED = tuple(eps for eps in EPS if eps < STRAIGHT)


def own_domain(metric: str, domains: Sequence[str]) -> int | None:
    """The domain a metric is named after, or None: `eval_code_loss` and `metric/the_code_val_loss` -> `code`."""

    def core(name: str) -> str:
        name = re.sub(r"^(metric/|eval/|train/)", "", name.lower())
        name = re.sub(r"^(eval_|train_|metric_)", "", name)
        return re.sub(r"(_val|_eval|_test)?[_/](loss|bpb|ppl|perplexity|nll|ce)$", "", name)

    wanted = core(metric)
    matches = [index for index, domain in enumerate(domains) if core(domain) == wanted]
    return matches[0] if len(matches) == 1 else None


def _forms(
    table: Table, metric: int, eps: float, own: Sequence[int], every_log: bool
) -> list[tuple[np.ndarray, np.ndarray, RidgeFit]]:
    ratios, values, weights = table.column(metric)
    slopes = table.column_slopes(metric)
    logs = np.log(ratios + eps)
    count = ratios.shape[1]
    found = []

    def fitted(
        logged: np.ndarray, linear: np.ndarray, relief: np.ndarray, even: np.ndarray | None
    ) -> RidgeFit:
        features = np.hstack([logs[:, logged], ratios[:, linear]])
        plain = np.eye(features.shape[1]) if even is None else even
        if slopes is None:
            fit = fit_ridge(features @ plain, values, weights, relief)
        else:
            directions, derivatives = slopes
            rates = np.concatenate(
                [directions[:, :, logged] / (ratios + eps)[:, None, logged], directions[:, :, linear]], axis=2
            )
            fit = fit_ridge_slopes(features @ plain, values, weights, rates @ plain, derivatives, relief)
        return fit if even is None else _mapped(fit, even, features, weights)

    for domain in own:
        chosen = np.zeros(count, bool)
        chosen[domain] = True
        relief = np.ones(count)
        relief[0] = RELIEF
        even = None
        if not every_log:
            even = np.eye(count)
            even[1:, 1:] -= 1 / max(1, count - 1)
        found.append((chosen, ~chosen, fitted(chosen, ~chosen, relief, even)))
    if not every_log:
        return found
    every, none = np.ones(count, bool), np.zeros(count, bool)
    relief = np.ones(count)
    relief[list(own)[:1]] = RELIEF**0.5
    found.append((every, none, fitted(every, none, relief, None)))
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
        errors = np.zeros(len(self.eps))
        best: list[dict[int, tuple[np.ndarray, np.ndarray, RidgeFit]]] = []
        for place, eps in enumerate(self.eps):
            fits = {
                m: min(_forms(table, m, eps, owns[m], self.every_log), key=lambda form: form[2].sigma)
                for m in metrics
            }
            errors[place] = sum(
                np.log(max(form[2].sigma, 1e-12) / table.column(m)[1].std()) for m, form in fits.items()
            )
            best.append(fits)
        place = int(np.argmin(errors))
        return [
            additive(best[place][m][2], best[place][m][0], best[place][m][1], self.eps[place])
            if m in best[place]
            else Constant(float(table.column(m)[1].mean()))
            for m in range(len(table.metric_names))
        ]

    def refit(self, table: Table, fitted: Sequence[Response]) -> list[Response]:
        """The same pseudo-count; form and penalty are chosen anew."""
        chosen = {r.eps for r in fitted if isinstance(r, Additive)}
        return type(self)(sorted(chosen) or self.eps).fit(table)

    def _own(self, table: Table, metric: int) -> list[int]:
        named = own_domain(table.metric_names[metric], table.domains)
        if named is not None:
            return [named]
        ratios, values, _ = table.column(metric)
        logs = np.log(ratios + float(np.median(self.eps)))
        logs = logs - logs.mean(axis=0)
        strength = np.abs(logs.T @ (values - values.mean())) / np.maximum(np.linalg.norm(logs, axis=0), 1e-12)
        return [int(d) for d in np.argsort(-strength)[:OWN]]


class OwnShareLaw(LogShareLaw):
    """Ridge on the log share of a metric's own domain and on how the rest is divided among the others.

    The linear coefficients of the others sum to 0, so that they cannot take over the effect of the own share.
    """

    name = "own-share"
    every_log = False

    def __init__(self, eps: Sequence[float] = CURVED) -> None:
        super().__init__(eps)
