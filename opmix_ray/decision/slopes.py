"""Derivatives of the candidates' losses: when they are measured, how many candidates that saves, what a law gets.

`theta(w)` is linear in the weights, so one backward pass gives a loss's derivative by every component, for the price of
about two forward passes (`Interpolator.gradients`). A law fitted on values and derivatives ranks better with a third
of the candidates, at the same cost, where there are many components and few candidates (docs/decisions.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from opmix_ray.config import RunConfig
from opmix_ray.decision.old_part import OldPart
from opmix_ray.trials.components import Components
from opmix_ray.trials.rows import TrialRow

if TYPE_CHECKING:
    from opmix_ray.laws import Slopes

LEAST_COMPONENTS = 16
MOST_TRIALS = 2  # for each component; with more, values alone do as well
PRICE = 3  # of a candidate with derivatives, in candidates without: a backward pass costs two forward passes
LEAST_CANDIDATES = 4
IN_LOG_SHARES = (
    "auto",
    "own-share",
    "log-share",
)  # laws that take derivatives, and are read for trained models


def with_slopes(config: RunConfig, components: int) -> bool:
    """Whether a decision on so many components measures derivatives.

    `auto`: from 16 components on, with less than two candidates for each, where the law uses them, every candidate is
    seen whole, and all that counts is text.
    """
    wanted = config.search.gradients
    if wanted != "auto":
        return bool(wanted)
    law = config.proposal.law
    uses = law in IN_LOG_SHARES and (law != "auto" or config.proposal.eps_steps is not None)
    asked = {name for name, source in config.evaluation.sets.items() if source.metric != "loss"}
    text = not any(weight for name, weight in config.objective().items() if name in asked)
    many = components >= LEAST_COMPONENTS and config.search.trials < MOST_TRIALS * components
    return uses and text and many and config.search.scheduler == "none"


def candidates(config: RunConfig, components: int) -> int:
    """Candidates scored per decision, at most: `search.trials`, or a third of them where each brings derivatives."""
    trials = config.search.trials
    if not with_slopes(config, components):
        return trials
    return min(trials, max(LEAST_CANDIDATES, math.ceil(trials / PRICE)))


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
    from opmix_ray.laws import Slopes  # evaluators, which import this module, need no laws

    values = gradients - np.einsum("nmc,nc->nm", gradients, weights)[:, :, None]
    return Slopes(data[None] - (weights @ data)[:, None], values)
