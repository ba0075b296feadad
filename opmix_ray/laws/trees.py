"""Gradient-boosted trees (LightGBM), after RegMix (Liu et al. 2024); needs the extra `trees`.

Steps instead of slopes: there is no gradient, so `propose` searches at random. Wants more rows than the other laws.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.laws.base import Law, Response, Table, fit_columns, register

ROUNDS = 300
RATE = 0.03
LEAF = 20  # rows in a leaf at least, LightGBM's default; an eighth of the rows where that is fewer


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise UserError(
            "this law needs LightGBM", key="law", value="trees", remedy="pip install 'opmix_ray[trees]'"
        ) from None
    return lightgbm


@register
class Trees(Response):
    """An ensemble of trees.

    Args:
        model: LightGBM's own text form; predicts `(y - level) / unit`.
        level, unit: of the metric.
        sigma: residual standard deviation in the metric's unit.
    """

    kind = "trees"
    convex = False
    smooth = False

    def __init__(self, model: str, level: float, unit: float, sigma: float) -> None:
        self.model, self.level, self.unit, self.sigma = model, level, unit, sigma

    @cached_property
    def _booster(self) -> Any:
        return _lightgbm().Booster(model_str=self.model)

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.level + self.unit * np.asarray(self._booster.predict(ratios, num_threads=1))

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return np.zeros(np.shape(ratios))

    def std(self, ratios: np.ndarray) -> np.ndarray:
        return np.full(len(ratios), self.sigma)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_booster"}

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "level": self.level, "unit": self.unit, "sigma": self.sigma}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trees:
        return cls(data["model"], data["level"], data["unit"], data["sigma"])


class TreesLaw(Law):
    """One ensemble per metric.

    Args:
        leaf: rows in a leaf at least; none: LightGBM's default, fewer where there are few rows.
    """

    name = "trees"

    def __init__(self, leaf: int | None = None) -> None:
        self.leaf = leaf

    def fit(self, table: Table) -> list[Response]:
        lightgbm = _lightgbm()

        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            level, unit = float(values.mean()), float(values.std())
            settings = {
                "objective": "regression",
                "learning_rate": RATE,
                "min_data_in_leaf": self.leaf or min(LEAF, max(2, len(values) // 8)),
                "seed": table.seed % 2**31,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": 1,
                "verbosity": -1,
            }
            data = lightgbm.Dataset(ratios, (values - level) / unit, weight=weights, params={"verbosity": -1})
            booster = lightgbm.train(settings, data, num_boost_round=ROUNDS)
            residual = (values - level) / unit - booster.predict(ratios)
            sigma = unit * max(float(np.sqrt((residual**2).mean())), 1e-3)
            return Trees(booster.model_to_string(), level, unit, sigma)

        return fit_columns(table, one)
