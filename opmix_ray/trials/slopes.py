"""When candidates are measured with the derivatives of their losses, and how many candidates that saves."""

from __future__ import annotations

import math

from opmix_ray.config import RunConfig

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

    `auto`: from 16 components on, with less than two candidates for each, where the law uses them and all that counts
    is text.
    """
    wanted = config.search.gradients
    if wanted != "auto":
        return bool(wanted)
    law = config.proposal.law
    uses = law in IN_LOG_SHARES
    asked = {name for name, source in config.evaluation.sets.items() if source.metric != "loss"}
    text = not any(weight for name, weight in config.objective().items() if name in asked)
    many = components >= LEAST_COMPONENTS and config.search.trials < MOST_TRIALS * components
    return uses and text and many


def candidates(config: RunConfig, components: int) -> int:
    """Candidates scored per decision, at most: `search.trials`, or a third of them where each brings derivatives."""
    trials = config.search.trials
    if not with_slopes(config, components):
        return trials
    return min(trials, max(LEAST_CANDIDATES, math.ceil(trials / PRICE)))
