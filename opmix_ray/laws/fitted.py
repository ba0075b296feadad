"""A fitted law: predictions, the objective and its gradient, JSON in and out, and its quality by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import ConstantInputWarning, spearmanr

from opmix_ray.errors import UserError
from opmix_ray.laws.base import Response, Table, dump_response, load_response
from opmix_ray.laws.combined import Basis, Blend, blended, blends

FOLDS = 10
ROUNDED = 0.01  # by which the sum of shares may differ from 1
_SAME_SHARES = 9  # decimals in which shares of one mixture are equal

Quality = dict[str, dict[str, float | int | None]]
FORMAT = 2
NO_RANK = 0.3  # rank correlation out of fold below which a law that explains nothing is not to be trusted
UNEQUAL = 10.0  # times that the values of a metric vary more than those of another
LEAST_WEIGHT = 1e-3  # of a row in a refit
Refit = Callable[[Table], tuple[Sequence[Response], Response | None]]


class FittedLaw:
    """What `fit_law` returns.

    Args:
        name: of the law.
        domains: D names, in the order of the columns of every `ratios` below.
        metric_names: M names.
        weights: (M,) objective weights, sum to 1.
        responses: one per metric.
        direct: the objective fitted for itself, or None where it is the weighted sum of the responses.
        quality: by cross-validation, per metric and for `"objective"`.
        std_scale: factor on the objective's standard error, from cross-validation.
        details: what the law reports about its choice, as JSON values.
        table: the rows it was fitted on, or None.
        refit: `refit(table) -> (responses, direct)` under the choices made, for the bootstrap; lost in JSON.
        held_out: (N, M + 1) predictions out of fold of the metrics and, last, the objective; lost in JSON.
        in_sample: (N, M) predictions of the rows by the law as it was fitted; lost in JSON.
        sums: (D, C) where responses are of C domains, whose shares are sums of these; None: they are of the D.
    """

    def __init__(
        self,
        name: str,
        domains: Sequence[str],
        metric_names: Sequence[str],
        weights: np.ndarray,
        responses: Sequence[Response],
        direct: Response | None = None,
        quality: Quality | None = None,
        std_scale: float = 1.0,
        details: Mapping[str, Any] | None = None,
        table: Table | None = None,
        refit: Refit | None = None,
        held_out: np.ndarray | None = None,
        in_sample: np.ndarray | None = None,
        sums: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.domains = list(domains)
        self.metric_names = list(metric_names)
        self.weights = np.asarray(weights, dtype=np.float64)
        self.responses = list(responses)
        self.direct = direct
        self.quality = quality or {}
        self.std_scale = std_scale
        self.details = dict(details or {})
        self.table = table
        self.refit = refit
        self.held_out = held_out
        self.in_sample = in_sample
        self.sums = sums

    @property
    def convex(self) -> bool:
        """Whether the objective is convex in the mixture."""
        return all(response.convex for response in self._parts())

    @property
    def smooth(self) -> bool:
        """Whether the objective's gradient can be followed."""
        return all(response.smooth for response in self._parts())

    def _parts(self) -> list[Response]:
        if self.direct is not None:
            return [self.direct]
        return [r for r, weight in zip(self.responses, self.weights, strict=True) if weight > 0]

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        """Metrics of mixtures, (n, D) -> (n, M), in the metrics' own units; shares sum to 1."""
        self._check(ratios, whole=True)
        return self.at(ratios)

    def at(self, ratios: np.ndarray) -> np.ndarray:
        """The same where shares need not sum to 1, as on a solver's way."""
        shares = self._check(ratios)
        return np.column_stack([response.predict(shares) for response in self.responses])

    def metric_gradient(self, ratios: np.ndarray, metric: int) -> np.ndarray:
        """Gradient of one metric by the shares, (n, D) -> (n, D)."""
        return self._spread(self.responses[metric].gradient(self._check(ratios)))

    def objective(self, ratios: np.ndarray) -> np.ndarray:
        """Weighted mean of the metrics, (n, D) -> (n,)."""
        ratios = self._check(ratios)
        if self.direct is not None:
            return self.direct.predict(ratios)
        return sum((w * part.predict(ratios) for part, w in self._summed()), np.zeros(len(ratios)))

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        """Gradient of the objective by the shares, (n, D) -> (n, D)."""
        ratios = self._check(ratios)
        if self.direct is not None:
            return self._spread(self.direct.gradient(ratios))
        slopes = (w * part.gradient(ratios) for part, w in self._summed())
        return self._spread(sum(slopes, np.zeros(ratios.shape)))

    def objective_std(self, ratios: np.ndarray) -> np.ndarray:
        """Standard error of the objective of one new run, (n, D) -> (n,); calibrated by cross-validation."""
        ratios = self._check(ratios)
        if self.direct is not None:
            return self.std_scale * self.direct.std(ratios)
        variance = sum(((w * part.std(ratios)) ** 2 for part, w in self._summed()), np.zeros(len(ratios)))
        return self.std_scale * np.sqrt(variance)

    def _summed(self) -> list[tuple[Response, float]]:
        """Responses and weights that sum to the objective; blends, which have all in common, as one."""
        used = [(r, float(w)) for r, w in zip(self.responses, self.weights, strict=True) if w > 0]
        mixed = [(r, w) for r, w in used if isinstance(r, Blend)]
        if mixed:
            used = [(r, w) for r, w in used if not isinstance(r, Blend)]
            used.append((blended([r for r, _ in mixed], [w for _, w in mixed]), 1.0))
        return used

    def reweighted(self, rng: np.random.Generator) -> FittedLaw:
        """The law refitted with random row weights: one draw of the Bayesian bootstrap (Rubin 1981).

        Raises:
            UserError: the law was read from a file and has no rows to refit on.
        """
        if self.table is None or self.refit is None:
            raise UserError(
                "a law read from a file cannot be refitted",
                key="bootstrap",
                remedy="fit it again, or ask for 0",
            )
        drawn = rng.dirichlet(np.ones(len(self.table))) * len(self.table)
        return self._again(
            replace(self.table, weights=self.table.weights * np.maximum(drawn, LEAST_WEIGHT)[:, None])
        )

    def on_rows(self, kept: np.ndarray) -> FittedLaw:
        """The law refitted with next to no weight on all but the rows `kept` (N,); it needs its rows."""
        assert self.table is not None
        share = np.where(kept, 1.0, LEAST_WEIGHT)
        return self._again(replace(self.table, weights=self.table.weights * share[:, None]))

    def redrawn(self, rng: np.random.Generator) -> FittedLaw:
        """The law refitted to its own predictions plus errors out of fold with random signs.

        One draw of the wild bootstrap (Wu 1986; Davidson and Flachaire 2008). Errors out of fold are as large as
        errors on new runs, and a row keeps its sign over the metrics, which err together.

        Raises:
            UserError: the law was read from a file and has no rows to refit on.
        """
        if self.table is None or self.held_out is None or self.in_sample is None:
            return self.reweighted(rng)
        measured = self.table.metrics
        errors = np.nan_to_num(measured - self.held_out[:, : measured.shape[1]])
        signs = rng.choice([-1.0, 1.0], len(measured))[:, None]
        values = self.in_sample + signs * errors
        least = np.nanmin(measured, axis=0)
        values = np.where(least > 0, np.maximum(values, 0.5 * least), values)  # what has no log has no law
        return self._again(replace(self.table, metrics=np.where(np.isfinite(measured), values, np.nan)))

    def _again(self, table: Table) -> FittedLaw:
        assert self.refit is not None
        responses, direct = self.refit(table)
        return FittedLaw(
            self.name, self.domains, self.metric_names, self.weights, responses, direct, self.quality,
            self.std_scale, self.details, self.table, self.refit, self.held_out, self.in_sample,
        )  # fmt: skip

    def _check(self, ratios: np.ndarray, whole: bool = False) -> np.ndarray:
        try:
            ratios = np.atleast_2d(np.asarray(ratios, dtype=np.float64))
        except (TypeError, ValueError):
            raise UserError("must be an array of numbers", key="ratios", value=ratios) from None
        problem = ""
        if ratios.ndim > 2 or ratios.shape[1] != len(self.domains):
            problem = f"mixtures have {ratios.shape[-1]} shares, the law has {len(self.domains)} domains"
        elif whole and not (np.abs(ratios.sum(axis=1) - 1) < ROUNDED).all():
            problem = "shares of a mixture must sum to 1"
        if problem:
            remedy = f"give them in this order: {', '.join(self.domains)}"
            raise UserError(problem, key="ratios", value=ratios.tolist(), remedy=remedy)
        return ratios if self.sums is None else ratios @ self.sums

    def _spread(self, slopes: np.ndarray) -> np.ndarray:
        return slopes if self.sums is None else slopes @ self.sums.T

    def of_parts(self, domains: Sequence[str], parts: np.ndarray) -> FittedLaw:
        """The same law of more domains, its own consisting of them: parts (C, D); it cannot be refitted."""
        table = self.table and replace(self.table, ratios=self.table.ratios @ parts, domains=tuple(domains))
        return FittedLaw(
            self.name, domains, self.metric_names, self.weights, self.responses, self.direct, self.quality,
            self.std_scale, self.details, table, None, self.held_out, self.in_sample, (parts > 0).T.astype(float),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The whole law as JSON values."""
        basis = next((blend.basis for blend in blends(self.responses)), None)
        return {
            "format": FORMAT,
            "law": self.name,
            "domains": self.domains,
            "metrics": self.metric_names,
            "objective": dict(zip(self.metric_names, self.weights.tolist(), strict=True)),
            "quality": self.quality,
            "std_scale": self.std_scale,
            "details": self.details,
            "responses": [dump_response(response) for response in self.responses],
            "direct": None if self.direct is None else dump_response(self.direct),
            "basis": [] if basis is None else [dump_response(part) for part in basis.parts],
            "sums": None if self.sums is None else self.sums.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FittedLaw:
        """The law that `to_dict` wrote.

        Raises:
            UserError: the data is not a law of this format.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise UserError(
                f"not a law of format {FORMAT}", key="format", remedy="write it again with `opmix fit`"
            )
        try:
            law = cls(
                name=data["law"],
                domains=data["domains"],
                metric_names=data["metrics"],
                weights=np.array([data["objective"][name] for name in data["metrics"]]),
                responses=[load_response(item) for item in data["responses"]],
                direct=None if data["direct"] is None else load_response(data["direct"]),
                quality=data["quality"],
                std_scale=data["std_scale"],
                details=data["details"],
                sums=None if data.get("sums") is None else np.array(data["sums"], dtype=np.float64),
            )
            basis = Basis([load_response(item) for item in data.get("basis", [])])
            for blend in blends([*law.responses, *([] if law.direct is None else [law.direct])]):
                blend.basis = basis
            uniform = np.full((1, len(law.domains)), 1 / len(law.domains))
            with np.errstate(all="ignore"):
                found = law.predict(uniform), law.objective(uniform), law.objective_std(uniform)
            fits = [part.shape for part in found] == [(1, len(law.metric_names)), (1,), (1,)]
            numbers = all(np.isfinite(part).all() for part in found) and law.weights.sum() > 0
        except UserError:
            raise
        except Exception as error:  # wrong shapes and types show in as many ways
            raise UserError(
                f"the law is damaged ({error!r})", remedy="write it again with `opmix fit`"
            ) from None
        if not fits or not numbers:
            why = "its parts do not fit together" if not fits else "what it predicts is no number"
            raise UserError(f"the law is damaged ({why})", remedy="write it again with `opmix fit`")
        return law


def doubts(law: FittedLaw, *, told: bool) -> list[str]:
    """What speaks against trusting a law, in words.

    Args:
        law: with its rows.
        told: whether somebody has chosen the weights of the metrics.
    """
    assert law.table is not None
    quality, metrics, used = law.quality["objective"], law.table.metrics, law.weights > 0
    rows, domains = len(law.table), len(law.domains)
    found = []
    if rows < domains + 2:
        found.append(
            f"{rows} runs are few for {domains} domains: take the mixture as a first guess, and add runs"
        )
    explained, rank = quality["r2_cv"], quality["spearman_cv"]
    if explained is not None and explained <= 0 and (rank is None or rank < NO_RANK):
        found.append("the law does not predict runs that it has not seen: do not trust the mixture")
    spread = np.nanstd(metrics[:, used], axis=0)
    most = int(np.argmax(spread))
    others = float(np.median(np.delete(spread, most))) if len(spread) > 1 else np.inf
    if not told and spread[most] > UNEQUAL * others:
        name = [name for name, one in zip(law.metric_names, used, strict=True) if one][most]
        found.append(
            f"metrics differ in scale: `{name}` varies more than {UNEQUAL:g} times as much as the others, and decides; "
            "weigh them in a file for --objective"
        )
    return found


def make_folds(shares: np.ndarray, seed: int) -> list[np.ndarray]:
    """Held-out row indices of every fold: 10 folds, leave-one-out below 20 mixtures.

    Runs of the same mixture, with other seeds, are held out together: else a law is asked for what it has seen.

    Args:
        shares: mixtures, (N, D).
        seed: of the order.
    """
    _, first, of = np.unique(shares.round(_SAME_SHARES), axis=0, return_index=True, return_inverse=True)
    mixtures = np.sort(first)
    count = len(mixtures) if len(mixtures) < 2 * FOLDS else FOLDS
    order = np.random.default_rng([seed, len(mixtures)]).permutation(mixtures)
    return [np.flatnonzero(np.isin(first[of.ravel()], part)) for part in np.array_split(order, count)]


def score(measured: np.ndarray, in_sample: np.ndarray, held_out: np.ndarray) -> dict[str, float | int | None]:
    """Quality of one column: `r2` in sample; `spearman_cv`, `rmse_cv`, `r2_cv` out of fold; `rows`.

    `None` where a figure is not defined (a constant metric, too few rows).
    """
    known = np.isfinite(measured)
    both = known & np.isfinite(held_out)
    return {
        "r2": _r2(measured[known], in_sample[known]),
        "spearman_cv": spearman(measured[both], held_out[both]),
        "rmse_cv": float(np.sqrt(((measured - held_out)[both] ** 2).mean())) if both.any() else None,
        "r2_cv": _r2(measured[both], held_out[both]),
        "rows": int(known.sum()),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation, or None where it is not defined."""
    if len(first) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        value = float(spearmanr(first, second).statistic)
    return value if np.isfinite(value) else None


def _r2(measured: np.ndarray, predicted: np.ndarray) -> float | None:
    if len(measured) < 2:
        return None
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - predicted) ** 2).sum()) / spread if spread > 0 else None
