"""What a strategy's search will cost, from shapes and counts alone, and how many steps that leaves in a budget.

Costs of searching do not depend on how long the main run is, so they are known before it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import search_sets, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import architecture
from opmix_ray.model.flops import forward_flops, probe_flops, train_flops
from opmix_ray.runner.base import beginning
from opmix_ray.runner.plan import Step, plan, stage_domains
from opmix_ray.strategies.rules import planned
from opmix_ray.trials.slopes import PRICE, candidates, with_slopes
from opmix_ray.trials.space import choose_components, read_space


class Forecast:
    """FLOPs of runs of one configuration under any strategy.

    Args:
        config: the run.
        prepared: its data.
    """

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self._config, self._prepared = config, prepared
        self._length = prepared.seq_len
        self._model = self._built({})
        self._train = train_flops(self._model, 1.0, self._length)
        self._forward = forward_flops(self._model, 1.0, self._length)
        sets = search_sets(prepared, config.evaluation.sequences, config.search.sequences)
        self._seen = sum(map(tokens_of, sets.values()))  # tokens of one look at the held-out sets

    def training(self, strategy: str) -> float:
        """FLOPs of the main run."""
        config = self._planned(strategy)
        steps = sum(stage.steps for stage in config.stages)
        return steps * config.train.batch_size * self._length * self._train

    def searching(self, strategy: str) -> float:
        """FLOPs of probes, proxies and scoring, over all decisions and stages."""
        config = self._planned(strategy)
        if strategy == "aioli":
            return sum(self._aioli(config, stage) for stage in config.stages)
        costs: dict[str, Callable[[RunConfig, Step], float]] = {
            "swarm": self._swarm, "doremi": self._doremi, "mergemix": self._mergemix,
        }  # fmt: skip
        cost = costs.get(strategy, self._probes)
        total = 0.0
        for step in plan(config):
            if step.index >= 0:
                total += cost(config, step)
        return total

    def scale(self, strategy: str, budget: float) -> float:
        """Factor on the steps with which training and searching together cost the budget.

        Raises:
            UserError: searching alone costs more.
        """
        left = budget - self.searching(strategy)
        if left <= 0:
            raise UserError(
                f"its search alone costs {self.searching(strategy) / budget:.1f} times the whole run",
                key="--equal-compute", value=strategy,
                remedy="train for more steps, shorten its search, or leave the strategy out",
            )  # fmt: skip
        return left / self.training(strategy)

    def _planned(self, strategy: str) -> RunConfig:
        return planned(self._config.model_copy(update={"strategy": strategy}))

    def _built(self, changes: dict[str, Any]) -> Any:
        model = self._config.model
        if changes and model.config is not None:
            model = model.model_copy(update={"config": {**model.config, **changes}})
        prepared = self._prepared
        return architecture(model, vocab_size=prepared.vocab_size, eos_token_id=prepared.eos_token_id)

    def _probes(self, config: RunConfig, step: Step) -> float:
        names = stage_domains(config, config.stages[step.stage])
        before = {n for stage in config.stages[: step.stage] for n in stage_domains(config, stage)}
        before |= {name for name, share in beginning(config).mixture.items() if share > 0}
        old = {name: float(name in before) for name in names}
        mixture = Mixture(old) if any(old.values()) else Mixture.uniform(names)
        components = len(choose_components(read_space(step.space)[0].kind, mixture, names))
        count = components + config.probe.check  # one more, on all domains
        batch = config.probe.batch_size or config.train.batch_size
        tokens = count * config.probe.steps * batch * self._length
        probes = probe_flops(self._model, config.probe, tokens, self._length)
        scored = candidates(config, components) + 1  # the proposal is one more
        looks = scored * (PRICE if with_slopes(config, components) else 1) + config.probe.check
        return probes + looks * self._seen * self._forward

    def _swarm(self, config: RunConfig, step: Step) -> float:
        own = config.strategies.swarm
        train, forward = self._proxy(own.proxy)
        return own.proxies * (train + self._seen * forward)

    def _doremi(self, config: RunConfig, step: Step) -> float:
        train, _ = self._proxy(config.strategies.doremi.proxy)
        return 2 * train + 2 * train / 3  # two forward passes beside the training of both models

    def _mergemix(self, config: RunConfig, step: Step) -> float:
        own = config.strategies.mergemix
        tokens = own.steps * (own.batch_size or config.train.batch_size) * self._length
        experts = len(stage_domains(config, config.stages[step.stage])) * tokens * self._train
        return experts + own.trials * self._seen * self._forward

    def _proxy(self, settings: ProxyConfig) -> tuple[float, float]:
        """FLOPs of training one proxy, and of a token forward."""
        model = self._built(settings.model or {})
        batch = settings.batch_size or self._config.train.batch_size
        tokens = settings.steps * batch * self._length
        return (
            train_flops(model, tokens, self._length),
            forward_flops(model, 1.0, self._length),
        )

    def _aioli(self, config: RunConfig, stage: StageConfig) -> float:
        count = len(stage_domains(config, stage))
        looks = config.strategies.aioli.rounds * (count + 1) if count > 1 else 0
        return looks * self._seen * self._forward


def factors(config: RunConfig, prepared: Prepared, strategies: list[str]) -> dict[str, float]:
    """Factor on every strategy's steps with which all cost what the configured run costs without a search."""
    forecast = Forecast(config, prepared)
    budget = forecast.training("uniform")
    found = {name: forecast.scale(name, budget) for name in strategies}
    assert all(math.isfinite(value) for value in found.values())
    return found
