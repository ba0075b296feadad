"""What a worker of the main run does with the others: one model, sums of loss by domain, and notices to stop.

Sums stay with the worker that made them until a row is logged or a checkpoint is written, so that no step has an
exchange more. The nats of a sequence are rounded to 2**-20; float64 adds such numbers without an error (up to 2**33
nats), so sums depend neither on the order of workers and micro-batches nor on where a run was cut off.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from opmix_ray.model.accuracy import plain_generate
from opmix_ray.model.loss import sequence_losses, training_loss
from opmix_ray.model.spread import blocks_of
from opmix_ray.output.result import DomainCurves, block_length

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class LossModule(nn.Module):
    """A causal LM whose forward pass is its loss, so that wrappers see everything that is computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, per_sequence: bool = False) -> Any:
        """(sum of nats, number of target tokens, nats of each sequence without gradients) of rows (n, L).

        With `per_sequence` it is (nats, targets) of each sequence.
        """
        if per_sequence:
            return sequence_losses(self.model, ids, mask)
        if bool(mask[:, 1:].any()):
            return training_loss(self.model, ids, mask)
        # No target here; the exchange of gradients needs the same passes of every worker all the same.
        nats, targets, by_sequence = training_loss(self.model, ids, torch.ones_like(mask))
        return 0.0 * nats, torch.zeros_like(targets), torch.zeros_like(by_sequence)

    def generate(self, **options: Any) -> torch.Tensor:
        """`plain_generate` of the model, where wrappers see it too."""
        return plain_generate(self.model, **options)


def divides(strategy: str) -> bool:
    """Whether workers hold a part of the model each; FSDP2 then moves block by block to the device, never the whole."""
    return strategy == "fsdp2" and dist.is_initialized() and dist.get_world_size() > 1


class Parallel:
    """The model of one worker and what several workers have to agree on.

    Args:
        model: a transformers causal LM, the same on every worker; on `device` unless the strategy `divides` it.
        strategy: `ddp` or `fsdp2`; of no effect with one worker.
        device: of this worker.
        module: around the model, whose forward is the loss to train on; none: the usual one.
    """

    def __init__(
        self, model: Any, strategy: str, device: torch.device, module: nn.Module | None = None
    ) -> None:
        self.model = model
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = device
        self.sharded = divides(strategy)
        self.module: nn.Module = LossModule(model) if module is None else module
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

            mesh = init_device_mesh(device.type, (self.world,))
            for layer in blocks_of(model).values():
                fully_shard(layer, mesh=mesh)
            fully_shard(self.module, mesh=mesh)
            register_fsdp_forward_method(self.module, "generate")
        elif self.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.module = nn.parallel.DistributedDataParallel(self.module, device_ids=ids)

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged only in the last micro-batch of a step."""
        if self.sharded:
            self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        elif self.world > 1 and not last:
            with self.module.no_sync():  # type: ignore[operator]
                yield
        else:
            yield

    @property
    def own(self) -> Any:
        """The module whose forward is the loss, without what averages its gradients over workers."""
        wrapped = isinstance(self.module, nn.parallel.DistributedDataParallel)
        return self.module.module if wrapped else self.module

    def losses(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats and target tokens per sequence of a batch, without gradients."""
        return self.own(ids, mask, per_sequence=True)

    def generate(self, **options: Any) -> torch.Tensor:
        """`plain_generate` of the model; where workers hold a part of it each, all call it with the same prompts."""
        if self.sharded:
            return self.module.generate(**options)  # type: ignore[operator]
        return plain_generate(self.model, **options)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over workers, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of every worker, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def model_state(self) -> dict[str, torch.Tensor] | None:
        """Whole weights by name where the model itself holds only its part; else None."""
        if not self.sharded:
            return None
        return dict(get_model_state_dict(self.model, options=_FULL))  # type: ignore[arg-type]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole optimiser state, by parameter name where sharded."""
        if self.sharded:
            return get_optimizer_state_dict(self.model, optimizer, options=_FULL)
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """The inverse of `optimizer_state`."""
        if self.sharded:
            set_optimizer_state_dict(self.model, optimizer, state, options=_SPREAD)
        else:
            optimizer.load_state_dict(state)


_UNIT = 2.0**20  # parts of a nat
Total = Callable[[torch.Tensor], torch.Tensor]


class DomainLosses:
    """Nats and target tokens by domain in one segment; every sum is a tensor (2, D).

    Args:
        domains: names by their positions in a batch.
        start: global step at which the segment begins.
        stage_steps: of the stage.
        device: of the worker.
        total: the sum over workers, in place.
    """

    def __init__(
        self, domains: Sequence[str], start: int, stage_steps: int, device: torch.device, total: Total
    ) -> None:
        self._domains, self._start, self._device, self._total = tuple(domains), start, device, total
        self._length = block_length(stage_steps, len(domains))
        self._step, self._since = self._zeros(), self._zeros()
        self._blocks = [self._zeros()]
        self._done = 0  # steps

    def add(self, domain_ids: np.ndarray, nats: torch.Tensor, targets: torch.Tensor) -> None:
        """Add the sequences of a micro-batch.

        Args:
            domain_ids: (n,) positions of their domains.
            nats: (n,) or longer; what is beyond n does not count.
            targets: the same, target tokens.
        """
        places = torch.from_numpy(domain_ids).to(self._device)
        own = torch.stack([(nats * _UNIT).round() / _UNIT, targets.to(nats)])
        self._step.index_add_(1, places, own[:, : len(places)])

    def of_step(self) -> dict[str, float]:
        """Mean loss of the step by domain over all workers, nats per token; domains without a token are left out."""
        return {name: nats / tokens for name, (nats, tokens) in self._named(self._step.clone()).items()}

    def end_step(self) -> None:
        """The step is done."""
        if self._done == len(self._blocks) * self._length:
            self._blocks.append(self._zeros())
        self._since += self._step
        self._blocks[-1] += self._step
        self._step.zero_()
        self._done += 1

    def take_row(self) -> dict[str, list[float]]:
        """Nats and target tokens of each domain since the last row, over all workers."""
        found = self._named(self._since)
        self._since = self._zeros()
        return found

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, over all workers: sums since the last row, and curves."""
        sums = self._total(torch.stack([self._since, *self._blocks])).cpu()
        return {"since": sums[0].tolist(), "curves": self._curves(sums[1:].numpy()).to_dict()}

    def restore(self, values: Mapping[str, Any], step: int, *, first: bool) -> None:
        """Go on from `to_dict`; the first worker takes all sums, the others begin with none.

        Args:
            values: from `to_dict`; nothing where a checkpoint has none.
            step: global steps done.
            first: whether this is the first worker.
        """
        if not values:
            return
        curves = DomainCurves.from_dict(values["curves"])
        self._done = step - self._start
        self._blocks = [self._zeros() for _ in curves.steps]
        if first:
            self._since = torch.tensor(values["since"], dtype=torch.float64, device=self._device)
            for block, nats, tokens in zip(self._blocks, curves.nats, curves.tokens, strict=True):
                block.copy_(torch.from_numpy(np.stack([nats, tokens])))

    def _curves(self, blocks: np.ndarray) -> DomainCurves:
        """Curves of blocks (B, 2, D)."""
        ends = self._start + np.minimum(np.arange(1, len(blocks) + 1) * self._length, self._done)
        return DomainCurves(
            self._domains, self._start, ends, nats=blocks[:, 0], tokens=blocks[:, 1].astype(np.int64)
        )

    def _named(self, sums: torch.Tensor) -> dict[str, list[float]]:
        """Own sums (2, D) added up over workers, by name; domains without a token are left out."""
        nats, tokens = self._total(sums).cpu().tolist()
        return {
            name: [own, int(count)]
            for name, own, count in zip(self._domains, nats, tokens, strict=True)
            if count
        }

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(2, len(self._domains), dtype=torch.float64, device=self._device)


_LOOK = 1.0  # seconds between two looks
_GRACE = 25.0  # seconds for a checkpoint after SIGTERM; Kubernetes gives 30 before SIGKILL

_told = threading.Event()  # this process got SIGTERM


class ToldToEndError(Exception):
    """Ends a worker whose process got SIGTERM, after its checkpoint; all workers then begin again from there."""


class Notice:
    """Tells the workers of a segment, all in the same step, that a checkpoint is due before one of them goes.

    One look is an exchange between all workers, so rank 0 says when the next is due, in an exchange that every step
    has anyway; there each worker also says whether it was told to end.
    """

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._going: set[str] = set()  # machines that were told to go
        self.pending = False  # one of them was, or a worker, and no checkpoint was written since

    def due(self, rank: int) -> bool:
        """Whether rank 0 wants to look; always false on the others."""
        return rank == 0 and time.monotonic() - self._looked > _LOOK

    def look(self) -> None:
        """See whether a machine of this segment was told to go; to be called by all workers together."""
        self._looked = time.monotonic()
        info = getattr(ray.train, "get_preemption_info", None)  # Ray before 2.60 has none
        found = info() if info is not None else None
        going = set() if found is None else set(found.preempted_node_ids)
        self.pending = self.pending or not going <= self._going
        self._going |= going

    def told(self) -> bool:
        """Whether this worker's process got SIGTERM."""
        return _told.is_set()

    def leave(self, rank: int) -> None:
        """End this worker once Ray Train's controller knows the checkpoint that was reported last.

        Raises:
            ToldToEndError: always.
        """
        known = getattr(ray.train, "get_all_reported_checkpoints", None)
        if known is not None:
            known(ray.train.CheckpointConsistencyMode.COMMITTED, timeout_s=_GRACE)
        raise ToldToEndError(f"the worker of rank {rank} got SIGTERM and ended after a checkpoint")


class ListeningConfig(TorchConfig):
    """Torch's set-up of workers, which then listen for SIGTERM; their main threads do, so training itself cannot."""

    @property
    def backend_cls(self) -> Any:
        """What Ray Train sets workers up with."""
        return _Listening


class _Listening(_TorchBackend):
    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(listen)


def listen() -> None:
    """Let SIGTERM ask for a checkpoint before it ends this process; to be called in the main thread.

    A second SIGTERM ends the process as the first one would have done, and so does a checkpoint that does not come.
    """
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        _told.set()
        last = threading.Timer(_GRACE, os.kill, (os.getpid(), signal.SIGTERM))
        last.daemon = True
        last.start()

    signal.signal(signal.SIGTERM, handle)
