"""What a run does in which order: a list of steps that depends on the configuration alone; and where a run is in it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture, fit_to_caps, share_caps
from opmix_ray.output.state import TRAIN, RunState
from opmix_ray.storage import Storage, read_record
from opmix_ray.trials.rows import TRIALS


@dataclass(frozen=True)
class Step:
    """One step of the machine.

    Args:
        kind: `stage` (its first mixture comes into force), `train`, `decide`, or `overlap` (train while a decision is
            made, whose mixture comes into force at the end).
        stage: position in the configuration.
        start, end: global steps; equal but for `train` and `overlap`.
        index: of the decision.
        space: search space of the decision.
    """

    kind: str
    stage: int
    start: int
    end: int
    index: int = -1
    space: str = ""

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
        for nth, point in enumerate(decision_points(stage)):
            if begin + point > at:
                steps.append(Step("train", number, at, begin + point))
            at = begin + point + overlap_steps(stage)
            kind = "overlap" if stage.overlap else "decide"
            steps.append(Step(kind, number, begin + point, at, decisions, space_of(config, stage, nth)))
            decisions += 1
        if at < begin + stage.steps:
            steps.append(Step("train", number, at, begin + stage.steps))
        begin += stage.steps
    return steps


def evaluated_at(config: RunConfig, step: Step) -> tuple[int, ...]:
    """Global steps after which every evaluation set is measured, in a step of the plan that trains."""
    every = config.train.eval_every
    inside = range((step.start // every + 1) * every, step.end, every) if every else ()
    return (*([0] if step.start == 0 else []), *inside, step.end)


def scaled(stage: StageConfig, factor: float) -> StageConfig:
    """A stage with so many times its steps, at least one."""
    return stage.but(steps=max(1, round(stage.steps * factor)))


def with_strategy(config: RunConfig, strategy: str, factor: float = 1.0, **changes: Any) -> RunConfig:
    """The run under a strategy by name, with so many times the steps of its stages, and other changes."""
    stages = changes.pop("stages", config.stages)
    return config.but(strategy=strategy, stages=[scaled(stage, factor) for stage in stages], **changes)


def decision_points(stage: StageConfig) -> list[int]:
    """Steps of a stage at which it decides."""
    return sorted({round(fraction * stage.steps) for fraction in stage.decide_at})


def overlap_steps(stage: StageConfig) -> int:
    """Steps trained while each decision of a stage is made."""
    return max(1, stage.steps // 10) if stage.overlap is True else int(stage.overlap)


def space_of(config: RunConfig, stage: StageConfig, nth: int) -> str:
    """Search space of a stage's decision, counted from 0."""
    spaces = stage.search_space or config.search.space
    return spaces[min(nth, len(spaces) - 1)] if isinstance(spaces, list) else spaces


def stage_domains(config: RunConfig, stage: StageConfig) -> list[str]:
    """Domains of a stage, in the order of the data section."""
    if stage.domains is None:
        return list(config.data.domains)
    return [name for name in config.data.domains if name in stage.domains]


def in_stage(config: RunConfig, position: int, read: Collection[str] = ()) -> RunConfig:
    """The configuration as a stage's decisions see it: domains that only come later have no weight in the objective.

    What a stage does for the loss of a domain that no model has seen yet is large, and soon done by that domain itself.
    Where nothing else has a weight, and where another package computes the objective from losses, it stays as it is. A
    domain that was read under an earlier name, or as a part of another, is not one that only comes later.

    Args:
        config: the run.
        position: of the stage.
        read: domains that were read so far; those of a mixture that the base was trained on count as well.
    """

    def of(stages: Iterable[StageConfig]) -> set[str]:
        return {name for stage in stages for name in stage_domains(config, stage)}

    given = config.base.mixture if isinstance(config.base.mixture, dict) else {}
    known = of(config.stages[: position + 1]) | {*read, *given}
    later = {
        name
        for name in of(config.stages[position + 1 :]) - known
        if known.isdisjoint(config.data.domains[name].earlier_names)
    }
    own = config.own_objective()
    if own is not None and own.value is not None:
        return config
    weights = {name: 0.0 if name in later else weight for name, weight in config.objective().items()}
    if not later or not any(weights.values()):
        return config
    kind = config.evaluation.objective if own is None else "loss"
    return config.but(evaluation={"weights": weights, "objective": kind})


def wanted_mixture(stage: StageConfig, previous: Mixture | None, tokens: Mapping[str, float]) -> Mixture:
    """The mixture a stage asks to begin with, over the domains that `tokens` names, before any cap."""
    if isinstance(stage.start, dict):
        return Mixture(stage.start).over(tokens)
    if stage.start == "uniform":
        return Mixture.uniform(tokens)
    if previous is not None and any(previous.get(name, 0) > 0 for name in tokens):
        if stage.start == "carry":
            return previous.over(tokens)
        if stage.start == "join":
            return previous.over(tokens).joined()
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
    from opmix_ray.strategies.base import strategy_of  # torch and Ray, which `opmix status` does without

    wanted = strategy_of(config).start(config, stage, old, of_names) or wanted_mixture(
        stage, previous, of_names
    )
    length = stage.steps * config.train.batch_size * seq_len
    caps = share_caps(of_names, {name: config.data.domains[name].max_epochs for name in names}, used, length)
    return fit_to_caps(wanted, caps)


def current(config: RunConfig, state: RunState) -> Step | None:
    """The step of the plan that is under way or comes next; None where all are done."""
    steps = plan(config)
    return steps[state.done] if state.done < len(steps) else None


def total_steps(config: RunConfig) -> int:
    """Training steps of all stages."""
    return sum(stage.steps for stage in config.stages)


def resumes_at(config: RunConfig, storage: Storage, state: RunState) -> int:
    """The training step that `--resume` goes on from: the last checkpoint inside the segment, else its beginning."""
    step = current(config, state)
    found = state.step
    if step is None or step.start == step.end:
        return found
    segment = f"{TRAIN}/{step.name(config)}"
    for name in storage.names(segment):
        file = f"{segment}/{name}/state.json"
        if name.startswith("checkpoint_") and storage.exists(file):
            with contextlib.suppress(UserError):  # one that was cut off is not gone on from
                found = max(found, int(read_record(storage, file, dict[str, object]).get("step", 0)))  # type: ignore[call-overload]
    return found


def next_words(config: RunConfig, storage: Storage, state: RunState) -> str | None:
    """What is under way or comes next, in words; None for a finished run."""
    if state.finished:
        return None
    step = current(config, state)
    if step is None:
        return "write model, result and report"
    said = {
        "stage": f"begin stage {config.stages[step.stage].name}",
        "train": f"train steps {step.start} to {step.end}",
        "decide": f"make decision {step.index} at step {step.start}",
        "overlap": f"train steps {step.start} to {step.end} while decision {step.index} is made",
    }[step.kind]
    if step.index < 0:
        return said
    place = f"decisions/{step.index:03d}"
    scored, probes = len(storage.lines(f"{place}/{TRIALS}")), len(storage.names(f"{place}/probes"))
    if scored:
        return f"{said}: {scored} of {config.search.trials} candidates scored"
    return f"{said}: {probes} probes trained" if probes else said
