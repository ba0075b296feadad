"""How fast a model trains on this machine: a few real steps, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from opmix_ray.config import ModelConfig
from opmix_ray.model.load import load_model
from opmix_ray.model.loss import compute_context, training_loss

STEPS = 3  # timed, after one that is not
SECONDS = 12.0  # after which no further step is timed


@dataclass(frozen=True)
class Speed:
    """A model's size and its training speed.

    Args:
        weights: without the embedding.
        tokens_per_second: of whole training steps, on one device.
    """

    weights: int
    tokens_per_second: float


def measure(
    model: ModelConfig,
    *,
    vocab_size: int,
    seq_len: int,
    batch_size: int,
    device: str,
    threads: int | None = None,
) -> Speed:
    """Train a model on random tokens for some steps.

    Args:
        model: a configuration for fresh weights, or a pretrained model.
        vocab_size: of the tokenizer.
        seq_len: tokens in a sequence.
        batch_size: sequences in a step.
        device: `cpu` or `cuda`.
        threads: that the process computes with from now on; None: as many as it does.

    Raises:
        UserError: the model cannot be made.
        RuntimeError: it does not fit into the memory.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    net: Any = load_model(model, vocab_size=vocab_size, eos_token_id=0, seed=0, seq_len=seq_len)
    where = torch.device(device)
    net = net.to(where).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    ids = torch.randint(0, vocab_size, (batch_size, seq_len), device=where)
    mask = torch.ones_like(ids, dtype=torch.bool)
    embedding = net.get_input_embeddings().weight.numel()

    def step() -> float:
        began = time.monotonic()
        with compute_context(model.autocast, where):
            nats, targets, _ = training_loss(net, ids, mask)
        (nats / targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began

    step()
    began = time.monotonic()
    times: list[float] = []
    while len(times) < STEPS and time.monotonic() - began < SECONDS:
        times.append(step())
    weights = sum(parameter.numel() for parameter in net.parameters()) - embedding
    return Speed(weights, ids.numel() / min(times))
