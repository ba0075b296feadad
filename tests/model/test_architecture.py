"""A model without weights has the shapes, names and counts of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.config import ModelConfig
from opmix_ray.errors import UserError
from opmix_ray.model.architecture import architecture, count_matrices
from opmix_ray.model.load import model_spec, save_model
from tests.model.tiny_models import CONFIGS, SCALED_CONFIGS, VOCAB, tiny


@pytest.mark.parametrize("name", [*CONFIGS, *SCALED_CONFIGS])
def test_it_has_the_real_ones_parameters(name: str, tmp_path: Path) -> None:
    real = tiny(name)
    save_model(real, tmp_path)
    for config in (
        ModelConfig(config={**CONFIGS, **SCALED_CONFIGS}[name]),
        ModelConfig(path=str(tmp_path)),
    ):
        empty = architecture(config, vocab_size=VOCAB, eos_token_id=0)
        assert all(parameter.is_meta for parameter in empty.parameters())
        shapes = {n: (p.shape, p.dtype) for n, p in empty.named_parameters()}
        assert shapes == {n: (p.shape, p.dtype) for n, p in real.named_parameters()}
        assert count_matrices(empty) == count_matrices(real)
        assert model_spec(empty)["tied"] == model_spec(real)["tied"]


def test_seventy_billion_parameters_cost_no_memory() -> None:
    """Llama 3 70B's published sizes."""
    shape = {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    }  # fmt: skip
    empty = architecture(ModelConfig(config=shape), vocab_size=128256, eos_token_id=0)
    assert sum(parameter.numel() for parameter in empty.parameters()) == 70_553_706_496


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path = .*cannot be built") as found:
        architecture(ModelConfig(path=str(tmp_path)), vocab_size=VOCAB, eos_token_id=0)
    assert found.value.remedy
