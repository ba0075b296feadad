"""Which runs a comparison consists of: one configuration per strategy and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError
from opmix_ray.runner.forecast import Forecast
from opmix_ray.runner.plan import scaled
from opmix_ray.strategies.registry import check_strategy, strategy_names

RUNS = "runs"  # directory of the runs inside a comparison's output


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Args:
        strategy: its name.
        seed: of everything random in the run.
        place: its directory inside the comparison's output.
        config: what it does; its output is that directory.
    """

    strategy: str
    seed: int
    place: str
    config: RunConfig


def check_strategies(strategies: Sequence[str]) -> list[str]:
    """The names, each once.

    Raises:
        UserError: none is named, or one is unknown.
    """
    found = list(dict.fromkeys(name.strip() for name in strategies if name.strip()))
    if not found:
        known = ", ".join(strategy_names())
        raise UserError("no strategy is named", key="--strategies", remedy=f"known: {known}")
    for name in found:
        check_strategy(name, "--strategies")
    return found


def entries(
    config: RunConfig,
    strategies: Sequence[str],
    seeds: int,
    output: str,
    scale: Mapping[str, float] | None = None,
) -> list[ComparedRun]:
    """Every run, seed by seed, so that a comparison that is cut off has whole rows.

    Args:
        config: the run that all are made from.
        strategies: names.
        seeds: how many; they count up from the configuration's own.
        output: directory or URI of the comparison.
        scale: factor on the steps of a strategy's stages; none: 1.
    """
    found = []
    for seed in range(config.seed, config.seed + seeds):
        for name in strategies:
            place = f"{RUNS}/{name}/seed-{seed}"
            factor = (scale or {}).get(name, 1.0)
            update = {
                "strategy": name,
                "seed": seed,
                "name": f"{config.name}-{name}-{seed}",
                "output": f"{output.rstrip('/')}/{place}",
                "stages": [scaled(stage, factor) for stage in config.stages],
            }
            found.append(ComparedRun(name, seed, place, config.model_copy(update=update)))
    return found


def factors(config: RunConfig, prepared: Prepared, strategies: Sequence[str]) -> dict[str, float]:
    """Factor on every strategy's steps with which all cost what the configured run costs without a search.

    Raises:
        UserError: searching alone costs more.
    """
    forecast = Forecast(config, prepared)
    budget = forecast.training("uniform")
    return {name: forecast.scale(name, budget) for name in strategies}
