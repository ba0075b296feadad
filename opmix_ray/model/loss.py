"""Held-out and training loss in nats, without ever holding the logits of a whole batch.

    losses = evaluate_sets(model, {"code": (ids, mask)}, batch_size=16, autocast=True)
    losses["code"].mean            # nats per token
    losses["code"].nats            # (n,) per sequence, for paired comparisons

    nats, tokens, by_sequence = training_loss(model, ids, mask)   # with gradients; inside what DDP or FSDP2 wraps

The target of position t is token t + 1; it counts where its mask is True. Sequences are never padded.
The head is applied to slices of the hidden states, and only at positions that count. A model that does
more than that (soft-capped or scaled logits) is found out by a test on random hidden states, and its own
logits are used, a few sequences at a time.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from opmix_ray.data.held_out import Held
from opmix_ray.data.questions import ChoiceSet
from opmix_ray.model.accuracy import Generate, Score, plain_generate, wrong_choices, wrong_continuations
from opmix_ray.model.fused_head import can_fuse, fused_head_loss
from opmix_ray.model.probe import base_causal_lm

CHUNK_LOGITS = 1 << 24  # logits held at a time: 64 MiB in float32
CPU_CHUNK_LOGITS = 1 << 22  # without a backward pass; glibc maps larger blocks anew each time, twice as slow

_plain_head: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class SetLoss:
    """The loss of one evaluation set.

    Attributes:
        nats: summed loss of each sequence, float64 of shape (n,).
        tokens: targets that count in each sequence, int64 of shape (n,).
    """

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token, over all sequences; NaN when no token counts."""
        total = int(self.tokens.sum())
        return float(self.nats.sum()) / total if total else math.nan

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The mean in bits per byte of text, given the set's mean bytes per token."""
        return self.mean / math.log(2) / bytes_per_token


def training_loss(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed loss of a batch, with gradients; divide by the global number of tokens.

    It does not go through `model.forward`: under DDP or FSDP2, wrap a module whose forward calls this
    function, so that their hooks see it.

    Args:
        model: causal LM, possibly a PeftModel.
        ids: int64 of shape (n, L).
        mask: bool of shape (n, L): whether the token counts as a target.

    Returns:
        Sum of nats (float32 scalar), number of targets (int64 scalar), and without gradients the nats of each
        sequence (float64, (n,)).
    """
    causal = base_causal_lm(model)
    head = causal.get_output_embeddings()
    by_sequence = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    if torch.is_grad_enabled() and can_fuse(head, ids) and has_plain_head(causal):
        hidden, targets, rows = _counting(causal, ids, mask)
        nats, losses = fused_head_loss(hidden, head.weight, targets)
        return nats, mask[:, 1:].sum(), by_sequence.index_add_(0, rows, losses.double())
    nats = torch.zeros((), dtype=torch.float32, device=ids.device)
    for losses, rows in token_losses(model, ids, mask):
        nats = nats + losses.sum()
        by_sequence.index_add_(0, rows, losses.detach().double())
    return nats, mask[:, 1:].sum(), by_sequence


def sequence_losses(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of each sequence.

    Args:
        model: causal LM.
        ids: int64 of shape (n, L).
        mask: bool of shape (n, L): whether the token counts as a target; the first token never does.

    Returns:
        Nats, float64 of shape (n,), and number of targets, int64 of shape (n,).
    """
    nats = torch.zeros(ids.shape[0], dtype=torch.float64, device=ids.device)
    for losses, rows in token_losses(model, ids, mask):
        nats = nats.index_add(0, rows, losses.double())
    return nats, mask[:, 1:].sum(dim=1)


def evaluate_sets(
    model: nn.Module, sets: Mapping[str, Held], batch_size: int, *, autocast: bool
) -> dict[str, SetLoss]:
    """Loss of every evaluation set, per sequence; of questions whether the answer is wrong, per question.

    Args:
        model: causal LM; put into evaluation mode meanwhile.
        sets: name -> ids, integers of shape (n, L), and mask, bool of shape (n, L); or questions.
        batch_size: sequences in one forward pass.
        autocast: compute in bfloat16.
    """
    device = _device(model)
    with _evaluating(model), torch.inference_mode(), compute_context(autocast, device):
        score = partial(sequence_losses, model)
        generate = partial(plain_generate, base_causal_lm(model))
        return {name: measure(held, score, generate, batch_size, device) for name, held in sets.items()}


def target_losses(
    model: nn.Module, ids: np.ndarray, mask: np.ndarray, batch_size: int, *, autocast: bool
) -> np.ndarray:
    """Loss of every target that counts, in the order of the text: nats, float32 of shape (k,).

    Args: as for `evaluate_sets`, of one set.
    """
    device = _device(model)
    with _evaluating(model), torch.inference_mode(), compute_context(autocast, device):
        parts = [
            losses.float().cpu().numpy()
            for batch in batches(ids, mask, batch_size, device)
            for losses, _ in token_losses(model, *batch)
        ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def measure(held: Held, score: Score, generate: Generate, batch_size: int, device: torch.device) -> SetLoss:
    """Loss of one evaluation set, or the rate of wrong answers.

    Args:
        held: sequences or questions.
        score: summed nats and number of targets of every sequence, from ids (b, L) and mask (b, L).
        generate: `plain_generate` of the model.
        batch_size: sequences in one forward pass.
        device: the model's.
    """
    if isinstance(held, tuple):
        return _evaluate(score, *held, batch_size, device)
    if isinstance(held, ChoiceSet):
        wrong = wrong_choices(score, held, batch_size, device)
    else:
        wrong = wrong_continuations(generate, held, batch_size, device)
    return SetLoss(wrong, np.ones(len(wrong), dtype=np.int64))


def compute_context(autocast: bool, device: torch.device | str) -> torch.autocast:
    """The context of a forward pass: bfloat16 autocast where the device computes in that type, else nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=autocast and has_bfloat16(kind))


@cache
def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 itself. Others emulate it, many times slower than float32.

    Args:
        device: `cpu`, `cuda` or another type of device of torch.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return True
    found = torch.cpu.get_capabilities()  # of x86, and of ARM
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "avx10_1", "bf16"))


def batches(
    ids: np.ndarray, mask: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Consecutive batches on the device: ids int64 (b, L), mask bool (b, L)."""
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        yield (
            torch.from_numpy(np.array(ids[part], dtype=np.int64)).to(device),
            torch.from_numpy(np.array(mask[part], dtype=np.bool_)).to(device),
        )


def _evaluate(
    score: Score, ids: np.ndarray, mask: np.ndarray, batch_size: int, device: torch.device
) -> SetLoss:
    parts = [score(*batch) for batch in batches(ids, mask, batch_size, device)]
    if not parts:
        return SetLoss(np.zeros(0, dtype=np.float64), np.zeros(0, dtype=np.int64))
    nats, tokens = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return SetLoss(nats, tokens)


def token_losses(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Loss of every target that counts, in slices: nats float32 (k,) and the sequence of each, int64 (k,)."""
    causal = base_causal_lm(model)
    vocab = causal.get_output_embeddings().weight.shape[0]
    if not has_plain_head(causal):
        yield from _token_losses_from_logits(
            causal, ids, mask, max(1, CHUNK_LOGITS // (vocab * ids.shape[1]))
        )
        return
    hidden, targets, rows = _counting(causal, ids, mask)
    on_cpu = ids.device.type == "cpu"
    for losses, part in head_losses(causal.get_output_embeddings(), hidden, targets, on_cpu=on_cpu):
        yield losses, rows[part]


def head_losses(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, *, on_cpu: bool
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Loss of every token under a head, in slices that keep the logits small: nats float32 (k,), and which k these are.

    Args:
        head: of the model.
        hidden: last hidden states, (n, H).
        targets: int64 (n,).
        on_cpu: whether a CPU computes.
    """
    small = on_cpu and not torch.is_grad_enabled()
    size = max(1, min(CHUNK_LOGITS, CPU_CHUNK_LOGITS if small else CHUNK_LOGITS) // head.weight.shape[0])
    ready = _ready_head(head)
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        if torch.is_grad_enabled() and len(targets) > size:  # logits are made again in the backward pass
            losses = checkpoint(_head_loss, ready, hidden[part], targets[part], use_reentrant=False)
        else:
            losses = _head_loss(ready, hidden[part], targets[part])
        yield losses, part


def _counting(
    causal: Any, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Last hidden state, target and sequence of every position whose target counts: (k, H), (k,), (k,)."""
    hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (n, L, H)
    rows, columns = mask[:, 1:].nonzero(as_tuple=True)  # targets that count, at column + 1
    return hidden[rows, columns], ids[rows, columns + 1], rows


def _ready_head(head: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The head as a function, its weight cast once and not for every slice where autocast would do so."""
    device = head.weight.device.type
    if torch.is_grad_enabled() or type(head) is not nn.Linear or not torch.is_autocast_enabled(device):
        return head
    kind = torch.get_autocast_dtype(device)
    return partial(
        F.linear, weight=head.weight.to(kind), bias=None if head.bias is None else head.bias.to(kind)
    )


def _head_loss(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")


def _token_losses_from_logits(
    causal: nn.Module, ids: torch.Tensor, mask: torch.Tensor, sequences: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(ids), sequences):
        part = slice(start, start + sequences)
        rows, columns = mask[part, 1:].nonzero(as_tuple=True)
        logits = causal(input_ids=ids[part], use_cache=False).logits[rows, columns].float()
        yield F.cross_entropy(logits, ids[part][rows, columns + 1], reduction="none"), rows + start


def has_plain_head(causal: nn.Module) -> bool:
    """Whether the logits are just the head applied to the base model's last hidden states.

    Asked of the model once: random hidden states, large enough for any soft-capping to show, are put in the
    place of the base model's output, and the model's logits are compared with the head's.
    """
    if causal not in _plain_head:
        _plain_head[causal] = _test_plain_head(causal)
    return _plain_head[causal]


@torch.no_grad()
def _test_plain_head(causal: Any) -> bool:
    head: Any = causal.get_output_embeddings()
    base = causal.base_model
    if base is causal or not isinstance(head, nn.Module):
        return False
    weight: Any = head.weight
    seen: list[torch.Tensor] = []
    random = torch.Generator(device="cpu").manual_seed(0)

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        states = output.last_hidden_state
        noise = torch.randn(states.shape, generator=random).to(states)
        noise *= 100.0 / weight.float().pow(2).sum(dim=1).mean().sqrt().clamp_min(1e-6)
        seen.extend([states, noise])
        output.last_hidden_state = noise
        return output

    ids = torch.arange(4, device=weight.device).remainder(weight.shape[0])[None]
    handle = base.register_forward_hook(replace)
    try:
        with _evaluating(causal):
            logits = causal(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(seen) != 2:
        return False
    with _evaluating(causal):
        again = base(input_ids=ids, use_cache=False).last_hidden_state
    ours = head(seen[1][0])[None]
    return _close(ours, logits) and _close(again, seen[0])


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= 1e-2 * other.abs().max())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
