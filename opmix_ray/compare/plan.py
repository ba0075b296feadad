"""Which runs a comparison consists of: one configuration per strategy and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError
from opmix_ray.runner.forecast import Forecast
from opmix_ray.runner.plan import stage_domains, with_strategy
from opmix_ray.strategies.base import check_strategy, strategy_names

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
    cyclic: bool = False,
) -> list[ComparedRun]:
    """Every run, seed by seed, so that a comparison that is cut off has whole rows.

    Args:
        config: the run that all are made from.
        strategies: names.
        seeds: how many; they count up from the configuration's own.
        output: directory or URI of the comparison.
        scale: factor on the steps of a strategy's stages; none: 1.
        cyclic: every seed begins with another stage's domains.

    Raises:
        UserError: the stages have no other order.
    """
    found = []
    for number, seed in enumerate(range(config.seed, config.seed + seeds)):
        stages = rotated(config, number) if cyclic else config.stages
        for name in strategies:
            place = f"{RUNS}/{name}/seed-{seed}"
            factor = (scale or {}).get(name, 1.0)
            found.append(
                ComparedRun(
                    name, seed, place,
                    with_strategy(
                        config, name, factor, seed=seed, name=f"{config.name}-{name}-{seed}",
                        output=f"{output.rstrip('/')}/{place}", stages=stages,
                    ),
                )
            )  # fmt: skip
    return found


def rotated(config: RunConfig, by: int) -> list[StageConfig]:
    """The stages with what each one adds moved on: the first begins with the domains that came in stage `by`.

    Names go with the domains; steps, start and decisions stay with the place.

    Args:
        config: stages of which each keeps the domains before it and adds some.
        by: how many places, modulo the number of stages.

    Raises:
        UserError: a stage adds nothing, or leaves out what came before.
    """
    had: set[str] = set()
    adds: list[list[str]] = []
    for stage in config.stages:
        domains = stage_domains(config, stage)
        new = [name for name in domains if name not in had]
        if not new or not had <= set(domains):
            raise UserError(
                "has no cyclic orders: each stage must keep the domains before it and add some",
                key="stages",
                value=stage.name,
                remedy="leave --cyclic out",
            )
        adds.append(new)
        had |= set(new)
    by %= len(adds)
    adds = adds[by:] + adds[:by]
    names = [stage.name for stage in config.stages]
    names = names[by:] + names[:by]
    return [
        stage.but(name=name, domains=[d for new in adds[: place + 1] for d in new])
        for place, (stage, name) in enumerate(zip(config.stages, names, strict=True))
    ]


def factors(config: RunConfig, prepared: Prepared, strategies: Sequence[str]) -> dict[str, float]:
    """A factor on each strategy's steps. With it, every run costs what the configured run costs without a search.

    Raises:
        UserError: searching alone costs more.
    """
    forecast = Forecast(config, prepared)
    budget = forecast.training("uniform")
    return {name: forecast.scale(name, budget) for name in strategies}
