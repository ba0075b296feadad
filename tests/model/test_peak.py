"""Memory counted without doing the work: exact in depth, in proportion to what is held, and less where it is saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opmix_ray.config import ModelConfig, ProbeConfig
from opmix_ray.model import peak
from opmix_ray.model.architecture import architecture
from opmix_ray.model.load import load_model, set_recompute
from opmix_ray.model.loss import training_loss
from opmix_ray.model.peak import count_forward, count_step
from tests.model.tiny_models import CONFIGS, VOCAB, tokens

PASS: dict[str, Any] = {"sequences": 4, "seq_len": 32, "autocast": False}


def _model(name: str = "llama", layers: int = 7) -> Any:
    key = "n_layer" if name == "gpt2" else "num_hidden_layers"
    return architecture(ModelConfig(config={**CONFIGS[name], key: layers}), vocab_size=VOCAB, eos_token_id=0)


@pytest.mark.parametrize(("name", "probe"), [("llama", None), ("gpt2", None), ("llama", ProbeConfig(rank=3))])
@pytest.mark.seconds
def test_depth_is_drawn_on_from_two_depths(
    name: str, probe: ProbeConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = count_step(_model(name), **PASS, probe=probe)
    monkeypatch.setattr(peak, "_DEPTHS", (7, 8))
    counted = count_step(_model(name), **PASS, probe=probe)
    assert drawn.saved == counted.saved
    assert drawn.peak == pytest.approx(counted.peak, rel=0.01)


@pytest.mark.seconds
def test_what_autograd_keeps_is_what_is_counted() -> None:
    """The tensors that a real forward pass saves, weights left out, against the count of those that live on."""
    model = load_model(
        ModelConfig(config={**CONFIGS["llama"], "num_hidden_layers": 3}),
        vocab_size=VOCAB,
        eos_token_id=0,
        seed=0,
    ).train()
    weights = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros((4, 32), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    counted = count_step(_model(layers=3), **PASS).saved
    assert counted == pytest.approx(sum(kept.values()), rel=0.05)
    assert hidden.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.seconds
def test_experts_are_counted_in_float32_too(autocast: bool, capfd: pytest.CaptureFixture[str]) -> None:
    shape = CONFIGS["llama"] | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    model = architecture(ModelConfig(config=shape), vocab_size=VOCAB, eos_token_id=0)
    passes = PASS | {"autocast": autocast}
    dense, experts = count_step(_model(layers=2), **passes), count_step(model, **passes)
    assert experts.saved > dense.saved, "what every expert was given is kept"
    assert count_forward(model, **passes).peak > 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.seconds
def test_memory_grows_with_tokens_and_shrinks_without_gradients() -> None:
    model = _model()
    once, twice = count_step(model, **PASS), count_step(model, **(PASS | {"sequences": 8}))
    assert 1.9 < twice.saved / once.saved < 2.1
    assert count_forward(model, **PASS).peak < once.peak / 3
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert count_step(model, **PASS, accumulate=True).saved == once.saved + weights


@pytest.mark.seconds
def test_recomputing_keeps_a_layers_input_alone() -> None:
    model, inputs = _model(), 4 * 32 * 32 * 4
    few, more = (count_step(m, **PASS, recompute=True).saved for m in (_model(layers=5), _model(layers=6)))
    assert inputs <= more - few <= 1.5 * inputs
    kept, again = count_step(model, **PASS), count_step(model, **PASS, recompute=True)
    assert again.saved < kept.saved / 4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    found = []
    for recompute in (False, True):
        model = load_model(
            ModelConfig(config=CONFIGS[name]), vocab_size=VOCAB, eos_token_id=0, seed=0
        ).train()
        set_recompute(model, recompute)
        torch.manual_seed(0)
        ids, mask = (torch.from_numpy(array) for array in tokens())
        training_loss(model, ids, mask)[0].backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
