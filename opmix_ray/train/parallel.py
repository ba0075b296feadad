"""One model on one or several workers: DDP or FSDP2 around a module whose forward is the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
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
