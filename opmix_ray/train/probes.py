"""All probes of a decision, trained side by side as Ray tasks that return their factors.

A probe starts from the main run's weights, reads its own data in an order of its own, and never moves the
main run's cursors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from opmix_ray.errors import first_line
from opmix_ray.model.base import BaseModel
from opmix_ray.model.probe import Probe
from opmix_ray.train.probe_run import ProbeRun
from opmix_ray.train.probe_run import ProbeTask as ProbeTask
from opmix_ray.train.side_by_side import Failed, Job, side_by_side


@dataclass(frozen=True)
class LostProbe:
    """A probe that failed for good: it raised an error, or its machines went away more often than it is retried."""

    name: str
    reason: str


def train_probe(task: ProbeTask, base: BaseModel) -> Probe:
    """Train one probe in this process, and measure it where the task asks for that.

    Args:
        task: what to train.
        base: the main run's weights; read, never written.
    """
    run = ProbeRun(task, base)
    run.advance(task.probe.steps)
    return run.probe(measured=True)


def train_probes(
    tasks: Iterable[ProbeTask], base: Any, on_start: Callable[[str], None] | None = None
) -> Iterator[Probe | LostProbe]:
    """Train probes side by side; each is given as soon as it is done, or known to have failed for good.

    Args:
        tasks: what to train.
        base: object reference of a `BaseModel`.
        on_start: called with the name of each probe when it is submitted.

    Raises:
        UserError: a probe failed because of its input.
    """
    jobs = [Job(task.name, (task, base), task.probe, task.retries) for task in tasks]
    for name, result in side_by_side(train_probe, jobs, "probe", on_start):
        yield LostProbe(name, _words(result.cause)) if isinstance(result, Failed) else result


def train_all(tasks: Iterable[ProbeTask], base: Any) -> dict[str, Probe]:
    """Train probes of which none may be lost; by name.

    Raises:
        UserError: see `train_probes`.
        RuntimeError: a probe failed for good; names it.
    """
    found: dict[str, Probe] = {}
    for probe in train_probes(tasks, base):
        if isinstance(probe, LostProbe):
            raise RuntimeError(f"the probe of {probe.name} failed: {probe.reason}")
        found[probe.name] = probe
    return found


def _words(error: Exception) -> str:
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"
