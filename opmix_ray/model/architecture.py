"""A model's architecture without its weights, and the floating-point operations that its matrices take.

    model = architecture(config, vocab_size=4096, eos_token_id=0)    # every parameter is on the meta device
    train_flops(model, tokens=16 * 1024, seq_len=1024)               # one step of 16 sequences

One multiply-accumulate is two operations. A forward pass costs, per token, `2 N` for the N weights of the
matrices it multiplies with (head included, tied or not; the embedding is a lookup and costs nothing) plus
`4 * layers * heads * head_dim * seq_len` for the attention scores and their application: Kaplan et al. 2020,
section 2.1, and Chowdhery et al. 2022 (PaLM), appendix B, which counts the full square of scores, as we do.
The backward pass costs twice the forward pass, once for activations and once for weights. Norms, softmax,
activations and convolutions are left out. In a mixture of experts only the active share of experts counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, masking_utils
from transformers.integrations import moe
from transformers.pytorch_utils import Conv1D

from opmix_ray.config import ModelConfig, ProbeConfig
from opmix_ray.model.load import DTYPES, load_model, no_causal_lm
from opmix_ray.model.probe import base_causal_lm
from opmix_ray.model.targets import adapted_layers, target


def architecture(config: ModelConfig, *, vocab_size: int, eos_token_id: int) -> PreTrainedModel:
    """Build a model without memory for its weights.

    Args:
        config: a configuration, a directory, a GGUF file or a hub id; of these only the description is read.
        vocab_size: number of the tokenizer's tokens, for fresh weights.
        eos_token_id: id of the tokenizer's end-of-text token, for fresh weights.

    Raises:
        UserError: it cannot be read or built.
    """
    if config.path is None:
        with torch.device("meta"):
            return load_model(config, vocab_size=vocab_size, eos_token_id=eos_token_id, seed=0)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                _described(config), dtype=DTYPES[config.dtype], trust_remote_code=config.trust_remote_code
            )
    except Exception as error:
        raise no_causal_lm("built", config.path, error) from error
    model.config.use_cache = False
    return model.eval()


@contextmanager
def without_values() -> Iterator[None]:
    """Let transformers compute what needs no values, for tensors that have none.

    It looks into position ids for several documents in a row, and would build the square mask of such a row, which a
    real pass over whole sequences does without. And it multiplies experts by a kernel that knows shapes in bfloat16
    only; its own other way has the same shapes.
    """
    names = (
        (masking_utils, "find_packed_sequence_indices", lambda *_, **__: None),
        (moe, "_can_use_grouped_mm", lambda *_, **__: False),
    )
    replaced = [
        (where, name, getattr(where, name), new) for where, name, new in names if hasattr(where, name)
    ]
    try:
        for where, name, _, new in replaced:
            setattr(where, name, new)
        yield
    finally:
        for where, name, asked, _ in replaced:
            setattr(where, name, asked)


def _described(config: ModelConfig) -> PretrainedConfig:
    options = {"gguf_file": config.gguf_file} if config.gguf_file else {}
    found = AutoConfig.from_pretrained(
        str(config.path), trust_remote_code=config.trust_remote_code, **options
    )
    assert isinstance(found, PretrainedConfig)
    return found


@dataclass(frozen=True)
class MatrixCount:
    """What one token meets on its way through a model.

    Attributes:
        weights: weights multiplied with, head included, experts by their active share.
        attention_width: `layers * heads * head_dim`.
    """

    weights: float
    attention_width: int


def count_matrices(model: Any) -> MatrixCount:
    """Count the matrices of a causal LM, or of the one a configuration describes (built without memory)."""
    if isinstance(model, PretrainedConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model)
    model = base_causal_lm(model)
    config = model.config.get_text_config()
    active = _active_experts(config)
    head = model.get_output_embeddings()
    weights = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name:
            share = active if ".experts." in f".{name}." else 1.0
            weights += share * module.weight.numel()
    for parameter in model.parameters():
        if parameter.ndim == 3 and active < 1.0:  # experts stacked in one parameter
            weights += active * parameter.numel()
    if head is not None:
        weights += head.weight.numel()
    return MatrixCount(weights, _attention_width(config))


def forward_flops(model: PreTrainedModel | PretrainedConfig, tokens: float, seq_len: int) -> float:
    """Operations of a forward pass over `tokens` tokens in sequences of `seq_len`."""
    count = count_matrices(model)
    return tokens * (2.0 * count.weights + 4.0 * count.attention_width * seq_len)


def train_flops(model: PreTrainedModel | PretrainedConfig, tokens: float, seq_len: int) -> float:
    """Operations of forward and backward pass over `tokens` tokens: three times the forward pass."""
    return 3.0 * forward_flops(model, tokens, seq_len)


def probe_flops(model: PreTrainedModel, probe: ProbeConfig, tokens: float, seq_len: int) -> float:
    """Operations of training a LoRA probe over `tokens` tokens.

    Frozen matrices cost the forward pass and the gradient of their input (`4 N`), not that of their weights;
    attention and the adapters' own `rank * (in + out)` weights cost three times their forward pass.

    Raises:
        UserError: `probe.target_modules` names a layer that the model does not have.
    """
    count = count_matrices(model)
    base = base_causal_lm(model)
    active = _active_experts(base.config.get_text_config())
    found = [target(base, name) for name in adapted_layers(base, probe.target_modules)]
    adapters = sum(probe.rank * each.width * (active if each.experts else 1.0) for each in found)
    return tokens * (4.0 * count.weights + 12.0 * count.attention_width * seq_len + 6.0 * adapters)


def _attention_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", None) or 0
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return int(config.num_hidden_layers * heads * width)


def _active_experts(config: Any) -> float:
    """Share of a mixture's experts that one token meets; 1 for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((value for name in names if (value := getattr(config, name, None))), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return float(chosen) / float(total) if total and chosen else 1.0
