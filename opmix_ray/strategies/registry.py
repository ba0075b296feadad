"""Which code decides and acts for a strategy."""

from __future__ import annotations

from opmix_ray import plugins
from opmix_ray.config import RunConfig
from opmix_ray.decision.make import Decide, make_decision
from opmix_ray.strategies import doremi, mergemix, swarm
from opmix_ray.strategies.aioli import Sweeps
from opmix_ray.strategies.odm import Bandit
from opmix_ray.strategies.offline import offline
from opmix_ray.strategies.self_distillation import Distillation
from opmix_ray.train.live import Live

_DECIDERS: dict[str, Decide] = {
    "swarm": offline(swarm.decide),
    "doremi": offline(doremi.decide),
    "mergemix": offline(mergemix.decide),
}


def decider(config: RunConfig) -> Decide:
    """What happens at a decision: probes and a search, unless the strategy or another package has its own."""
    own: Decide | None = plugins.find("strategies", config.strategy)
    return _DECIDERS.get(config.strategy) or own or make_decision


def live(config: RunConfig, caps: dict[str, float]) -> Live | None:
    """What happens inside segments, if anything.

    Args:
        config: the run.
        caps: greatest share by domain that repetition allows in the stage.
    """
    objective = config.objective()
    if config.strategy == "odm":
        return Bandit(caps, objective, config.strategies.odm)
    if config.strategy == "aioli":
        return Sweeps(caps, objective, config.strategies.aioli)
    if config.strategy == "self-distillation":
        return Distillation(caps, objective, config.strategies.self_distillation)
    return None
