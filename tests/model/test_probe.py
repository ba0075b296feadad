"""Probes go on and come off without a trace, and travel as PEFT directories."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.model.loss import training_loss
from opmix_ray.model.probe import (
    Probe,
    adapted_layers,
    attach,
    detach,
    extract,
    load_probe,
    lora_config,
    save_probe,
)
from tests.model.tiny_models import CONFIGS, PROBE, bits, made_probes, tiny, tokens


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens()[0])).logits


def trained(model: nn.Module, steps: int, config: ProbeConfig = PROBE) -> PeftModel:
    """A probe after a few real optimiser steps."""
    peft_model = attach(model, config, seed=3)
    ids, mask = (torch.from_numpy(array) for array in tokens())
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        nats, count, _ = training_loss(peft_model, ids, mask)
        (nats / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return peft_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.seconds
def test_detaching_restores_every_bit_and_flag(name: str, dtype: str) -> None:
    model = tiny(name, dtype)
    frozen = next(iter(dict(model.named_parameters())))
    model.get_parameter(frozen).requires_grad_(False)
    before, names = bits(model), [n for n, _ in model.named_modules()]
    state = torch.get_rng_state()
    peft_model = attach(model, PROBE, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    learning = [n for n, p in peft_model.named_parameters() if p.requires_grad]
    assert learning
    assert all(".lora_A." in n or ".lora_B." in n for n in learning)
    assert all(peft_model.get_parameter(n).dtype == torch.float32 for n in learning)
    peft_model = detach(peft_model)
    peft_model = trained(peft_model, steps=3)
    again = detach(peft_model)
    assert again is model
    assert bits(again) == before
    assert [n for n, _ in again.named_modules()] == names
    assert [n for n, p in again.named_parameters() if not p.requires_grad] == [frozen]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_probe_changes_nothing_and_a_trained_one_does(name: str) -> None:
    model = tiny(name)
    before = logits(model)
    peft_model = attach(model, PROBE, seed=0)
    assert torch.equal(logits(peft_model), before)
    detach(peft_model)
    peft_model = trained(model, steps=3)
    assert not torch.allclose(logits(peft_model), before, atol=1e-3)


def test_the_seed_alone_decides_how_a_probe_starts() -> None:
    def start(seed: int, noise: int) -> Probe:
        torch.manual_seed(noise)
        return extract(attach(tiny("llama"), PROBE, seed=seed), name="p", data={})

    one, same, other = start(1, 0), start(1, 99), start(2, 0)
    for layer, (a, b) in one.factors.items():
        np.testing.assert_array_equal(a, same.factors[layer][0])
        assert (a != other.factors[layer][0]).any()
        assert np.abs(a).max() <= a.shape[1] ** -0.5
        assert a.std() == pytest.approx((3 * a.shape[1]) ** -0.5, rel=0.25)  # a uniform one
        assert not b.any()
    starts = [a.tobytes() for a, _ in one.factors.values()]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_linear_is_every_matrix_but_embedding_and_head(name: str) -> None:
    model = tiny(name)
    layers = adapted_layers(model, "all-linear")
    matrices = [n.removesuffix(".weight") for n, p in model.named_parameters() if p.ndim == 2]
    outside = {"lm_head", "model.embed_tokens", "transformer.wte", "transformer.wpe"}
    assert layers == [n for n in matrices if n not in outside]
    assert set(extract(attach(model, PROBE, seed=0), name="p", data={}).factors) == set(layers)


def test_layers_by_name() -> None:
    config = ProbeConfig(rank=2, target_modules=["q_proj", "layers.1.mlp.up_proj"])
    model = tiny("llama")
    probe = extract(attach(model, config, seed=0), name="p", data={})
    assert set(probe.factors) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


def test_layers_that_are_not_there_or_cannot_be_adapted_are_refused() -> None:
    with pytest.raises(UserError, match=r"probe.target_modules = c_attn: matches no linear layer.*q_proj"):
        adapted_layers(tiny("llama"), ["q_proj", "c_attn"])
    with pytest.raises(UserError, match="matches no linear layer"):
        adapted_layers(tiny("llama"), ["embed_tokens"])
    with pytest.raises(UserError, match="lm_head: the head shares its weights"):
        adapted_layers(tiny("qwen2"), ["lm_head"])
    assert adapted_layers(tiny("llama"), ["lm_head"]) == ["lm_head"]


def test_the_configuration_is_plain_lora() -> None:
    config = lora_config(ProbeConfig(rank=4, alpha=6), tiny("gpt2"))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 6, 0.0, "none")
    assert not config.use_dora
    assert not config.use_rslora
    assert config.fan_in_fan_out
    assert not lora_config(PROBE, tiny("llama")).fan_in_fan_out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.seconds
def test_peft_loads_what_we_save(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny(name, dtype)
    peft_model = trained(model, steps=3)
    expected = logits(peft_model)
    probe = extract(
        peft_model, name="p", data={"d": 1.0}, tokens=9, seconds=2.5, flops=1e9, losses=[3.0, 2.0]
    )
    detach(peft_model)
    save_probe(probe, tmp_path / "p", base_model_name="some/model")
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "p"))
    assert torch.equal(logits(theirs), expected)
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"
    ours = load_probe(tmp_path / "p")
    for layer, (a, b) in probe.factors.items():
        np.testing.assert_array_equal(ours.factors[layer][0], a)
        np.testing.assert_array_equal(ours.factors[layer][1], b)
    assert (ours.name, ours.data, ours.scale, ours.alpha, ours.rank) == ("p", {"d": 1.0}, 2.5, 7.5, 3)
    assert (ours.tokens, ours.seconds, ours.flops, ours.losses) == (9, 2.5, 1e9, [3.0, 2.0])
    assert (ours.target_modules, ours.fan_in_fan_out) == (probe.target_modules, probe.fan_in_fan_out)


@pytest.mark.parametrize("name", CONFIGS)
def test_we_load_what_peft_saves(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    peft_model = get_peft_model(copy.deepcopy(model), config)
    peft_model.save_pretrained(str(tmp_path / "code"))
    probe = load_probe(tmp_path / "code")
    assert (probe.name, probe.scale, probe.rank, probe.data) == ("code", 1.5, 4, {})
    merged = peft_model.merge_and_unload()
    for layer, (a, b) in probe.factors.items():
        delta = probe.scale * torch.from_numpy(b) @ torch.from_numpy(a)
        moved = model.get_submodule(layer).weight + (delta.T if probe.fan_in_fan_out else delta)
        torch.testing.assert_close(merged.get_submodule(layer).weight, moved, rtol=1e-5, atol=1e-6)
    save_probe(probe, tmp_path / "again")
    again = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "again"))
    assert torch.allclose(logits(again), logits(merged), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_adapters_whose_sum_is_not_exact_are_refused(options: dict, key: str, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], **options)
    get_peft_model(tiny("llama"), config).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=f"adapter_config.json: {key} = .*not supported") as caught:
        load_probe(tmp_path)
    assert "\n" not in str(caught.value)


def test_kinds_that_are_not_known_yet_are_refused(tmp_path: Path) -> None:
    save_probe(made_probes(tiny("llama"), 1)[0], tmp_path)
    file = tmp_path / "adapter_config.json"
    for change, key in [({"use_newlora": True}, "use_newlora"), ({"peft_type": "LOHA"}, "peft_type")]:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(UserError, match=key):
            load_probe(tmp_path)


def test_broken_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config.json: no such file"):
        load_probe(tmp_path / "none")
    save_probe(made_probes(tiny("llama"), 1)[0], tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    for change, problem in [
        ({f"{layer}.lora_A.weight": torch.zeros(2, 32)}, "not a pair of rank 3"),
        ({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, "not a factor"),
        ({f"{layer}.lora_embedding_A.weight": torch.zeros(2, 2)}, "not a factor"),
    ]:
        save_file(tensors | change, weights)
        with pytest.raises(UserError, match=problem):
            load_probe(tmp_path)
    weights.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"adapter_model.safetensors: cannot be read"):
        load_probe(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors: no such file"):
        load_probe(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json: cannot be read"):
        load_probe(tmp_path)
