"""Memory of a training step or a forward pass, counted without doing it: the model runs on tensors without storage.

    step = count_step(architecture(config, ...), sequences=16, seq_len=128, autocast=True)
    step.peak                     # bytes beside the weights, gradients included

Every storage that eager PyTorch would make is counted from its birth to its death, through forward pass, head, loss
and backward pass, in a model of two and of three layers; what more layers add is that difference, since layers are
alike. Scratch memory inside kernels is not seen.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from opmix_ray.config import ProbeConfig
from opmix_ray.model.architecture import without_values
from opmix_ray.model.fused_head import fused_head_loss, is_plain_linear
from opmix_ray.model.load import is_remote, set_recompute
from opmix_ray.model.loss import head_losses
from opmix_ray.model.probe import attach, base_causal_lm

_DEPTHS = (2, 3)  # layers of the models that are run


@dataclass(frozen=True)
class StepMemory:
    """Bytes beside the weights that a pass needs.

    Attributes:
        saved: kept for the backward pass when the layers are done; without gradients, the most the layers have.
        head: the most that head and loss have at a time, above that.
        peak: the most there is at any moment, gradients included as far as they are there.
    """

    saved: int
    head: int
    peak: int


def count_step(
    model: PreTrainedModel,
    *,
    sequences: int,
    seq_len: int,
    autocast: bool,
    accumulate: bool = False,
    recompute: bool = False,
    probe: ProbeConfig | None = None,
    fused: bool = True,
) -> StepMemory:
    """Memory of one forward and backward pass.

    Args:
        model: from `architecture`.
        sequences: in one pass.
        seq_len: tokens in each.
        autocast: compute in bfloat16, whether this machine would or not.
        accumulate: whether an earlier pass has left its gradients.
        recompute: whether layers keep their inputs only.
        probe: train a LoRA probe on frozen weights; none: train the weights.
        fused: whether head and loss may be one, as in training on a CPU with whole weights.
    """

    def one_pass(layers: int) -> tuple[int, ...]:
        with _running(model, layers, probe, recompute) as made:
            made.train()
            if accumulate:
                for parameter in made.parameters():
                    parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            causal = base_causal_lm(made)
            with _Meter(made) as meter:
                meter.live = meter.peak = sum(p.grad.nbytes for p in made.parameters() if p.grad is not None)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    hidden = _hidden(causal, sequences, seq_len)
                    saved = meter.live
                    loss = _loss(causal, hidden, fused=fused)
                hidden.register_hook(meter.mark)
                loss.backward()
            return saved, meter.marked, meter.peak

    return _counted(model, one_pass)


def count_forward(
    model: PreTrainedModel, *, sequences: int, seq_len: int, autocast: bool, on_cpu: bool = True
) -> StepMemory:
    """Memory of a forward pass without gradients, on a CPU or not; the other arguments are those of `count_step`."""

    def one_pass(layers: int) -> tuple[int, ...]:
        with _running(model, layers) as made, torch.no_grad():
            made.requires_grad_(False).eval()
            with _Meter(made) as meter, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                hidden = _hidden(made, sequences, seq_len)
                meter.mark()
                _loss(made, hidden, on_cpu=on_cpu)
            return meter.marked, meter.peak, 0

    return _counted(model, one_pass)


def _counted(model: PreTrainedModel, one_pass: Callable[[int], tuple[int, ...]]) -> StepMemory:
    """One pass at the model's own depth, or drawn on from two smaller depths."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    if layers <= _DEPTHS[-1]:
        saved, until, since = one_pass(layers)
    else:
        few, more = one_pass(_DEPTHS[0]), one_pass(_DEPTHS[1])
        saved, until, since = (a + (layers - _DEPTHS[0]) * (b - a) for a, b in zip(few, more, strict=True))
    peak = max(until, since)
    return StepMemory(saved=saved, head=max(0, until - saved), peak=peak)


def _hidden(model: Any, sequences: int, seq_len: int) -> torch.Tensor:
    ids = torch.zeros((sequences, seq_len), dtype=torch.int64)
    hidden: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def _loss(model: Any, hidden: torch.Tensor, *, fused: bool = False, on_cpu: bool = True) -> torch.Tensor:
    """As `opmix_ray.model.loss` has it, for a batch in which every token is a target."""
    head = model.get_output_embeddings()
    flat = hidden[:, 1:].reshape(-1, hidden.shape[-1])
    targets = torch.zeros(len(flat), dtype=torch.int64)
    if fused and is_plain_linear(head):
        return fused_head_loss(flat, head.weight, targets)[0]
    nats = torch.zeros(())
    for losses, _ in head_losses(head, flat, targets, on_cpu=on_cpu):
        nats = nats + losses.sum()
    return nats


@contextmanager
def _running(
    model: PreTrainedModel, layers: int, probe: ProbeConfig | None = None, recompute: bool = False
) -> Iterator[Any]:
    """A model of the same kind with some layers, on tensors that have a size and no memory, for a `with`."""
    config = copy.deepcopy(model.config)
    set_depth(config.get_text_config(), layers)
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(
            config, dtype=next(model.parameters()).dtype, trust_remote_code=is_remote(model)
        )
    set_recompute(made.train(), recompute)
    if probe is not None:
        made.requires_grad_(False)
        made = attach(made, probe, seed=0)
    with FakeTensorMode(), without_values():
        fakes: dict[int, Any] = {}
        for module in made.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = fakes.setdefault(id(tensor), _fake(tensor))
        yield made


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, torch.nn.Parameter):
        return made
    return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)


def set_depth(config: PretrainedConfig, layers: int) -> None:
    """Give a model's description another number of layers."""
    config.num_hidden_layers = layers
    for name, value in vars(config).items():  # a kind for each layer
        if isinstance(value, list) and name in ("layer_types", "mlp_layer_types"):
            setattr(config, name, value[:layers])


class _Meter(TorchDispatchMode):
    """Counts the bytes of every storage made while it is on, for as long as the storage lives."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.marked = 0  # the peak until `mark`
        self.peak = 0  # since then
        held = [*model.parameters(), *model.buffers()]
        held += [p.grad for p in model.parameters() if p.grad is not None]
        self._known: dict[int, Any] = {id(t.untyped_storage()): t.untyped_storage() for t in held}

    def mark(self, _: Any = None) -> None:
        """Keep the peak so far, and begin a new one."""
        self.marked, self.peak = self.peak, self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self._known:
            return
        self._known[place] = weakref.ref(storage, partial(self._gone, place, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, place: int, size: int, _: Any) -> None:
        del self._known[place]
        self.live -= size
