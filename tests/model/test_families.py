"""Every family of causal language models: a probe's sum is PEFT's own merge, and two probes' sum is exact.

Families are found in the installed transformers. One that cannot be built small from its own defaults is skipped.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.loss import evaluate_sets
from opmix_ray.model.probe import Probe, attach, detach, extract, load_probe, lora_weights, save_probe
from opmix_ray.model.targets import adapted_layers, candidates, reached, target
from opmix_ray.runner.trial import tiny_config, try_probes

PROBE = ProbeConfig(rank=2, alpha=4)
# One of each way to be built: dense, fused matrices, experts, experts beside dense layers, state spaces, hybrids.
FEW = ("mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "mamba", "mamba2", "falcon_h1")
OTHERS = tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FEW)))
LARGEST = 3_000_000  # weights; what stays larger has parts for pictures or sound


def tiny_family(family: str) -> PreTrainedModel:
    """A model of a family with small sizes and random weights; skips what cannot be built so."""
    try:
        config = tiny_config(CONFIG_MAPPING[family]())
        if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
            config.is_decoder = True
        with torch.device("meta"):
            weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if weights > LARGEST:
            pytest.skip(f"{weights:,} weights")
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        model.config.use_cache = False
        evaluate_sets(model, {"x": held(model)}, 2, autocast=False)
    except pytest.skip.Exception:
        raise
    except Exception as error:
        pytest.skip(f"cannot be built small: {type(error).__name__}: {str(error)[:80]}")
    return model


def held(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Two sequences of which every token counts."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = np.random.default_rng(0).integers(1, rows, (2, 8))
    return ids, np.ones(ids.shape, dtype=bool)


# transformers 5 renames `mlp.shared_expert.` in what it reads; as a pattern that also meets `mlp.shared_experts`, so
# PEFT loses these layers of any adapter, its own too.
UNREAD = {"laguna"}


def random_probe(model: nn.Module, seed: int) -> Probe:
    """A probe whose factors are not zero."""
    adapted = attach(model, PROBE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, b in lora_weights(adapted).values():
        b.data = 0.1 * torch.randn(b.shape, generator=generator)
    probe = extract(adapted, name=f"p{seed}", data={"d": 1.0})
    detach(adapted)
    return probe


def change(probe: Probe, model: nn.Module, name: str) -> torch.Tensor:
    """What a probe adds to a weight, in float64, each expert by itself."""
    found = target(model, name)
    a, b = (torch.from_numpy(part).double() for part in probe.factors[name])
    count = max(1, found.experts)
    parts = [
        probe.scale * b[:, expert::count] @ a[expert * probe.rank : (expert + 1) * probe.rank]
        for expert in range(count)
    ]
    added = torch.stack([part.T if found.transposed else part for part in parts])
    return added if found.experts else added[0]


def check_family(model: PreTrainedModel, place: Path) -> None:
    names = adapted_layers(model, "all-linear")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probes = [random_probe(model, seed) for seed in (1, 2)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(probes[0].factors) == names
    added = Interpolator(ProbeSet.build(model, probes, ["d"]), device="cpu")

    added.set(np.array([0.3, 0.7]))
    for name in names:
        key = target(model, name).parameter
        exact = (
            before[key].double() + 0.3 * change(probes[0], model, name) + 0.7 * change(probes[1], model, name)
        )
        torch.testing.assert_close(added.model.get_parameter(key).double(), exact, rtol=1e-6, atol=1e-6)

    added.set(np.array([1.0, 0.0]))
    save_probe(probes[0], place)
    again = load_probe(place)
    assert all(np.array_equal(again.factors[n][i], probes[0].factors[n][i]) for n in names for i in (0, 1))
    if model.config.model_type in UNREAD:
        return
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(place))
    sets = {"x": held(model)}
    felt = evaluate_sets(theirs, sets, 2, autocast=False)["x"].nats
    merged = theirs.merge_and_unload()
    for key, tensor in merged.named_parameters():
        torch.testing.assert_close(added.model.get_parameter(key), tensor, rtol=1e-5, atol=1e-5)
    ours = added.losses(sets, 2)["x"].nats
    np.testing.assert_allclose(ours, evaluate_sets(merged, sets, 2, autocast=False)["x"].nats, rtol=1e-5)
    np.testing.assert_allclose(ours, felt, rtol=1e-4)  # every adapted weight is one that the model feels


@pytest.mark.parametrize("family", FEW)
@pytest.mark.seconds
def test_a_familys_probes_add_up(family: str, tmp_path: Path) -> None:
    check_family(tiny_family(family), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_every_other_familys_probes_add_up_or_are_refused_in_one_line(family: str, tmp_path: Path) -> None:
    model = tiny_family(family)
    refused = None
    try:
        try_probes(model, PROBE, autocast=False)
    except UserError as error:
        refused = str(error)
    if refused is None:
        check_family(model, tmp_path)
    else:
        assert refused.startswith("model")
        assert "\n" not in refused


@pytest.mark.parametrize(("family", "least"), [("mixtral", 0.85), ("gpt_oss", 0.85), ("olmoe", 0.85)])
@pytest.mark.seconds
def test_experts_are_reached(family: str, least: float) -> None:
    config = CONFIG_MAPPING[family]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert reached(model, adapted_layers(model, "all-linear")) > least


def test_what_a_lora_would_not_be_felt_in_is_left_out_and_why() -> None:
    model = tiny_family("mamba")
    names = adapted_layers(model, "all-linear")
    assert {name.rpartition(".")[2] for name in names} == {"in_proj"}
    why = {name.rpartition(".")[2]: reason for name, reason in candidates(model).items()}
    assert "reads its weight itself" in why["out_proj"]
    with pytest.raises(
        UserError, match=r"probe.target_modules = .*out_proj: .*reads its weight itself.*leave it out"
    ):
        adapted_layers(model, ["out_proj"])


def test_a_model_whose_weights_cannot_be_felt_is_refused_before_anything_is_trained() -> None:
    model = tiny_family("llama")

    class Elsewhere(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = Elsewhere
    assert not any("up_proj" in name for name in adapted_layers(model, "all-linear"))
    with pytest.raises(UserError, match="Elsewhere computes more than a product"):
        adapted_layers(model, ["up_proj"])
