"""Separate models trained by full weights in a Ray task each: the proxies, references and experts of rival methods.

A proxy starts from fresh weights or from the main run's, reads its own order of the data, and never moves the
main run's cursors. `ProxyRun` is the loop; what is done with the loss of a step is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from opmix_ray.config import ModelConfig, OptimizerConfig, ProbeConfig, ScheduleConfig
from opmix_ray.config.train import learning_rate
from opmix_ray.data.held_out import HeldOut, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.data.sampler import Sampler
from opmix_ray.data.store import gather
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import forward_flops, train_flops
from opmix_ray.model.base import BaseModel, snapshot
from opmix_ray.model.interpolate import view_of
from opmix_ray.model.load import build_empty, fill, load_model
from opmix_ray.model.loss import compute_context, evaluate_sets, sequence_losses
from opmix_ray.train.probes import Failed, Job, side_by_side

CONSTANT = ScheduleConfig(kind="constant", warmup_fraction=0.0)


@dataclass(frozen=True)
class ProxyTask:
    """One model to train.

    Args:
        name: unique in its decision.
        mixture: share by domain of what it sees.
        stream: names its order of the data.
        steps: of the optimiser.
        batch_size: sequences a step.
        micro_batch_size: sequences in one forward pass.
        seed: of fresh weights and of the order.
        rate: learning rate over `optimizer.learning_rate`.
        schedule: of the learning rate over `steps`.
        resources: CPUs, GPUs and other resources, as for a probe.
        retries: how often it is trained again when its machine goes away.
        evaluate: whether its held-out losses are wanted.
        keep: whether its weights are wanted.
    """

    name: str
    mixture: dict[str, float]
    stream: str
    steps: int
    batch_size: int
    micro_batch_size: int
    seed: int
    model: ModelConfig
    optimizer: OptimizerConfig
    prepared: Prepared
    resources: ProbeConfig
    retries: int = 3
    rate: float = 1.0
    schedule: ScheduleConfig = field(default_factory=lambda: CONSTANT)
    evaluate: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Proxy:
    """A trained model.

    Args:
        name: of its task.
        losses: set -> nats per token; empty where they were not asked for.
        model: its weights; None where they were not asked for.
        found: what a method found out on the way.
        tokens, flops, seconds: of training and evaluation together.
    """

    name: str
    losses: dict[str, float]
    model: BaseModel | None
    tokens: int
    flops: float
    seconds: float
    found: dict[str, Any] = field(default_factory=dict)


class ProxyRun:
    """A model in training, in this process.

    Args:
        task: what to train.
        base: weights to start from, read only; None: fresh ones.
    """

    def __init__(self, task: ProxyTask, base: BaseModel | None) -> None:
        self.task = task
        self.device = torch.device("cuda" if task.resources.gpus and torch.cuda.is_available() else "cpu")
        prepared = task.prepared
        if base is None:
            self.model = load_model(
                task.model, vocab_size=prepared.vocab_size, eos_token_id=prepared.eos_token_id,
                seed=task.seed, seq_len=prepared.seq_len,
            )  # fmt: skip
            self.model.to(self.device)  # type: ignore[arg-type]
        else:
            self.model = trainable_copy(base, self.device)
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        decay = task.optimizer.weight_decay
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": decay},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        settings = task.optimizer
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
        self.stores = {name: prepared.domains[name].train() for name, p in task.mixture.items() if p > 0}
        self.domains = list(self.stores)
        self.sampler = Sampler(
            {name: len(store) for name, store in self.stores.items()}, task.batch_size, task.seed,
            Mixture({name: task.mixture[name] for name in self.stores}),
            stream=f"{task.stream}/{task.name}",
        )  # fmt: skip

    def batches(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        """Every step's micro-batches: ids (n, L), mask (n, L) and domain (n,), a position in `domains`."""
        for _ in range(self.task.steps):
            batch = self.sampler.next_batch()
            ids, mask = (torch.from_numpy(part).to(self.device) for part in gather(self.stores, batch))
            domains = torch.from_numpy(batch.domain_ids).to(self.device)
            size = self.task.micro_batch_size
            parts = [slice(start, start + size) for start in range(0, len(ids), size)]
            yield [(ids[part], mask[part], domains[part]) for part in parts]

    def nats(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Summed loss of each sequence, with gradients."""
        with compute_context(self.task.model.autocast, self.device):
            return sequence_losses(self.model, ids, mask)[0]

    def update(self, step: int) -> None:
        """Move the weights along the gradients that were added up."""
        task = self.task
        rate = task.rate * learning_rate(step, task.steps, task.optimizer, task.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if task.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, task.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def finish(
        self, sets: HeldOut, seconds: float, found: dict[str, Any] | None = None, flops: float = 0.0
    ) -> Proxy:
        """The trained model, measured where the task says so.

        Args:
            sets: held-out sequences.
            seconds: spent so far.
            found: see `Proxy`.
            flops: spent in addition to training and evaluation.
        """
        began, task, length = time.monotonic(), self.task, self.task.prepared.seq_len
        tokens = task.steps * task.batch_size * length
        flops += train_flops(self.model, tokens, length)
        losses = {}
        if task.evaluate:
            measured = evaluate_sets(self.model, sets, task.micro_batch_size, autocast=task.model.autocast)
            losses = {name: loss.mean for name, loss in measured.items()}
            seen = sum(map(tokens_of, sets.values()))
            tokens, flops = tokens + seen, flops + forward_flops(self.model, seen, length)
        seconds += time.monotonic() - began
        model = snapshot(self.model) if task.keep else None
        return Proxy(task.name, losses, model, tokens, flops, seconds, found or {})


def train_proxy(task: ProxyTask, base: BaseModel | None, sets: HeldOut) -> Proxy:
    """Train one model on its mixture."""
    began = time.monotonic()
    run = ProxyRun(task, base)
    for step, parts in enumerate(run.batches()):
        targets = max(1, sum(int(mask[:, 1:].sum()) for _, mask, _ in parts))
        for ids, mask, _ in parts:
            (run.nats(ids, mask).sum() / targets).backward()
        run.update(step)
    return run.finish(sets, time.monotonic() - began)


def trainable_copy(base: BaseModel, device: torch.device | str = "cpu") -> Any:
    """A model of its own on copies of a base's weights."""
    model = build_empty(base.spec)
    tensors = {n: view_of(a, n in base.bfloat16).to(device, copy=True) for n, a in base.weights.items()}
    fill(model, base.spec, tensors, trainable=True)
    return model.to(device)  # type: ignore[arg-type]


def run_tasks(
    function: Callable[..., Proxy], tasks: Iterable[tuple[ProxyTask, Any]], on_start: Callable[[str], None]
) -> Iterator[Proxy]:
    """Train models side by side; each is given as soon as it is done.

    Args:
        function: `train_proxy` or one like it.
        tasks: each with the further arguments of the function, as a tuple.
        on_start: called with the name of each when it is submitted.

    Raises:
        UserError: one failed because of its input.
        RuntimeError: one failed for good; names it.
    """
    jobs = [Job(task.name, (task, *arguments), task.resources, task.retries) for task, arguments in tasks]
    for name, result in side_by_side(function, jobs, "proxy", on_start):
        if isinstance(result, Failed):
            raise RuntimeError(f"the proxy {name} failed: {result.cause}") from result.cause
        yield result
