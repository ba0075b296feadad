"""Tiny models of several architectures, and probes with factors that are not zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from opmix_ray.config import ModelConfig, ProbeConfig
from opmix_ray.model.load import load_model
from opmix_ray.model.probe import Probe, attach, detach, extract

VOCAB = 96
_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_COMMON},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **_COMMON},
    "olmo2": {"model_type": "olmo2", **_COMMON},
}
# Logits that are more than the head applied to the last hidden states.
SCALED_CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 30.0, **_COMMON},
    "cohere": {"model_type": "cohere", "logit_scale": 0.25, **_COMMON},
    "granite": {"model_type": "granite", "logits_scaling": 8.0, **_COMMON},
}
PROBE = ProbeConfig(rank=3, alpha=7.5)


def tiny(name: str, dtype: str = "float32", seed: int = 0) -> PreTrainedModel:
    """A fresh model of a few thousand weights."""
    config = ModelConfig(config={**CONFIGS, **SCALED_CONFIGS}[name], dtype=dtype)  # type: ignore[arg-type]
    return load_model(config, vocab_size=VOCAB, eos_token_id=0, seed=seed)


def made_probes(model: PreTrainedModel, count: int, config: ProbeConfig = PROBE) -> list[Probe]:
    """Probes p0, p1, ... with random A and B; p<i> was trained on domain d<i>."""
    probes = []
    for index in range(count):
        peft_model = attach(model, config, seed=index)
        generator = torch.Generator().manual_seed(100 + index)
        for name, parameter in peft_model.named_parameters():
            if ".lora_B." in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        probes.append(extract(peft_model, name=f"p{index}", data={f"d{index}": 1.0}))
        detach(peft_model)
    return probes


def tokens(count: int = 5, length: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ids int64 and mask bool of shape (count, length); about a third of the targets do not count."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, VOCAB, (count, length)), rng.random((count, length)) < 0.7


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer as bytes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors}
