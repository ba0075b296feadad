"""What every mixing law is made of: a table of rows in, one fitted response per metric out.

A `Law` fits all metrics of a `Table` together and returns one `Response` per metric. A response predicts its
metric and its gradient for new mixtures and travels as plain JSON. `FittedLaw` (in `fitted.py`) holds the
responses of one sweep and the objective made of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from opmix_ray import plugins
from opmix_ray.errors import UserError, nearest
from opmix_ray.laws.extrapolate import Extrapolation


@dataclass(frozen=True)
class Slopes:
    """How the metrics of a sweep's rows change along directions in the simplex.

    Args:
        directions: (N, K, D) changes of the shares, each of sum 0.
        values: (N, M, K) derivative of every metric along every direction, in the metric's unit per unit of share;
            NaN where it was not measured.
    """

    directions: np.ndarray
    values: np.ndarray

    def rows(self, index: np.ndarray) -> Slopes:
        """Those of the rows chosen by an integer or boolean index."""
        return Slopes(self.directions[index], self.values[index])


@dataclass(frozen=True)
class Table:
    """Rows of a sweep.

    Args:
        ratios: (N, D) shares of training tokens, rows sum to 1.
        metrics: (N, M) measured metrics, lower is better; NaN where a value is missing.
        domains: D names.
        metric_names: M names.
        weights: (N, M) weight of every value in least squares, mean about 1.
        own: for every metric the index of the domain it is the held-out loss of; None where that is not known.
        seed: of everything random.
        slopes: of the metrics, for laws that use them; None: values alone.
    """

    ratios: np.ndarray
    metrics: np.ndarray
    domains: tuple[str, ...]
    metric_names: tuple[str, ...]
    weights: np.ndarray
    own: tuple[int | None, ...]
    seed: int = 0
    slopes: Slopes | None = None

    def __len__(self) -> int:
        return len(self.ratios)

    def rows(self, index: np.ndarray) -> Table:
        """The rows chosen by an integer or boolean index."""
        return replace(
            self,
            ratios=self.ratios[index],
            metrics=self.metrics[index],
            weights=self.weights[index],
            slopes=None if self.slopes is None else self.slopes.rows(index),
        )

    def column(self, metric: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ratios (n, D), values (n,) and weights (n,) of the rows that have the metric."""
        known = np.isfinite(self.metrics[:, metric])
        return self.ratios[known], self.metrics[known, metric], self.weights[known, metric]

    def column_slopes(self, metric: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Directions (n, K, D) and derivatives (n, K) of the rows that have the metric; None: there are none."""
        if self.slopes is None:
            return None
        known = np.isfinite(self.metrics[:, metric])
        values = self.slopes.values[known, metric]
        return (self.slopes.directions[known], values) if np.isfinite(values).any() else None


class Response(ABC):
    """One fitted metric as a function of the mixture."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def convex(self) -> bool:
        """Whether the response is a convex function of the mixture on the simplex."""

    @abstractmethod
    def predict(self, ratios: np.ndarray) -> np.ndarray:
        """Predicted metric, (n, D) -> (n,)."""

    @abstractmethod
    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        """Derivative of the prediction by every share, (n, D) -> (n, D)."""

    @abstractmethod
    def std(self, ratios: np.ndarray) -> np.ndarray:
        """Standard error of the prediction for one new run, (n, D) -> (n,)."""

    def extrapolate(self, extrapolation: Extrapolation, metric: str) -> Response:
        """The response read for another kind of run than the one it was fitted on."""
        raise UserError(
            f"the law `{self.kind}` cannot be read for other runs than those it was fitted on",
            key="law",
            remedy="use `own-share` or `log-share`",
        )

    @property
    def smooth(self) -> bool:
        """Whether the gradient says anything; a tree's does not."""
        return True

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything the response consists of, as JSON values, without its kind."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: dict[str, Any]) -> Response:
        """The response that `to_dict` described."""


class Law(ABC):
    """A way of fitting; has no state of its own."""

    name: ClassVar[str]

    @abstractmethod
    def fit(self, table: Table) -> list[Response]:
        """One response per metric of the table; every metric has at least two values."""

    def refit(self, table: Table, fitted: Sequence[Response]) -> list[Response]:
        """Responses for other rows or weights of the same sweep; may keep the choices that `fitted` holds."""
        return self.fit(table)

    def held_out(
        self, table: Table, folds: Sequence[np.ndarray], fitted: Sequence[Response]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and standard errors (N, M) of every row by a law fitted without its fold.

        `fitted` is that of all rows. A metric with fewer than two values left is predicted by their mean, or by NaN.
        """
        predicted = np.full(table.metrics.shape, np.nan)
        std = np.full(table.metrics.shape, np.nan)
        for held in folds:
            part = table.rows(np.setdiff1d(np.arange(len(table)), held))
            if not np.isfinite(part.metrics).any(axis=0).all():
                continue
            for metric, response in enumerate(self.refit(part, fitted)):
                predicted[held, metric] = response.predict(table.ratios[held])
                std[held, metric] = response.std(table.ratios[held])
        return predicted, std


RESPONSES: dict[str, type[Response]] = {}
ResponseT = TypeVar("ResponseT", bound=type[Response])


def register(cls: ResponseT) -> ResponseT:
    """Make a response class known to `load_response`."""
    RESPONSES[cls.kind] = cls
    return cls


def dump_response(response: Response) -> dict[str, Any]:
    """A response as JSON values, with its kind."""
    return {"kind": response.kind, **response.to_dict()}


def load_response(data: dict[str, Any]) -> Response:
    """The response that `dump_response` wrote."""
    kind = data.get("kind")
    if kind not in RESPONSES:
        plugins.load_all("laws")  # which registers their responses
    if kind not in RESPONSES:
        raise UserError(
            "unknown kind of response", key="kind", value=kind, remedy=f"known: {', '.join(RESPONSES)}"
        )
    return RESPONSES[kind].from_dict(data)


@register
class Constant(Response):
    """A metric that does not vary over the rows."""

    kind = "constant"
    convex = True

    def __init__(self, value: float) -> None:
        self.value = value

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return np.full(len(ratios), self.value)

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return np.zeros(np.shape(ratios))

    def std(self, ratios: np.ndarray) -> np.ndarray:
        return np.zeros(len(ratios))

    def extrapolate(self, extrapolation: Extrapolation, metric: str) -> Response:
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Constant:
        return cls(data["value"])


def is_constant(values: np.ndarray) -> bool:
    """Whether values differ by no more than rounding."""
    return len(values) < 2 or bool(np.ptp(values) <= 1e-9 * max(1e-300, float(np.abs(values).max())))


def fit_columns(
    table: Table, fit: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Response]
) -> list[Response]:
    """Fit every metric by itself: `fit(ratios, values, weights, metric)`; constant ones become `Constant`."""
    responses: list[Response] = []
    for metric in range(len(table.metric_names)):
        ratios, values, weights = table.column(metric)
        responses.append(
            Constant(float(values.mean())) if is_constant(values) else fit(ratios, values, weights, metric)
        )
    return responses


def objective_weights(metric_names: Sequence[str], objective: dict[str, float] | None) -> np.ndarray:
    """Weights (M,) that sum to 1.

    Raises:
        UserError: an unknown metric, a negative weight, or no weight above 0.
    """
    if objective is None:
        return np.full(len(metric_names), 1 / len(metric_names))
    for name, weight in objective.items():
        if name not in metric_names:
            raise UserError("no such metric", key="objective", value=name, remedy=nearest(name, metric_names))
        if not np.isfinite(weight) or weight < 0:
            raise UserError(
                "a metric's weight must be a finite number of at least 0",
                key=f"objective.{name}",
                value=weight,
                remedy="metrics are minimised; turn a score into a loss first",
            )
    weights = np.array([float(objective.get(name, 0.0)) for name in metric_names])
    if weights.sum() <= 0:
        raise UserError("no metric has a weight above 0", key="objective", remedy="give one of them a weight")
    return weights / weights.sum()
