"""Trainings side by side as Ray tasks: any kind, and the probes of a decision, which can be looked at after any step.

    run = ProbeRun(task, base)
    run.advance(10)
    run.probe()             # as it is after 10 steps
    run.advance(25)         # 25 in all

A probe starts from the main run's weights, reads its own data in an order of its own, and never moves the
main run's cursors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from opmix_ray.config import ModelConfig, OptimizerConfig, ProbeConfig
from opmix_ray.data.held_out import part_of, search_sets, texts_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.data.sampler import Sampler
from opmix_ray.data.store import gather
from opmix_ray.errors import UserError, first_line
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import forward_flops, probe_flops
from opmix_ray.model.base import BaseModel, model_from
from opmix_ray.model.load import set_recompute
from opmix_ray.model.loss import compute_context, evaluate_sets, training_loss
from opmix_ray.model.probe import Factors, Probe, attach, extract, put_factors
from opmix_ray.model.spread import visible_devices
from opmix_ray.node import use_own_threads


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        name: of what is trained.
        arguments: of the function.
        asks: CPUs, GPUs and other resources.
        retries: how often it is tried again when its machine goes away.
    """

    name: str
    arguments: Sequence[Any]
    asks: ProbeConfig
    retries: int


@dataclass(frozen=True)
class Failed:
    """A training that failed for good: it raised an error, or its machines went away more often than it is retried."""

    cause: Exception


def side_by_side(
    function: Callable[..., Any], jobs: Iterable[Job], what: str, on_start: Callable[[str], None] | None
) -> Iterator[tuple[str, Any]]:
    """Names with what the function returned for them, each as soon as it is there, or with `Failed`.

    Args:
        function: run in a task for every job.
        jobs: all of them; submitted at once.
        what: kind of the jobs, for the names that Ray shows.
        on_start: called with the name of each job when it is submitted.

    Raises:
        UserError: a job failed because of its input.
    """
    waiting = {}
    for job in jobs:
        remote = ray.remote(_alone).options(
            num_cpus=job.asks.cpus,
            num_gpus=job.asks.gpus,
            resources=dict(job.asks.resources),
            max_retries=job.retries,
            name=f"{what}:{job.name}",
        )
        waiting[remote.remote(function, *job.arguments)] = job.name
        if on_start is not None:
            on_start(job.name)
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(done[0])
        try:
            yield name, ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, UserError):
                raise cause from None
            yield name, Failed(cause)
        except ray.exceptions.RayError as error:
            yield name, Failed(error)


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    use_own_threads()
    return function(*arguments)


@dataclass(frozen=True)
class ProbeTask:
    """One probe to train.

    Args:
        name: of the component: `old`, or a domain.
        data: share by domain of what it sees.
        stream: names its order of the data, for example `decision-0`.
        batch_size: sequences a step.
        micro_batch_size: sequences in one forward pass.
        seed: of the run.
        measure: held-out sequences for reports and for the search, and the sets, see `search_sets`, and how many
            of each set are looked at: measure the trained probe on these; None: do not.
        retries: how often it is trained again when its machine goes away.
    """

    name: str
    data: dict[str, float]
    stream: str
    batch_size: int
    micro_batch_size: int
    seed: int
    probe: ProbeConfig
    optimizer: OptimizerConfig
    model: ModelConfig
    prepared: Prepared
    measure: tuple[int, int, tuple[str, ...], int | None] | None = None
    retries: int = 3


class ProbeRun:
    """A probe in training, in this process.

    Args:
        task: what to train.
        base: the main run's weights; read, never written.
        start: first factors; None: A at random and B of 0.
    """

    def __init__(self, task: ProbeTask, base: BaseModel, start: Factors | None = None) -> None:
        self._began = time.monotonic()
        self.task = task
        devices = visible_devices(task.probe.gpus)
        self.device = devices[0]
        model = model_from(base, devices)
        length = task.prepared.seq_len
        self._flops = probe_flops(model, task.probe, 1, length)  # of a token
        self._forward_flops = forward_flops(model, 1, length)
        model.train()
        set_recompute(model, task.model.recompute)
        self._adapted = attach(model, task.probe, seed=_seed(task))
        self._parameters = [p for p in self._adapted.parameters() if p.requires_grad]
        rate = task.optimizer.learning_rate * task.probe.learning_rate_ratio
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=rate, betas=task.optimizer.betas, weight_decay=0.0
        )
        stores = {n: task.prepared.domains[n].train() for n, share in task.data.items() if share > 0}
        self._stores = stores
        self._sampler = Sampler(
            {name: len(store) for name, store in stores.items()},
            task.batch_size,
            task.seed,
            Mixture({name: task.data[name] for name in stores}),
            stream=f"{task.stream}/{task.name}",
        )
        self._losses: list[float] = []
        if start is not None:
            put_factors(self._adapted, start)

    def advance(self, steps: int) -> None:
        """Train until so many steps are done in all."""
        task = self.task
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            while len(self._losses) < steps:
                torch.manual_seed(_seed(task) + len(self._losses))  # for a model with dropout
                batch = gather(self._stores, self._sampler.next_batch())
                ids, mask = (torch.from_numpy(part).to(self.device) for part in batch)
                targets = max(1, int(mask[:, 1:].sum()))
                total = 0.0
                for first in range(0, len(ids), task.micro_batch_size):
                    part = slice(first, first + task.micro_batch_size)
                    with compute_context(task.model.autocast, self.device):
                        nats, _, _ = training_loss(self._adapted, ids[part], mask[part])
                    (nats / targets).backward()
                    total += float(nats.detach())
                if task.optimizer.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(self._parameters, task.optimizer.clip_norm)
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
                self._losses.append(total / targets)

    def probe(self, *, measured: bool = False) -> Probe:
        """The probe as it is.

        Args:
            measured: with its loss on the held-out text that the task names.
        """
        task, length = self.task, self.task.prepared.seq_len
        tokens = len(self._losses) * task.batch_size * length
        flops, losses = tokens * self._flops, {}
        if measured and task.measure is not None:
            reported, searched, names, looked_at = task.measure
            held = search_sets(task.prepared, reported, searched, names)
            sets = texts_of({name: part_of(one, slice(0, looked_at)) for name, one in held.items()})
            found = evaluate_sets(self._adapted, sets, task.micro_batch_size, autocast=task.model.autocast)
            losses = {name: loss.mean for name, loss in found.items()}
            seen = sum(ids.size for ids, _ in sets.values())
            tokens, flops = tokens + seen, flops + seen * self._forward_flops
        probe = extract(
            self._adapted,
            name=task.name,
            data=task.data,
            tokens=tokens,
            seconds=time.monotonic() - self._began,
            flops=flops,
            losses=self._losses,
        )
        probe.measured = losses
        return probe


def _seed(task: ProbeTask) -> int:
    """The same first factors for every probe of a decision, so that probes differ by their data alone."""
    return task.seed * 1_000_003 + sum(task.stream.encode())


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
