"""What a run does in which order: a list of steps that depends on the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.data.plan import fit_to_caps, share_caps
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture


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
    if isinstance(stage.start, dict):
        wanted = Mixture(stage.start).over(names)
    elif stage.start == "uniform":
        wanted = Mixture.uniform(names)
    elif stage.start == "carry" and previous is not None and any(previous.get(name, 0) > 0 for name in names):
        wanted = previous.over(names)
    else:
        wanted = Mixture.proportional(of_names)
    length = stage.steps * config.train.batch_size * seq_len
    caps = share_caps(of_names, {name: config.data.domains[name].max_epochs for name in names}, used, length)
    return fit_to_caps(wanted, caps)


def check_plan(config: RunConfig, file: Any = None) -> list[UserError]:
    """Everything wrong with stages, mixtures, bounds and sets that the configuration alone shows."""
    errors: list[UserError] = []

    def wrong(problem: str, key: str, value: Any, remedy: str) -> None:
        errors.append(UserError(problem, file=file, key=key, value=value, remedy=remedy))

    domains = config.data.domains
    names = [stage.name for stage in config.stages]
    for position, stage in enumerate(config.stages):
        key = f"stages.{position}"
        if names.count(stage.name) > 1:
            wrong("another stage has this name", f"{key}.name", stage.name, "rename one")
        for name in stage.domains or []:
            if name not in domains:
                wrong("no such domain", f"{key}.domains", name, f"known: {', '.join(domains)}")
        if stage.domains is not None and len(set(stage.domains)) < len(stage.domains):
            wrong("names a domain twice", f"{key}.domains", stage.domains, "name each once")
        for fraction in stage.decide_at:
            if not 0 <= fraction < 1:
                wrong("must lie in [0, 1)", f"{key}.decide_at", fraction, "0.5 is half-way")
        if stage.decide_at and len(stage_domains(config, stage)) < 2:
            wrong(
                "a decision needs at least two domains", f"{key}.decide_at", stage.decide_at,
                "add a domain, or leave decide_at out",
            )  # fmt: skip
        if isinstance(stage.start, dict):
            _check_shares(stage.start, f"{key}.start", stage_domains(config, stage), wrong)
    for name, source in domains.items():
        if source.min_share > source.max_share:
            wrong("is above max_share", f"data.domains.{name}.min_share", source.min_share, "lower it")
    floor = sum(source.min_share for source in domains.values())
    if floor > 1:
        wrong(f"the least shares sum to {floor:.3f}, above 1", "data.domains", None, "lower min_share")
    ceiling = sum(source.max_share for source in domains.values())
    if ceiling < 1:
        wrong(f"the greatest shares sum to {ceiling:.3f}, below 1", "data.domains", None, "raise max_share")
    if config.evaluation.weights is not None:
        _check_shares(config.evaluation.weights, "evaluation.weights", list(config.eval_sets()), wrong)
    if isinstance(config.proposal.prior, dict):
        _check_shares(config.proposal.prior, "proposal.prior", list(domains), wrong)
    if config.train.workers > config.train.batch_size:
        wrong(
            f"is more than the {config.train.batch_size} sequences of a batch", "train.workers", config.train.workers,
            "raise train.batch_size or use fewer workers",
        )  # fmt: skip
    return errors


def _check_shares(shares: Mapping[str, float], key: str, known: list[str], wrong: Any) -> None:
    for name, share in shares.items():
        if name not in known:
            wrong("no such name", f"{key}.{name}", share, f"known: {', '.join(known)}")
        elif not share >= 0:
            wrong(
                "must be a number of at least 0",
                f"{key}.{name}",
                share,
                "give a share of tokens, for example 0.2",
            )
    if not sum(shares.get(name, 0) for name in known) > 0:
        wrong("the shares sum to 0", key, dict(shares), "give at least one of them a share above 0")
