"""Mixing laws: from rows of (mixture, metrics) to a function that predicts both for any mixture.

    law = fit_law(ratios, metrics, domains=["code", "prose"], metric_names=["code", "prose"])
    law.predict(mixtures), law.objective(mixtures), law.quality["objective"]

`LAWS` maps names to classes; `auto` chooses and stacks by cross-validation.
"""

from opmix_ray.laws.base import Law, Response, Slopes, Table, fit_columns, register
from opmix_ray.laws.extrapolate import Extrapolation
from opmix_ray.laws.fit import LAWS, fit_law
from opmix_ray.laws.fitted import FittedLaw

__all__ = [
    "LAWS",
    "Extrapolation",
    "FittedLaw",
    "Law",
    "Response",
    "Slopes",
    "Table",
    "fit_columns",
    "fit_law",
    "register",
]
