"""A model without weights has the shapes, names and counts of the real one; FLOPs by hand, by Torch and by us agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from opmix_ray.config import ModelConfig, ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.model.architecture import architecture, count_matrices, forward_flops, probe_flops, train_flops
from opmix_ray.model.load import model_spec, save_model
from opmix_ray.model.loss import training_loss
from opmix_ray.model.probe import attach
from tests.model.tiny_models import CONFIGS, SCALED_CONFIGS, VOCAB, tiny


@pytest.mark.parametrize("name", [*CONFIGS, *SCALED_CONFIGS])
@pytest.mark.seconds
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


ROWS, LENGTH = 3, 16


def counted(model: torch.nn.Module, backward: bool) -> int:
    """What torch counts; the scores of all pairs, as a plain attention makes them."""
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(input_ids=ids).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def test_llama_by_hand() -> None:
    attention = 2 * (32 * 32) + 2 * (32 * 16)  # q, o; k, v with half the heads
    weights = 2 * (attention + 3 * 32 * 48) + 32 * VOCAB
    scores = 2 * 2 * LENGTH * 32 * 2  # scores and their application, 32 wide, 2 layers
    assert forward_flops(tiny("llama"), 10, LENGTH) == 10 * (2 * weights + scores)
    assert train_flops(tiny("llama"), 10, LENGTH) == 30 * (2 * weights + scores)


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_training_as_torch_counts(name: str) -> None:
    model = tiny(name)
    tokens = ROWS * LENGTH
    assert counted(model, backward=False) == forward_flops(model, tokens, LENGTH)
    # The first layer's input needs gradients too, for the embedding: nothing is spared.
    assert counted(model, backward=True) == pytest.approx(train_flops(model, tokens, LENGTH), rel=0.01)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.seconds
def test_probe_as_torch_counts(name: str) -> None:
    config = ProbeConfig(rank=4)
    model = tiny(name)
    expected = probe_flops(model, config, ROWS * LENGTH, LENGTH)
    peft_model = attach(model, config, seed=0)
    # Torch spares the gradient of the first layer's input, which we count: 4 to 12 % of two layers.
    assert 0.85 <= counted(peft_model, backward=True) / expected <= 1.0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_counts_as_its_model(name: str) -> None:
    model = tiny(name)
    assert forward_flops(model.config, 7, LENGTH) == forward_flops(model, 7, LENGTH)


def test_an_adapter_does_not_change_the_models_own_count() -> None:
    model = tiny("gpt2")
    before = forward_flops(model, 7, LENGTH)
    assert forward_flops(attach(model, ProbeConfig(rank=4), seed=0), 7, LENGTH) == before


def test_a_big_model_is_counted_from_its_configuration_alone() -> None:
    config = AutoConfig.for_model("llama")  # 7B by default
    assert forward_flops(config, 1, 0) == pytest.approx(2 * 6.6e9, rel=0.01)


def test_only_active_experts_count() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCAB}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 8}
    one, two = (AutoConfig.for_model("mixtral", num_experts_per_tok=k, **shape) for k in (1, 2))
    expert = 2 * 3 * 32 * 48  # in both layers
    assert forward_flops(two, 1, 8) - forward_flops(one, 1, 8) == 2 * expert


def test_the_loss_costs_what_the_forward_pass_costs() -> None:
    model = tiny("qwen2")
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    mask = torch.ones_like(ids, dtype=torch.bool)
    training_loss(model, ids, mask)  # the head is looked at once
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        training_loss(model, ids, mask)
    last = 2 * ROWS * 32 * VOCAB  # the last position predicts nothing
    assert counter.get_total_flops() == forward_flops(model, ROWS * LENGTH, LENGTH) - last
