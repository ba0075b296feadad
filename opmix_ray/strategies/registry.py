"""The strategies there are: the one place that names ours; other packages register theirs as entry points.

strategy_of(config).plan(config)
"""

from __future__ import annotations

import difflib
from importlib import import_module

from opmix_ray import plugins
from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError
from opmix_ray.strategies.base import Strategy

BUILT_IN = {  # name -> module in this package, and class
    "opmix": "opmix:OPMix",
    "opmix-published": "opmix:Published",
    "uniform": "rules:Uniform",
    "proportional": "rules:Proportional",
    "fixed": "rules:Fixed",
    "temperature": "rules:Temperature",
    "sequential": "rules:Sequential",
    "replay": "rules:Replay",
    "retrain": "rules:Retrain",
    "swarm": "swarm:Swarm",
    "mergemix": "mergemix:MergeMix",
    "doremi": "doremi:DoReMi",
    "odm": "odm:Odm",
    "aioli": "aioli:Aioli",
    "self-distillation": "self_distillation:SelfDistillation",
}


def strategy_names() -> list[str]:
    """Every strategy there is: ours, and those of other packages."""
    return [*BUILT_IN, *(name for name in plugins.names("strategies") if name not in BUILT_IN)]


def check_strategy(name: str, key: str) -> None:
    """Refuse a name that no strategy has.

    Raises:
        UserError: there is none; names the nearest.
    """
    known = strategy_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise UserError("no such strategy", key=key, value=name, remedy=f"{hint}known: {', '.join(known)}")


def strategy_of(config: RunConfig) -> Strategy:
    """The strategy that a run names.

    Raises:
        UserError: there is none of that name, or another package registers something else under it.
    """
    name = config.strategy
    check_strategy(name, "strategy")
    if name in BUILT_IN:
        module, _, kind = BUILT_IN[name].partition(":")
        found = getattr(import_module(f"opmix_ray.strategies.{module}"), kind)
    else:
        found = plugins.find("strategies", name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UserError(
            "is registered, but is no strategy", key="strategy", value=name,
            remedy="let the entry point name a subclass of `opmix_ray.Strategy` (docs/plugins.md)",
        )  # fmt: skip
    return found()
