"""What a strategy plans, begins a stage with, decides, does while a model is trained, and costs; and all there are.

class WorstFirst(Strategy):
    def make(self, making: Making) -> Decision: ...

`BUILT_IN` lists ours, and nothing else does; other packages register theirs as entry points of `opmix_ray.strategies`.

strategy_of(config).plan(config)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from opmix_ray import plugins
from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import part_of, search_sets, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.budget import pretrained
from opmix_ray.decision.make import Situation, decided
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import architecture, forward_flops, train_flops
from opmix_ray.output.ledger import Ledger
from opmix_ray.storage import Storage
from opmix_ray.strategies.making import Making
from opmix_ray.train.callback import TrainingCallback


@dataclass(frozen=True)
class Planned:
    """A decision that a run will come to.

    Args:
        stage: that it is in, as long as it will be.
        domains: of its stage.
        known: domains trained on before the stage.
        space: its search space.
        first: its weights have trained no step, so nothing has measured them.
    """

    stage: StageConfig
    domains: list[str]
    known: set[str]
    space: str
    first: bool


class Costs:
    """FLOPs by token of a run's model, and how many tokens things take.

    Args:
        config: the run.
        prepared: its data.
    """

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self._config, self._prepared = config, prepared
        self.length = prepared.seq_len
        self.model = self._built({})
        self.train = train_flops(self.model, 1.0, self.length)
        self.forward = forward_flops(self.model, 1.0, self.length)
        self._sets = search_sets(
            prepared, config.evaluation.sequences, config.search.sequences, config.decided_on()
        )

    @property
    def seen(self) -> float:
        """Tokens of one look at the held-out sets."""
        return self.seen_of(None)

    def seen_of(self, sequences: int | None) -> float:
        """Tokens of one look at so many sequences of each set, at most; None: `search.sequences`."""
        return float(sum(tokens_of(part_of(held, slice(0, sequences))) for held in self._sets.values()))

    @property
    def look(self) -> float:
        """FLOPs of one look at the held-out sets with the run's own model."""
        return self.seen * self.forward

    def look_of(self, weights: Mapping[str, float]) -> float:
        """FLOPs of one look at those of the held-out sets that have a weight."""
        sets = [held for name, held in self._sets.items() if weights.get(name, 0) > 0]
        return float(sum(map(tokens_of, sets))) * self.forward

    def rows(self, domain: str, most: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Training rows of a domain, ids int64 (L,) and which count, bool (L,); so many at most, evenly spread."""
        store = self._prepared.domains[domain].train()
        places = np.unique(np.linspace(0, len(store) - 1, most).astype(int))
        ids, mask = map(torch.from_numpy, store.batch(places))
        return list(zip(ids, mask, strict=True))

    def proxy(self, settings: ProxyConfig) -> tuple[float, float]:
        """FLOPs of training one proxy, and of a token forward through it."""
        model = self._built(settings.model or {})
        tokens = settings.steps * (settings.batch_size or self._config.train.batch_size) * self.length
        return train_flops(model, tokens, self.length), forward_flops(model, 1.0, self.length)

    def _built(self, changes: dict[str, Any]) -> Any:
        model = self._config.model
        if changes and model.config is not None:
            model = model.but(config={**model.config, **changes})
        prepared = self._prepared
        return architecture(model, vocab_size=prepared.vocab_size, eos_token_id=prepared.eos_token_id)


class Strategy:
    """The neutral one: the run as it is configured, and every decision keeps the mixture in force.

    `decides` says when: at the points of the configuration, at those where the model has learned something (for
    strategies that read its weights), once before every stage that has such a point (for strategies that learn from
    separate models, so that the whole stage can profit), or never.
    """

    decides: ClassVar[Literal["as configured", "once trained", "before the stage", "never"]] = "as configured"

    def check(self, config: RunConfig) -> None:
        """Refuse a run that does not suit the strategy.

        Raises:
            UserError: it lacks a parameter, or does not suit.
        """

    def plan(self, config: RunConfig) -> RunConfig:
        """The run as the strategy wants it; planning again changes nothing."""
        self.check(config)
        return config.but(**self.changes(config))

    def changes(self, config: RunConfig) -> dict[str, Any]:
        """What the strategy wants otherwise, from the configuration alone: keys, and keys below them.

        {"probe": {"steps": 3}}
        """
        if self.decides == "as configured":
            return {}
        if self.decides == "once trained":
            if pretrained(config):
                return {}
            return {
                "stages": [
                    stage.but(decide_at=_later(stage)) if stage.restart or not number else stage
                    for number, stage in enumerate(config.stages)
                ]
            }
        before = self.decides == "before the stage"
        return {
            "stages": [
                stage.but(decide_at=[0.0] if stage.decide_at and before else []) for stage in config.stages
            ]
        }

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        """A stage's first mixture before any cap; None: as the stage says.

        Args:
            config: the run.
            stage: the stage.
            old: what was trained on before it, if anything.
            tokens: training tokens of the stage's domains.
        """
        return None

    def decide(
        self, config: RunConfig, prepared: Prepared, storage: Storage, situation: Situation,
        progress: Progress, ledger: Ledger,
    ) -> Decision:  # fmt: skip
        """One decision: the one that is in the run's output already, or what `make` makes.

        Args:
            config: the run.
            prepared: its data.
            storage: the run's output; the decision's files go to `decisions/<index>`.
            situation: when and where.
            progress: what a person sees.
            ledger: the cost is added to it once the decision is made.
        """

        def made(place: Storage) -> Decision:
            progress.message(f"decision {situation.index} at step {situation.step}: {config.strategy}")
            return self.make(Making(config, prepared, place, situation, progress, output=storage))

        return decided(storage, situation, progress, ledger, made)

    def make(self, making: Making) -> Decision:
        """Make a decision; what a crash left in `making.place` need not be done again."""
        return making.decision(making.situation.current, "the strategy keeps the mixture")

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback | None:
        """What happens inside segments; None: nothing.

        Args:
            config: the run, with the objective of the stage.
            caps: greatest share by domain that repetition allows in the stage.
        """
        return None

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        """FLOPs of one decision, from shapes and counts alone: known before the run begins."""
        return 0.0

    def training_cost(
        self, config: RunConfig, costs: Costs, mixtures: Callable[[], Sequence[Mixture]]
    ) -> float:
        """FLOPs of the main run.

        Args:
            config: the run as it was planned.
            costs: of its model and data.
            mixtures: gives the first mixture of every stage.
        """
        sequences = sum(stage.steps for stage in config.stages) * config.train.batch_size
        return sequences * costs.length * costs.train

    def live_cost(self, config: RunConfig, domains: int, costs: Costs) -> float:
        """FLOPs of what is measured inside a stage of so many domains, whose objective the configuration holds."""
        return 0.0


def refuse_divided(config: RunConfig, why: str) -> None:
    """Refuse workers that hold a part of the model each.

    Raises:
        UserError: they would; `why` the strategy needs the whole.
    """
    if config.train.strategy == "fsdp2" and config.train.workers > 1:
        raise UserError(why, key="train.strategy", value="fsdp2", remedy="use ddp, or one worker")


def _later(stage: StageConfig) -> list[float]:
    """Points of a stage after its first step; all of them, if there is no such point."""
    return [point for point in stage.decide_at if round(point * stage.steps) > 0] or stage.decide_at


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
    "merging": "online:Merge",
    "swarm": "separate:Swarm",
    "mergemix": "separate:MergeMix",
    "doremi": "separate:DoReMi",
    "odm": "online:Odm",
    "aioli": "online:Aioli",
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
