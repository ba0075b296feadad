"""What a run does in which order: a list of steps that depends on the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.data.plan import fit_to_caps, share_caps
from opmix_ray.mixture import Mixture
from opmix_ray.run.strategies.rules import start_rule


@dataclass(frozen=True)
class Step:
    """One step of the machine.

    Args:
        kind: `stage` (its first mixture comes into force), `train` or `decide`.
        stage: position in the configuration.
        start, end: global steps; equal but for `train`.
        index: of the decision.
    """

    kind: str
    stage: int
    start: int
    end: int
    index: int = -1

    def name(self, config: RunConfig) -> str:
        """Unique in the run, safe as a directory."""
        return f"{self.stage:02d}-{config.stages[self.stage].name}-{self.start:07d}-{self.end:07d}"


def plan(config: RunConfig) -> list[Step]:
    """All steps of a run, in order."""
    steps: list[Step] = []
    begin, decisions = 0, 0
    for number, stage in enumerate(config.stages):
        steps.append(Step("stage", number, begin, begin))
        at = begin
        for point in sorted({begin + round(fraction * stage.steps) for fraction in stage.decide_at}):
            if point > at:
                steps.append(Step("train", number, at, point))
            steps.append(Step("decide", number, point, point, decisions))
            at, decisions = point, decisions + 1
        if at < begin + stage.steps:
            steps.append(Step("train", number, at, begin + stage.steps))
        begin += stage.steps
    return steps


def stage_domains(config: RunConfig, stage: StageConfig) -> list[str]:
    """Domains of a stage, in the order of the data section."""
    if stage.domains is None:
        return list(config.data.domains)
    return [name for name in config.data.domains if name in stage.domains]


def wanted_mixture(stage: StageConfig, previous: Mixture | None, tokens: Mapping[str, float]) -> Mixture:
    """The mixture a stage asks to begin with, over the domains that `tokens` names, before any cap."""
    if isinstance(stage.start, dict):
        return Mixture(stage.start).over(tokens)
    if stage.start == "uniform":
        return Mixture.uniform(tokens)
    if stage.start == "carry" and previous is not None and any(previous.get(name, 0) > 0 for name in tokens):
        return previous.over(tokens)
    return Mixture.proportional(tokens)


def start_mixture(
    config: RunConfig, stage: StageConfig, previous: Mixture | None, tokens: Mapping[str, int],
    used: Mapping[str, float], seq_len: int,
) -> tuple[Mixture, dict[str, float]]:  # fmt: skip
    """A stage's first mixture, moved inside the repetition caps, and what was moved.

    Args:
        config: the run.
        stage: the stage.
        previous: mixture in force before it, if any.
        tokens: training tokens by domain.
        used: tokens drawn before the stage.
        seq_len: tokens in a sequence.

    Raises:
        UserError: the caps cannot be met.
    """
    names = stage_domains(config, stage)
    of_names = {name: float(tokens[name]) for name in names}
    old = Mixture(used) if any(used.values()) else previous
    wanted = start_rule(config, stage, old, of_names) or wanted_mixture(stage, previous, of_names)
    length = stage.steps * config.train.batch_size * seq_len
    caps = share_caps(of_names, {name: config.data.domains[name].max_epochs for name in names}, used, length)
    return fit_to_caps(wanted, caps)
