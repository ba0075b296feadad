"""Decides what a language model should train on next: a Ray-based search service over data mixtures.

>>> from opmix_ray import Mixture, fit_law, propose, run  # doctest: +SKIP

Names are imported when they are first used, so that `import opmix_ray` is quick. Functions refuse arguments of the
wrong kind with a `UserError`.
"""

from __future__ import annotations

from importlib import import_module
from inspect import isfunction
from typing import TYPE_CHECKING, Any

from opmix_ray.version import __version__ as __version__

if TYPE_CHECKING:
    from opmix_ray.api import discover, prepare, run, search, train_probes
    from opmix_ray.config import RunConfig, load_config, make_config
    from opmix_ray.data.held_out import search_sets
    from opmix_ray.decision.propose import propose
    from opmix_ray.decision.rule import Decision
    from opmix_ray.errors import UserError
    from opmix_ray.laws import fit_law
    from opmix_ray.mixture import Mixture
    from opmix_ray.model.interpolate import Interpolator, ProbeSet
    from opmix_ray.runner.search import make_task
    from opmix_ray.strategies.base import Costs, Planned, Strategy
    from opmix_ray.strategies.design import design
    from opmix_ray.strategies.making import Making
    from opmix_ray.train.callback import Moment, TrainingCallback
    from opmix_ray.trials.space import mixture_space
    from opmix_ray.trials.trial import CandidateScorer, MixtureTrial, SearchTask

_WHERE = {
    "CandidateScorer": "opmix_ray.trials.trial",
    "Costs": "opmix_ray.strategies.base",
    "Decision": "opmix_ray.decision.rule",
    "Interpolator": "opmix_ray.model.interpolate",
    "TrainingCallback": "opmix_ray.train.callback",
    "Making": "opmix_ray.strategies.making",
    "Mixture": "opmix_ray.mixture",
    "MixtureTrial": "opmix_ray.trials.trial",
    "Moment": "opmix_ray.train.callback",
    "Planned": "opmix_ray.strategies.base",
    "ProbeSet": "opmix_ray.model.interpolate",
    "RunConfig": "opmix_ray.config",
    "SearchTask": "opmix_ray.trials.trial",
    "Strategy": "opmix_ray.strategies.base",
    "UserError": "opmix_ray.errors",
    "design": "opmix_ray.strategies.design",
    "discover": "opmix_ray.api",
    "fit_law": "opmix_ray.laws",
    "load_config": "opmix_ray.config",
    "make_config": "opmix_ray.config",
    "make_task": "opmix_ray.runner.search",
    "mixture_space": "opmix_ray.trials.space",
    "prepare": "opmix_ray.api",
    "propose": "opmix_ray.decision.propose",
    "run": "opmix_ray.api",
    "search": "opmix_ray.api",
    "search_sets": "opmix_ray.data.held_out",
    "train_probes": "opmix_ray.api",
}

_UNLESS_TOLD: dict[str, dict[str, Any]] = {"fit_law": {"strict": True}}

__all__ = [
    "CandidateScorer",
    "Costs",
    "Decision",
    "Interpolator",
    "Making",
    "Mixture",
    "MixtureTrial",
    "Moment",
    "Planned",
    "ProbeSet",
    "RunConfig",
    "SearchTask",
    "Strategy",
    "TrainingCallback",
    "UserError",
    "design",
    "discover",
    "fit_law",
    "load_config",
    "make_config",
    "make_task",
    "mixture_space",
    "prepare",
    "propose",
    "run",
    "search",
    "search_sets",
    "train_probes",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_WHERE[name]), name)
    if isfunction(found):
        from opmix_ray.errors import typed

        found = typed(found, **_UNLESS_TOLD.get(name, {}))
    globals()[name] = found
    return found
