"""Derivatives of the candidates' losses, as a law over shares takes them.

`theta(w)` is linear in the weights, so one backward pass gives a loss's derivative by every component, for the price of
about two forward passes (`Interpolator.gradients`). A law fitted on values and derivatives ranks better with a third
of the candidates, at the same cost, where there are many components and few candidates (docs/decisions.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opmix_ray.decision.old_part import OldPart
from opmix_ray.laws import Slopes
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.space import Components


def slopes_of(
    rows: Sequence[TrialRow], sets: Sequence[str], components: Components, old: OldPart | None
) -> Slopes | None:
    """Derivatives of N candidates' losses as a law over shares takes them; None: no candidate brings any.

    Args:
        rows: N candidates.
        sets: M evaluation sets.
        components: C of them; the law has a direction for each.
        old: where the law is over the old part and the new domains.
    """
    if not any(row.slopes for row in rows):
        return None
    data = components.data if old is None else old.reduce(components.data)
    weights = np.array([[row.weights[name] for name in components.names] for row in rows])
    none = [math.nan] * len(components.names)
    gradients = np.array([[row.slopes.get(name, none) for name in sets] for row in rows], dtype=np.float64)
    return towards(gradients, weights, data)


def towards(gradients: np.ndarray, weights: np.ndarray, data: np.ndarray) -> Slopes:
    """Derivatives towards every component, from those by its weight.

    Towards component c the weights move along `e_c - w`, the shares along `data_c - p`, and a loss of gradient g by the
    weights changes by `g_c - w . g`.

    Args:
        gradients: (N, M, C) of M losses by the weights.
        weights: (N, C).
        data: (C, D) shares that the components stand for.
    """
    values = gradients - np.einsum("nmc,nc->nm", gradients, weights)[:, :, None]
    return Slopes(data[None] - (weights @ data)[:, None], values)
