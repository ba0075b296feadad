"""Where a run stands in its plan, and where it would go on from if it were resumed now."""

from __future__ import annotations

import contextlib

from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError
from opmix_ray.output.state import TRAIN, RunState
from opmix_ray.record import read_record
from opmix_ray.runner.plan import Step, plan
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import TRIALS


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
