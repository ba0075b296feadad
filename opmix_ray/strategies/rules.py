"""What a strategy does to the plan, from the configuration alone: quick to import, the same at every resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import check_strategy
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.strategies import continual, static
from opmix_ray.strategies.published import published

ALWAYS_FIXED: dict[str, Callable[[RunConfig, Mapping[str, float]], Mixture]] = {
    "uniform": static.uniform,
    "proportional": static.proportional,
    "temperature": static.tempered,
    "fixed": static.fixed,
}
NEVER_DECIDE = {*ALWAYS_FIXED, "sequential", "replay", "odm", "aioli", "self-distillation"}
BEFORE_THE_STAGE = {"swarm", "doremi"}  # learn from separate models, so the whole stage can profit


def planned(config: RunConfig) -> RunConfig:
    """The run as its strategy wants it; planning what is planned already changes nothing.

    Raises:
        UserError: there is no such strategy, it lacks a parameter, or the run does not suit it.
    """
    name = config.strategy
    check_strategy(name, "strategy")
    if name == "opmix-published":
        return published(config)
    if name == "retrain":
        return config if any(stage.restart for stage in config.stages) else continual.retrained(config)
    if name == "fixed":
        static.fixed(config, dict.fromkeys(config.data.domains, 1.0))
    if name == "self-distillation":
        _suits_distillation(config)
    if name in NEVER_DECIDE:
        return _deciding(config, lambda stage: [])
    if name in BEFORE_THE_STAGE:
        return _deciding(config, lambda stage: [0.0] if stage.decide_at else [])
    return config


def start_rule(
    config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
) -> Mixture | None:
    """A stage's first mixture before any cap, where the strategy has a rule of its own.

    Args:
        config: the run.
        stage: the stage.
        old: what was trained on before it, if anything.
        tokens: training tokens of the stage's domains.
    """
    if config.strategy in ALWAYS_FIXED:
        return ALWAYS_FIXED[config.strategy](config, tokens)
    if config.strategy in ("sequential", "self-distillation"):
        return continual.sequential(tokens, old)
    if config.strategy == "replay":
        return continual.replay(tokens, old, config.strategies.replay.old_share)
    return None


def _deciding(config: RunConfig, points: Callable[[StageConfig], list[float]]) -> RunConfig:
    stages = [stage.model_copy(update={"decide_at": points(stage)}) for stage in config.stages]
    return config.model_copy(update={"stages": stages})


def _suits_distillation(config: RunConfig) -> None:
    sources = config.data.domains.values()
    if not any(source.prompt_column or source.messages_column for source in sources):
        raise UserError(
            "`self-distillation` needs prompts, and no domain has any",
            key="strategy",
            remedy="give `prompt_column` and `completion_column`, or `messages_column`",
        )
    if config.train.strategy == "fsdp2" and config.train.workers > 1:
        raise UserError(
            "`self-distillation` answers with the whole model",
            key="train.strategy",
            value="fsdp2",
            remedy="use ddp, or one worker",
        )
