"""theta(w) is exact, in place, and never touches what it was made from."""

from __future__ import annotations

import copy
import hashlib
import pickle
import sys

import numpy as np
import pytest
import ray
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.loss import evaluate_sets
from opmix_ray.model.probe import Probe, save_probe
from tests.model.tiny_models import CONFIGS, bits, made_probes, tiny, tokens

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this file


CASES = [(name, count) for name in ("llama", "gpt2") for count in range(1, 9)] + [("qwen2", 2), ("olmo2", 3)]


def domains(count: int) -> list[str]:
    return [f"d{index}" for index in range(count)]


def exact_weights(model: PreTrainedModel, probes: list[Probe], w: np.ndarray) -> dict[str, torch.Tensor]:
    """theta(w) in float64, straight from the formula."""
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for probe, weight in zip(probes, w, strict=True):
        for layer, (a, b) in probe.factors.items():
            delta = torch.from_numpy(weight * probe.scale * (b.astype(np.float64) @ a.astype(np.float64)))
            name = f"{layer}.weight"
            weights[name] = weights[name] + (delta.T if probe.fan_in_fan_out else delta)
    return weights


def merged_by_peft(model: PreTrainedModel, probes: list[Probe], w: np.ndarray, tmp_path) -> PreTrainedModel:
    """theta(w) made by PEFT in float32: each adapter loaded from disk, scaled and merged, one at a time."""
    model = copy.deepcopy(model).float()
    for index, (probe, weight) in enumerate(zip(probes, w, strict=True)):
        directory = tmp_path / f"{index}"
        save_probe(probe, directory)
        peft_model = PeftModel.from_pretrained(model, str(directory))
        for module in peft_model.modules():
            if hasattr(module, "lora_A") and "default" in module.scaling:
                module.scaling["default"] *= weight
        model = peft_model.merge_and_unload()
    return model


@pytest.mark.parametrize(("name", "count"), CASES)
@pytest.mark.seconds
def test_float32_equals_peft_merging_one_adapter_at_a_time(name: str, count: int, tmp_path) -> None:
    model = tiny(name)
    probes = made_probes(model, count)
    w = np.random.default_rng(count).dirichlet(np.ones(count))
    ours = Interpolator(ProbeSet.build(model, probes, domains(count)))
    ours.set(w)
    theirs = dict(merged_by_peft(model, probes, w, tmp_path).named_parameters())
    exact = exact_weights(model, probes, w)
    for key, parameter in ours.model.named_parameters():
        size = exact[key].abs().max()
        assert (parameter - theirs[key]).abs().max() <= 1e-6 * size, key
        assert (parameter - exact[key]).abs().max() <= 1e-6 * size, key
    moved = [k for k, p in ours.model.named_parameters() if not torch.equal(p, model.get_parameter(k))]
    assert sorted(moved) == sorted(f"{layer}.weight" for layer in probes[0].factors)


@pytest.mark.parametrize(("name", "count"), CASES)
@pytest.mark.seconds
def test_bfloat16_is_rounded_once(name: str, count: int, tmp_path) -> None:
    model = tiny(name, "bfloat16")
    probes = made_probes(model, count)
    w = np.random.default_rng(count).dirichlet(np.ones(count))
    ours = Interpolator(ProbeSet.build(model, probes, domains(count)))
    ours.set(w)
    theirs = dict(merged_by_peft(model, probes, w, tmp_path).named_parameters())  # float32 throughout
    exact = exact_weights(model, probes, w)
    for key, parameter in ours.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        value = parameter.double()
        half_step = value.abs() * 2.0**-8  # at most half the distance between neighbours
        assert ((value - exact[key]).abs() <= half_step * 1.001 + 1e-7).all(), key
        assert (parameter == theirs[key].bfloat16()).float().mean() > 0.99, key  # but for ties in float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.seconds
def test_every_set_starts_from_the_base_and_zero_is_the_base(name: str, dtype: str) -> None:
    model = tiny(name, dtype)
    ours = Interpolator(ProbeSet.build(model, made_probes(model, 3), domains(3)))
    assert bits(ours.model) == bits(model)
    ours.set(np.array([0.2, 0.3, 0.5]))
    once = bits(ours.model)
    assert once != bits(model)
    for w in np.random.default_rng(0).normal(size=(20, 3)):
        ours.set(w)
    ours.set(np.array([0.2, 0.3, 0.5]))
    assert bits(ours.model) == once
    ours.set(np.zeros(3))
    assert bits(ours.model) == bits(model)


@pytest.mark.seconds
def test_an_unused_component_does_not_matter_even_when_it_has_diverged() -> None:
    model = tiny("llama")
    probes = made_probes(model, 3)
    for a, _ in probes[1].factors.values():
        a[:] = np.nan
    broken = Interpolator(ProbeSet.build(model, probes, domains(3)))
    whole = Interpolator(ProbeSet.build(model, [probes[0], probes[2]], domains(3)))
    broken.set(np.array([0.4, 0.0, 0.6]))
    whole.set(np.array([0.4, 0.6]))
    assert bits(broken.model) == bits(whole.model)
    broken.set(np.array([0.4, 0.1, 0.5]))
    assert np.isnan(broken.losses({"x": tokens()}, 4)["x"].mean)


@pytest.mark.seconds
def test_losses_are_those_of_the_merged_model(tmp_path) -> None:
    model = tiny("gpt2")
    probes = made_probes(model, 2)
    sets = {"a": tokens(seed=1), "b": tokens(count=3, seed=2)}
    ours = Interpolator(ProbeSet.build(model, probes, domains(2)))
    ours.set(np.array([0.25, 0.75]))
    merged = merged_by_peft(model, probes, np.array([0.25, 0.75]), tmp_path)
    expected = evaluate_sets(merged, sets, 2, autocast=False)
    for name, loss in ours.losses(sets, 2).items():
        np.testing.assert_allclose(loss.nats, expected[name].nats, rtol=1e-5)


def test_probes_of_different_ranks_and_layers_are_added_up() -> None:
    model = tiny("llama")
    wide = made_probes(model, 1, ProbeConfig(rank=5, alpha=10))[0]
    narrow = made_probes(model, 2, ProbeConfig(rank=2, alpha=6, target_modules=["q_proj", "up_proj"]))[1]
    ours = Interpolator(ProbeSet.build(model, [wide, narrow], domains(2)))
    ours.set(np.array([0.5, 0.7]))
    exact = exact_weights(model, [wide, narrow], np.array([0.5, 0.7]))
    for key, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.double(), exact[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.seconds
def test_gradients_agree_with_finite_differences(name: str) -> None:
    model = tiny(name)
    ours = Interpolator(ProbeSet.build(model, made_probes(model, 3), domains(3)))
    sets = {"a": tokens(seed=1), "b": tokens(seed=2)}
    w, step = np.array([0.3, 0.1, 0.6]), 0.01
    ours.set(w)
    found = ours.gradients(sets, batch_size=2)
    before = bits(ours.model)
    for key, loss in ours.losses(sets, 2).items():
        np.testing.assert_allclose(found[key][0].nats, loss.nats, rtol=1e-5)

    def means(component: int, shift: float) -> np.ndarray:
        ours.set(w + shift * np.eye(3)[component])
        return np.array([loss.mean for loss in ours.losses(sets, 5).values()])

    for component in range(3):  # five-point rule: what it leaves out is of the fourth order in the step
        near = means(component, step) - means(component, -step)
        far = means(component, 2 * step) - means(component, -2 * step)
        numeric = (8 * near - far) / (12 * step)
        exact = [gradient[component] for _, gradient in found.values()]
        np.testing.assert_allclose(exact, numeric, rtol=5e-3, atol=5e-5)
    ours.set(w)
    assert bits(ours.model) == before
    assert all(not p.requires_grad and p.grad is None for p in ours.model.parameters())


def test_data_matrix_follows_the_domains() -> None:
    model = tiny("llama")
    probes = made_probes(model, 2)
    probes[0].data = {"d1": 0.9, "d0": 0.1}
    probe_set = ProbeSet.build(model, probes, ["d0", "d1", "d2"])
    np.testing.assert_array_equal(probe_set.data, [[0.1, 0.9, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(UserError, match="d1"):
        ProbeSet.build(model, probes, ["d0"])


def test_probes_that_do_not_fit_are_refused() -> None:
    probes = made_probes(tiny("llama"), 2)
    with pytest.raises(UserError, match="no such linear layer"):
        ProbeSet.build(tiny("gpt2"), probes, domains(2))
    layer = "model.layers.0.mlp.down_proj"
    a, b = probes[1].factors[layer]
    probes[1].factors[layer] = (a[:, :-1], b)
    with pytest.raises(UserError, match=r"down_proj: probe `p1` is of another shape"):
        ProbeSet.build(tiny("llama"), probes, domains(2))
    with pytest.raises(UserError, match="different names"):
        ProbeSet.build(tiny("llama"), [probes[0], probes[0]], domains(2))
    with pytest.raises(UserError, match="at least one probe"):
        ProbeSet.build(tiny("llama"), [], domains(2))
    with pytest.raises(UserError, match=r"float16"):
        ProbeSet.build(tiny("llama").half(), [probes[0]], domains(2))


@pytest.mark.parametrize("w", [np.zeros(2), np.zeros((3, 1)), np.array([0.1, np.nan, 0.9])])
def test_weights_of_another_shape_or_not_finite_are_a_bug(w: np.ndarray) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="3 finite numbers"):
        Interpolator(ProbeSet.build(model, made_probes(model, 3), domains(3))).set(w)


def digest(probe_set: ProbeSet) -> str:
    arrays = [*probe_set.weights.values(), *probe_set.A.values(), *probe_set.B.values()]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@ray.remote(num_cpus=0.5)
class Scorer:
    """An interpolator in a process of its own, on what it finds in the object store."""

    def __init__(self, reference: list[ray.ObjectRef]) -> None:
        torch.set_num_threads(1)
        self.probe_set = ray.get(reference[0])
        self.ours = Interpolator(self.probe_set)

    def shares_memory(self) -> tuple[bool, bool]:
        """No array can be written; every parameter but the adapted ones lies on the array's memory."""
        arrays = [*self.probe_set.weights.values(), *self.probe_set.A.values(), *self.probe_set.B.values()]
        adapted = {f"{layer}.weight" for layer in self.probe_set.A}
        shared = [
            parameter.data_ptr() == self.probe_set.weights[name].__array_interface__["data"][0]
            for name, parameter in self.ours.model.named_parameters()
            if name not in adapted
        ]
        return not any(array.flags.writeable for array in arrays), all(shared)

    def search(self, candidates: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> list[float]:
        means = []
        for w in candidates:
            self.ours.set(w)
            means.append(self.ours.losses({"x": (ids, mask)}, 2)["x"].mean)
            self.ours.gradients({"x": (ids, mask)}, 2)
        return means

    def digest(self) -> str:
        return digest(self.probe_set)


@pytest.mark.parametrize(("name", "dtype", "readers"), [("qwen2", "float32", 2), ("gpt2", "bfloat16", 1)])
def test_stored_bytes_are_the_same_after_a_search(
    name: str, dtype: str, readers: int, ray_session: None
) -> None:
    model = tiny(name, dtype)
    before_model = bits(model)
    probe_set = ProbeSet.build(model, made_probes(model, 3), domains(3))
    before = digest(probe_set)
    reference = ray.put(probe_set)
    scorers = [Scorer.remote([reference]) for _ in range(readers)]
    assert ray.get([scorer.shares_memory.remote() for scorer in scorers]) == [(True, True)] * readers
    candidates, (ids, mask) = np.random.default_rng(0).dirichlet(np.ones(3), 25), tokens()
    found = ray.get([scorer.search.remote(candidates, ids, mask) for scorer in scorers])
    assert ray.get([scorer.digest.remote() for scorer in scorers]) == [before] * readers
    assert digest(ray.get(reference)) == before
    here = Interpolator(ray.get(reference))
    for index, w in enumerate(candidates):
        here.set(w)
        mean = here.losses({"x": (ids, mask)}, 2)["x"].mean
        assert [means[index] for means in found] == pytest.approx([mean] * readers, rel=1e-6)
    assert len(set(found[0])) == len(candidates)
    assert digest(ray.get(reference)) == before
    assert bits(model) == before_model
    for scorer in scorers:
        ray.kill(scorer)


def test_a_probe_set_is_plain_data_that_pickles() -> None:
    model = tiny("qwen2", "bfloat16")
    probe_set = ProbeSet.build(model, made_probes(model, 2), domains(2))
    again = pickle.loads(pickle.dumps(probe_set))
    assert digest(again) == digest(probe_set)
    assert probe_set.nbytes == again.nbytes > sum(p.numel() * 2 for p in model.parameters())
    built = Interpolator(again).model
    assert built.lm_head.weight is built.model.embed_tokens.weight
    assert bits(built) == bits(model)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.seconds
def test_under_autocast_the_private_copy_is_in_bfloat16_and_losses_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("loss", "interpolate"):
        monkeypatch.setattr(f"opmix_ray.model.{module}.has_bfloat16", lambda device: True)
    model = tiny(name)
    probe_set = ProbeSet.build(model, made_probes(model, 3), domains(3))
    sets = {"x": tokens(6, 12)}
    quick, exact = Interpolator(probe_set, autocast=True), Interpolator(probe_set, autocast=False)
    for one in (quick, exact):
        one.set(np.array([0.5, 0.2, 0.3]))
    layer = next(iter(probe_set.A))
    assert quick.model.get_submodule(layer).weight.dtype == torch.bfloat16
    assert exact.model.get_submodule(layer).weight.dtype == torch.float32
    cast = evaluate_sets(exact.model, sets, 4, autocast=True)["x"]
    np.testing.assert_array_equal(quick.losses(sets, 4)["x"].nats, cast.nats)


def test_a_model_that_leaves_autocast_keeps_its_copy_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def without_autocast(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(self, x.float())

    monkeypatch.setattr(LlamaMLP, "forward", without_autocast)
    for module in ("loss", "interpolate"):
        monkeypatch.setattr(f"opmix_ray.model.{module}.has_bfloat16", lambda device: True)
    model = tiny("llama")
    probe_set = ProbeSet.build(model, made_probes(model, 2), domains(2))
    found = Interpolator(probe_set, autocast=True)
    found.set(np.array([0.5, 0.5]))
    assert found.model.get_submodule(next(iter(probe_set.A))).weight.dtype == torch.float32
    assert np.isfinite(found.losses({"x": tokens(2, 12)}, 2)["x"].nats).all()
