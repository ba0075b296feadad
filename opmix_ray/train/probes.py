"""All probes of a decision, trained side by side as Ray tasks that return their factors.

A probe starts from the main run's weights, reads its own data in an order of its own, and never moves the
main run's cursors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from opmix_ray.errors import first_line
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import BaseModel
from opmix_ray.model.probe import Probe
from opmix_ray.train.probe_run import Paused, ProbeRun
from opmix_ray.train.probe_run import ProbeTask as ProbeTask
from opmix_ray.train.side_by_side import Failed, Job, side_by_side

OLD = "old"


@dataclass(frozen=True)
class LostProbe:
    """A probe that failed for good: it raised an error, or its machines went away more often than it is retried."""

    name: str
    reason: str


def probe_data(name: str, old: Mixture, new_share: float) -> Mixture:
    """What a component's probe sees: the old mixture, or `new_share` of its domain and the rest old."""
    if name == OLD:
        return old
    leaves = dict.fromkeys([*old, name], 0.0)
    for domain, share in old.items():
        leaves[domain] += (1 - new_share) * share
    leaves[name] += new_share
    return Mixture(leaves)


def train_probe(
    task: ProbeTask, base: BaseModel, paused: Paused | None = None, steps: int | None = None
) -> Probe:
    """Train one probe in this process, and measure it where the task asks for that.

    Args:
        task: what to train.
        base: the main run's weights; read, never written.
        paused: where to go on; None: at the beginning.
        steps: in all; None: as many as the task says.
    """
    run = ProbeRun(task, base, paused)
    run.advance(task.probe.steps if steps is None else steps)
    return run.probe(measured=True)


def train_part(task: ProbeTask, base: BaseModel, paused: Paused | None, steps: int) -> Paused:
    """Train one probe in this process until so many steps are done."""
    run = ProbeRun(task, base, paused)
    run.advance(steps)
    return run.paused()


def train_probes(
    tasks: Iterable[ProbeTask],
    base: Any,
    on_start: Callable[[str], None] | None = None,
    paused: Mapping[str, Paused] = MappingProxyType({}),
    steps: int | None = None,
) -> Iterator[Probe | LostProbe]:
    """Train probes side by side; each is given as soon as it is done, or known to have failed for good.

    Args:
        tasks: what to train.
        base: object reference of a `BaseModel`.
        on_start: called with the name of each probe when it is submitted.
        paused: where to go on, by name.
        steps: in all; None: as many as the tasks say.

    Raises:
        UserError: a probe failed because of its input.
    """
    return _side_by_side(train_probe, tasks, base, on_start, paused, steps)


def train_parts(
    tasks: Iterable[ProbeTask],
    base: Any,
    on_start: Callable[[str], None] | None,
    paused: Mapping[str, Paused],
    steps: int,
) -> Iterator[Paused | LostProbe]:
    """The same for probes that may have to go on afterwards; see `train_probes`."""
    return _side_by_side(train_part, tasks, base, on_start, paused, steps)


def _side_by_side(
    function: Callable[..., Any],
    tasks: Iterable[ProbeTask],
    base: Any,
    on_start: Callable[[str], None] | None,
    paused: Mapping[str, Paused],
    steps: int | None,
) -> Iterator[Any]:
    jobs = [Job(task.name, (task, base, paused.get(task.name), steps), task.probe) for task in tasks]
    for name, result in side_by_side(function, jobs, "probe", on_start):
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
