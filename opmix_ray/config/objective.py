"""Objectives of other packages: what each evaluation set weighs.

    # in the package, registered under [project.entry-points."opmix_ray.objectives"]
    def by_group(sets: Mapping[str, SourceConfig]) -> dict[str, float]:
        ...

An objective is always a weighted mean of the sets' losses. So laws keep their gradients, a convex step stays convex,
and the gain of a proposal has an interval from the sequences of each set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from opmix_ray import plugins
from opmix_ray.config.data import SourceConfig
from opmix_ray.errors import UserError

Objective = Callable[[Mapping[str, SourceConfig]], Mapping[str, float]]
KEY = "evaluation.objective"


def own_objective(name: str, sets: Mapping[str, SourceConfig]) -> dict[str, float]:
    """Weights by set, summing to 1, as another package has them.

    Args:
        name: under which it is registered.
        sets: every evaluation set with its configuration.

    Raises:
        UserError: no package brings it, or it does not return weights.
    """
    found: Objective | None = plugins.find("objectives", name)
    if found is None:
        known = ", ".join(plugins.names("objectives")) or "none"
        raise UserError(
            "no installed package brings it",
            key=KEY,
            value=name,
            remedy=f"known: {known}; or use evaluation.weights",
        )
    weights = {key: float(value) for key, value in found(sets).items()}
    wrong = [key for key in weights if key not in sets]
    if wrong or any(not math.isfinite(w) or w < 0 for w in weights.values()) or not sum(weights.values()) > 0:
        raise UserError(
            f"returns weights that are none: {weights}",
            key=KEY,
            value=name,
            remedy="return a number of 0 or more by set",
        )
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}
