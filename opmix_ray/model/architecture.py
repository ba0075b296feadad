"""A configured model's architecture without its weights: every parameter is on the meta device and costs nothing.

For what is counted from shapes alone: operations, memory, layers that a probe can adapt.
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from opmix_ray.config import ModelConfig
from opmix_ray.model.load import DTYPES, load_model, no_causal_lm


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


def _described(config: ModelConfig) -> PretrainedConfig:
    options = {"gguf_file": config.gguf_file} if config.gguf_file else {}
    found = AutoConfig.from_pretrained(
        str(config.path), trust_remote_code=config.trust_remote_code, **options
    )
    assert isinstance(found, PretrainedConfig)
    return found
