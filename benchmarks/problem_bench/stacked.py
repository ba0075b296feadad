"""Many small Llamas trained side by side on the CPU: every weight has a first axis over the K models.

A step of one small model is mostly the price of calling operators; K models in one call share that price. The function,
the loss and the optimiser are those of the product's training loop (`tests/test_benchmarks.py` compares them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from opmix_ray.config import RunConfig

Weights = dict[str, np.ndarray]


class StackedLlamas:
    """K Llamas of one shape, with tied embeddings and as many key heads as query heads.

    Args:
        config: `model.config` and `train` are read.
        weights: of one model, by transformers' names; all K begin with them.
        count: K.
    """

    def __init__(self, config: RunConfig, weights: Weights, count: int) -> None:
        shape: Mapping[str, Any] = config.model.config or {}
        self.heads, self.layers = shape["num_attention_heads"], shape["num_hidden_layers"]
        self.settings, self.count = config.train, count
        self.eps = shape.get("rms_norm_eps", 1e-6)
        self.weights = {
            name: torch.from_numpy(np.repeat(array[None], count, axis=0)).requires_grad_()
            for name, array in weights.items()
            if name != "lm_head.weight"
        }
        matrices = [w for w in self.weights.values() if w.dim() > 2]
        vectors = [w for w in self.weights.values() if w.dim() <= 2]
        own = self.settings.optimizer
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": own.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=own.learning_rate, betas=own.betas, foreach=True,
        )  # fmt: skip

    def moments(self) -> list[dict[str, np.ndarray]]:
        """AdamW's state of the first model, in the order of the weights."""
        kept = []
        for weight in self.weights.values():
            state = self.optimizer.state[weight]
            kept.append({key: state[key][0].numpy().copy() for key in ("exp_avg", "exp_avg_sq")})
        return kept

    def take_moments(self, moments: Sequence[Mapping[str, np.ndarray]], step: int) -> None:
        """Begin all models with the optimiser's state of one."""
        for weight, kept in zip(self.weights.values(), moments, strict=True):
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(step)),
                **{key: torch.from_numpy(np.repeat(kept[key][None], self.count, 0)) for key in kept},
            }

    def one(self, index: int = 0) -> Weights:
        """Weights of one model, by transformers' names."""
        found = {name: w.detach()[index].numpy().copy() for name, w in self.weights.items()}
        return found | {"lm_head.weight": found["model.embed_tokens.weight"]}

    def nats(self, ids: torch.Tensor) -> torch.Tensor:
        """Loss of every next token, (K, n, L) -> (K, n, L - 1), nats."""
        count, rows, length = ids.shape
        table = self.weights["model.embed_tokens.weight"]
        vocabulary, width = table.shape[1:]
        offset = torch.arange(count)[:, None, None] * vocabulary
        x = F.embedding(ids + offset, table.reshape(count * vocabulary, width)).reshape(count, -1, width)
        cos, sin = _rotary(length, width // self.heads)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            h = self._norm(x, prefix + "input_layernorm.weight")
            q, k, v = (
                self._linear(h, f"{prefix}self_attn.{name}_proj.weight")
                .reshape(count * rows, length, self.heads, -1).transpose(1, 2)
                for name in "qkv"
            )  # fmt: skip
            q, k = q * cos + _half(q) * sin, k * cos + _half(k) * sin
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out = out.transpose(1, 2).reshape(count, rows * length, width)
            x = x + self._linear(out, prefix + "self_attn.o_proj.weight")
            h = self._norm(x, prefix + "post_attention_layernorm.weight")
            gate = F.silu(self._linear(h, prefix + "mlp.gate_proj.weight"))
            h = gate * self._linear(h, prefix + "mlp.up_proj.weight")
            x = x + self._linear(h, prefix + "mlp.down_proj.weight")
        x = self._norm(x, "model.norm.weight").reshape(count, rows, length, width)[:, :, :-1]
        logits = torch.bmm(x.reshape(count, -1, width), table.transpose(1, 2))
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, :, 1:].flatten(), reduction="none")
        return losses.reshape(count, rows, length - 1)

    def step(self, ids: torch.Tensor, mask: torch.Tensor, rate: float) -> torch.Tensor:
        """One optimiser step; ids and mask (K, n, L); returns nats of every row (K, n)."""
        counted = mask[:, :, 1:]
        nats = self.nats(ids) * counted
        targets = counted.sum(dim=(1, 2)).clamp_min(1)
        (nats.sum(dim=(1, 2)) / targets).sum().backward()
        weights = list(self.weights.values())
        clip = self.settings.optimizer.clip_norm
        if clip is not None:
            grads = [w.grad for w in weights if w.grad is not None]
            norm = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
            scale = (clip / (norm + 1e-6)).clamp_max(1.0)
            for grad in grads:
                grad.mul_(scale.reshape(-1, *[1] * (grad.dim() - 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return nats.detach().sum(dim=2)

    @torch.no_grad()
    def losses(
        self, sets: Mapping[str, tuple[np.ndarray, np.ndarray]], rows: int = 16
    ) -> dict[str, np.ndarray]:
        """Mean loss of every set for every model: (K,) nats per token."""
        found = {}
        for name, (ids, mask) in sets.items():
            nats, count = torch.zeros(self.count, dtype=torch.float64), 0
            for first in range(0, len(ids), rows):
                part = torch.from_numpy(ids[first : first + rows])
                counted = torch.from_numpy(mask[first : first + rows])[:, 1:]
                same = part.expand(self.count, *part.shape)
                nats += (self.nats(same) * counted).sum(dim=(1, 2)).double()
                count += int(counted.sum())
            found[name] = (nats / max(1, count)).numpy()
        return found

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return scaled * self.weights[name][:, None]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.bmm(x, self.weights[name].transpose(1, 2))


def _rotary(length: int, width: int, theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = theta ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies[None]
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def _half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def perplexity(nats: float) -> float:
    """exp of a loss."""
    return math.exp(nats)
