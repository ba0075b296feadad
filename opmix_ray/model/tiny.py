"""A configuration of the same kind as another with a few thousand weights, to try what would take long on the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PretrainedConfig

# Keys of transformers' configurations that say how large a model is, and a small value that goes with the others.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "n_inner", "shared_intermediate_size"], 48),
    **dict.fromkeys(
        ["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 24
    ),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"], 48),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "n_kv_heads"], 2),
    **dict.fromkeys(["head_dim"], 8),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "v_head_dim"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 4),
    **dict.fromkeys(["state_size", "ssm_state_size", "mamba_d_state", "time_step_rank"], 8),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], 96),
    **dict.fromkeys(["n_group", "topk_group"], 1),
}
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
# After so many layers one of another kind comes.
_PERIODS = ("attn_layer_period", "expert_layer_period", "full_attention_interval", "sliding_window_pattern")
_KINDS = 4  # more different values in a list than that are no kinds of layers
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration with small sizes, in each of its parts."""
    small = copy.deepcopy(config)
    for part in _parts(small):
        _shrink(part)
    return small


def _inner(config: PretrainedConfig) -> int:
    """Width inside a state space layer of Mamba's kind."""
    expand = next((e for name in ("expand", "mamba_expand") if (e := getattr(config, name, None))), 2)
    return int(expand * config.hidden_size)


# Sizes that follow from others.
_TOGETHER: dict[str, Callable[[Any], int]] = {
    "rotary_dim": lambda config: 4,
    "mamba_d_ssm": _inner,
    "mamba_d_head": lambda config: 8,
    "mamba_headdim": lambda config: 8,
    "mamba_head_dim": lambda config: 8,
    "mamba_n_heads": lambda config: _inner(config) // 8,
    "n_mamba_heads": lambda config: _inner(config) // 8,
    "mamba_num_heads": lambda config: _inner(config) // 8,
    "attention_hidden_size": lambda config: 2 * config.hidden_size,
    "attention_head_dim": lambda config: 2 * config.hidden_size // config.num_attention_heads,
    "qk_rope_head_dim": lambda config: _rotated(config),
}


def _rotated(config: PretrainedConfig) -> int:
    """Latent attention: what is rotated is a part of each head, and `head_dim` another name for it."""
    rotated = int(config.qk_rope_head_dim)
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = rotated
    if getattr(config, "qk_head_dim", None) is not None:
        config.qk_head_dim = rotated + config.qk_nope_head_dim
    return rotated


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _shrink(config: PretrainedConfig) -> None:
    known = {*vars(config), *config.attribute_map}
    if config.model_type == "mamba2":
        config.num_heads, config.head_dim = 8, 8
    for name in _DEPTHS:
        deep = getattr(config, name, None) if name in known else None
        if isinstance(deep, int) and not isinstance(deep, bool) and deep > 2:
            _cut(config, name, deep)
    for name, value in _SIZES.items():
        there = getattr(config, name, None) if name in known else None
        if isinstance(there, int) and not isinstance(there, bool) and there > value:
            setattr(config, name, value)
    for name, value in _TOGETHER.items():
        if name in known and getattr(config, name, None) is not None:
            setattr(config, name, value(config))
    for name in _IDS:
        there = getattr(config, name, None)
        if isinstance(there, int) and there >= _SIZES["vocab_size"]:
            setattr(config, name, None if name == "pad_token_id" else 0)


def _cut(config: PretrainedConfig, name: str, deep: int) -> None:
    """The first layers of a model, as many as show each kind of layer that it has."""
    dense = getattr(config, "first_k_dense_replace", None)
    if isinstance(dense, int) and dense > 1:
        config.first_k_dense_replace = 1
    lists = {
        key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == deep
    }
    least = [2]
    for value in lists.values():
        if all(isinstance(each, str | int | bool) for each in value):
            least += [value.index(kind) + 1 for kind in set(value) if len(set(value)) <= _KINDS]
    for period in _PERIODS:
        every = getattr(config, period, None)
        if isinstance(every, int) and not isinstance(every, bool):
            least.append(every)
    kept = min(deep, max(least))
    setattr(config, name, kept)
    for key, value in lists.items():
        setattr(config, key, value[:kept])
