"""What a strategy's search will cost, from shapes and counts alone, and how many steps that leaves in a budget.

What a search may cost can itself depend on how long the stages are (`search.budget`), so a scale is searched for.
"""

from __future__ import annotations

import math

from opmix_ray.compare.plan import scaled
from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError
from opmix_ray.runner.base import beginning
from opmix_ray.runner.plan import in_stage, plan, stage_domains
from opmix_ray.strategies.costs import Costs, Planned
from opmix_ray.strategies.registry import strategy_of

ROUNDS, CLOSE = 20, 1e-4  # of looking for a scale: at most, and how near two of them are at the end


class Forecast:
    """FLOPs of runs of one configuration under any strategy.

    Args:
        config: the run.
        prepared: its data.
    """

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self._config, self._costs = config, Costs(config, prepared)

    def training(self, strategy: str, scale: float = 1.0) -> float:
        """FLOPs of the main run, with so many times its steps."""
        config = self._planned(strategy, scale)
        steps = sum(stage.steps for stage in config.stages)
        return steps * config.train.batch_size * self._costs.length * self._costs.train

    def searching(self, strategy: str, scale: float = 1.0) -> float:
        """FLOPs of probes, proxies and scoring, over all decisions and stages, in a run of so many times its steps."""
        config = self._planned(strategy, scale)
        way, total = strategy_of(config), 0.0
        begun = {name for name, share in beginning(config).mixture.items() if share > 0}
        for stage in config.stages:
            total += way.live_cost(config, len(stage_domains(config, stage)), self._costs)
        for step in plan(config):
            if step.index >= 0:
                earlier = config.stages[: step.stage]
                known = begun | {name for stage in earlier for name in stage_domains(config, stage)}
                stage = config.stages[step.stage]
                planned = Planned(stage, stage_domains(config, stage), known, step.space)
                total += way.cost(in_stage(config, step.stage, begun), planned, self._costs)
        return total

    def scale(self, strategy: str, budget: float) -> float:
        """Factor on the steps with which training and searching together cost the budget.

        Raises:
            UserError: searching alone costs more.
        """
        whole = self.training(strategy)
        factor = 1.0
        for _ in range(ROUNDS):
            left = budget - self.searching(strategy, factor)
            if left <= 0:
                raise UserError(
                    f"its search alone costs {self.searching(strategy, factor) / budget:.1f} times the whole run",
                    key="--equal-compute", value=strategy,
                    remedy="train for more steps, shorten its search, or leave the strategy out",
                )  # fmt: skip
            before, factor = factor, left / whole
            if abs(factor - before) < CLOSE:
                break
        return factor

    def _planned(self, strategy: str, scale: float) -> RunConfig:
        stages = [scaled(stage, scale) for stage in self._config.stages]
        named = self._config.model_copy(update={"strategy": strategy, "stages": stages})
        return strategy_of(named).plan(named)


def factors(config: RunConfig, prepared: Prepared, strategies: list[str]) -> dict[str, float]:
    """Factor on every strategy's steps with which all cost what the configured run costs without a search."""
    forecast = Forecast(config, prepared)
    budget = forecast.training("uniform")
    found = {name: forecast.scale(name, budget) for name in strategies}
    assert all(math.isfinite(value) for value in found.values())
    return found
