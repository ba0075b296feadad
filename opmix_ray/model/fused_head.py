"""Head and cross-entropy in one: the gradient is made slice by slice while the logits are there.

    nats, each = fused_head_loss(hidden, head.weight, targets)   # float32 scalar, with gradients; (k,), without

What `cross_entropy(head(hidden))` computes, without keeping logits for the backward pass and without making them again.
The sum of the losses has the gradient `softmax - onehot` for each token's logits, which the forward pass has at hand;
the backward pass only scales what is there. Slices share one block of memory, which a CPU would otherwise map and clear
anew for every slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SLICE_LOGITS = 1 << 22  # logits in float32 at a time: 16 MiB
LEAST_SLICE = 256  # tokens, so that adding up the weight's gradient stays a small part


def can_fuse(head: Any, hidden: torch.Tensor) -> bool:
    """Whether a head is a plain matrix on the CPU, which is where the fused loss was measured to be faster."""
    return (
        is_plain_linear(head)
        and hidden.device.type == "cpu"
        and type(head.weight) in (nn.Parameter, torch.Tensor)
        and type(head.weight.data) is torch.Tensor
    )


def is_plain_linear(head: Any) -> bool:
    """Whether a head is a matrix and nothing else."""
    return type(head) is nn.Linear and head.bias is None


def fused_head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of tokens under a linear head; in autocast's type where autocast is on.

    Args:
        hidden: (k, H).
        weight: (V, H).
        targets: int64 (k,).

    Returns:
        The sum, a float32 scalar with gradients, and the loss of each token, float32 (k,), without.
    """
    total, losses = _FusedHeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return total, losses


class _FusedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        autocast = torch.is_autocast_enabled(hidden.device.type)
        kind = torch.get_autocast_dtype(hidden.device.type) if autocast else weight.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            states, matrix = hidden.detach().to(kind), weight.detach().to(kind)
            size = max(1, min(len(targets), max(LEAST_SLICE, SLICE_LOGITS // len(matrix))))
            block = torch.empty(size, len(matrix), dtype=torch.float32, device=hidden.device)
            losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
            of_hidden = torch.empty_like(states)
            of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            for start in range(0, len(targets), size):
                part = slice(start, start + size)
                logits = block[: len(targets[part])]
                logits.copy_(states[part] @ matrix.T)
                logits -= logits.amax(dim=1, keepdim=True)
                at = targets[part, None]
                own = logits.gather(1, at)
                sums = logits.exp_().sum(dim=1, keepdim=True)
                losses[part] = (sums.log() - own)[:, 0]
                logits /= sums
                logits.scatter_add_(1, at, torch.full_like(at, -1, dtype=torch.float32))
                gradient = logits.to(kind)
                torch.mm(gradient, matrix, out=of_hidden[part])
                if of_weight is not None:
                    of_weight += gradient.T @ states[part]
            ctx.save_for_backward(of_hidden, of_weight)
            ctx.kinds = hidden.dtype, weight.dtype
            ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        of_hidden, of_weight = ctx.saved_tensors
        scale = gradients[0]
        first = (of_hidden * scale).to(ctx.kinds[0])
        return first, None if of_weight is None else (of_weight * scale).to(ctx.kinds[1]), None
