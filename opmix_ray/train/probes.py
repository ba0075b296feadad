"""All probes of a decision, trained side by side as Ray tasks that return their factors.

A probe starts from the main run's weights, reads its own data in an order of its own, and never moves the
main run's cursors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from opmix_ray.config import ModelConfig, OptimizerConfig, ProbeConfig
from opmix_ray.data.gather import gather
from opmix_ray.data.held_out import search_sets
from opmix_ray.data.prepare import Prepared
from opmix_ray.data.sampler import Sampler
from opmix_ray.errors import first_line
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import BaseModel, model_from
from opmix_ray.model.flops import forward_flops, probe_flops
from opmix_ray.model.load import set_recompute
from opmix_ray.model.loss import compute_context, evaluate_sets, training_loss
from opmix_ray.model.probe import Probe, attach, extract
from opmix_ray.train.side_by_side import Failed, Job, side_by_side

OLD = "old"


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
        measure: numbers of held-out sequences for reports and for the search, see `search_sets`: measure the trained
            probe on the latter; None: do not.
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
    measure: tuple[int, int] | None = None


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


def train_probe(task: ProbeTask, base: BaseModel) -> Probe:
    """Train one probe in this process.

    Args:
        task: what to train.
        base: the main run's weights; read, never written.
    """
    began = time.monotonic()
    device = torch.device("cuda" if task.probe.gpus and torch.cuda.is_available() else "cpu")
    model = model_from(base, device)
    tokens = task.probe.steps * task.batch_size * task.prepared.seq_len
    flops = probe_flops(model, task.probe, tokens, task.prepared.seq_len)
    model.train()
    set_recompute(model, task.model.recompute)
    adapted = attach(model, task.probe, seed=_seed(task))
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    rate = task.optimizer.learning_rate * task.probe.learning_rate_ratio
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=task.optimizer.betas, eps=task.optimizer.eps, weight_decay=0.0
    )
    stores = {name: task.prepared.domains[name].train() for name, share in task.data.items() if share > 0}
    sampler = Sampler(
        {name: len(store) for name, store in stores.items()},
        task.batch_size,
        task.seed,
        Mixture({name: task.data[name] for name in stores}),
        stream=f"{task.stream}/{task.name}",
    )
    losses = []
    for _ in range(task.probe.steps):
        ids, mask = (torch.from_numpy(part).to(device) for part in gather(stores, sampler.next_batch()))
        targets = max(1, int(mask[:, 1:].sum()))
        total = 0.0
        for start in range(0, len(ids), task.micro_batch_size):
            part = slice(start, start + task.micro_batch_size)
            with compute_context(task.model.autocast, device):
                nats, _ = training_loss(adapted, ids[part], mask[part])
            (nats / targets).backward()
            total += float(nats.detach())
        if task.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, task.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total / targets)
    probe = extract(
        adapted,
        name=task.name,
        data=dict(task.data),
        tokens=tokens,
        seconds=time.monotonic() - began,
        flops=flops,
        losses=losses,
    )
    if task.measure is not None:
        held = search_sets(task.prepared, *task.measure)
        sets = {name: part for name, part in held.items() if isinstance(part, tuple)}  # text; no questions
        found = evaluate_sets(adapted, sets, task.micro_batch_size, autocast=task.model.autocast)
        probe.measured = {name: loss.mean for name, loss in found.items()}
        seen = sum(ids.size for ids, _ in sets.values())
        probe.tokens += seen
        probe.flops += forward_flops(model, seen, task.prepared.seq_len)
        probe.seconds = time.monotonic() - began
    return probe


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
    jobs = [Job(task.name, (task, base), task.probe) for task in tasks]
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


def _seed(task: ProbeTask) -> int:
    """The same first factors for every probe of a decision, so that probes differ by their data alone."""
    return task.seed * 1_000_003 + sum(task.stream.encode())
