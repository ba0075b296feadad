"""The parts of a configuration about the main run: model, tokenizer, optimiser, schedule, workers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from opmix_ray.config.section import HubOrPath, Section


class ModelConfig(Section):
    """The language model: a hub id, a directory, a GGUF file, or fresh weights."""

    path: HubOrPath | None = Field(None, description="Hub id or local directory of a pretrained causal LM.")
    gguf_file: str | None = Field(None, description="Name of a GGUF file inside `path`.")
    config: dict[str, Any] | None = Field(
        None,
        description="A transformers configuration for fresh weights, for example "
        "`{model_type: llama, hidden_size: 128, ...}`; the vocabulary size follows the tokenizer.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type that the weights are held in.")
    autocast: bool = Field(
        True,
        description="Compute in bfloat16 autocast while the weights stay float32, on GPUs and CPUs that have "
        "instructions for bfloat16; others compute in float32, which is faster there.",
    )
    recompute: bool = Field(
        False,
        description="Keep only the input of each layer for the backward pass, and compute the rest again: much less "
        "memory, a third more operations.",
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the weights.")

    def at(self, directory: Path) -> ModelConfig:
        """The same settings with the weights of a Hugging Face directory."""
        return self.but(path=str(directory), config=None, gguf_file=None)


class TokenizerConfig(Section):
    """The tokenizer: an existing one, or a byte-level BPE trained on the domains."""

    path: HubOrPath | None = Field(
        None, description="Hub id, directory or tokenizer.json; none: the model's own."
    )
    gguf_file: str | None = Field(None, description="Name of a GGUF file inside `path`.")
    train_vocab_size: int | None = Field(
        None, ge=300, description="Train a byte-level BPE of this size on the domains instead."
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Decay of the two moments.")
    weight_decay: float = Field(0.1, ge=0, description="Weight decay of matrices; nothing else decays.")
    clip_norm: float | None = Field(
        1.0, gt=0, description="Greatest norm of the gradient; none: no clipping."
    )


class ScheduleConfig(Section):
    """Learning rate over one whole stage; decisions do not restart it."""

    kind: Literal["wsd", "cosine", "constant"] = Field(
        "wsd", description="Warm-up-stable-decay, cosine, or constant after the warm-up."
    )
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="Share of the stage spent warming up.")
    decay_fraction: float = Field(0.2, ge=0, le=1, description="Share of the stage spent decaying (wsd).")
    final_ratio: float = Field(0.1, ge=0, le=1, description="Last learning rate, divided by the peak.")


class TrainConfig(Section):
    """The main run."""

    batch_size: int = Field(16, ge=1, description="Sequences in one step, over all workers.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences in one forward pass per worker; none: all of the worker's share."
    )
    workers: int = Field(1, ge=1, description="Ray Train workers; one process each.")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs asked for per worker.")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs asked for per worker.")
    resources: dict[str, float] = Field(
        default_factory=dict, description="What else is asked for per worker, such as `{trainer: 1}`."
    )
    strategy: Literal["ddp", "fsdp2"] = Field("ddp", description="How several workers share the model.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW settings.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate schedule.")
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints inside a segment; none: only at its end."
    )
    eval_every: int | None = Field(
        None, ge=1, description="Steps between evaluations; none: around decisions and at the end."
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="Weights that a stage ends with, which the next one goes on from and a run exports: those of its "
        "last step, or those of its best evaluation (with `eval_every`): the greatest mean accuracy, by "
        "`evaluation.weights`, where sets of questions have a weight, and among equals or without questions "
        "the least objective; the first of equals.",
    )
    log_every: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl.")
    max_failures: int = Field(3, ge=0, description="How often a segment is tried again when a worker dies.")


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of step `step` (from 0) of a stage of `steps` steps; a decision inside the stage changes nothing.

    Linear warm-up, then constant, cosine, or stable and linear decay (WSD: Hu et al. 2024, arXiv 2404.06395).
    """
    peak, last = optimizer.learning_rate, schedule.final_ratio
    warmup = round(schedule.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))
    decay = round(schedule.decay_fraction * steps)
    left = steps - step
    return peak if left > decay else peak * (last + (1 - last) * left / max(1, decay))
