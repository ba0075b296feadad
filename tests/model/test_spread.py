"""A model over several devices: who holds what, and that nothing meets what is on another device.

GPUs are played by tensors without storage, which refuse to be computed with across devices as real ones do.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from opmix_ray.errors import UserError
from opmix_ray.model.accuracy import continuations, plain_generate
from opmix_ray.model.base import model_from, snapshot
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.load import set_recompute
from opmix_ray.model.loss import has_plain_head, training_loss
from opmix_ray.model.probe import attach
from opmix_ray.model.spread import Spread, blocks_of, check_spread, share_out, visible_devices
from tests.model.tiny_models import CONFIGS, PROBE, SCALED_CONFIGS, made_probes, tiny, tokens

KINDS = [*CONFIGS, *SCALED_CONFIGS]
GPUS = ["meta:0", "meta:1"]
W = np.array([0.2, 0.5])


def probe_set(kind: str, dtype: str = "float32") -> ProbeSet:
    model = tiny(kind, dtype)
    return ProbeSet.build(model, made_probes(model, 2), ["d0", "d1"])


def best(first: int, costs: list[int], count: int) -> int:
    """The least that the fullest device can have, by trying every way to cut."""
    found = []
    for cuts in itertools.combinations_with_replacement(range(len(costs) + 1), count - 1):
        edges = [0, *cuts, len(costs)]
        held = [sum(costs[a:b]) for a, b in itertools.pairwise(edges)]
        found.append(max([held[0] + first, *held[1:]]))
    return min(found)


@pytest.mark.parametrize("seed", range(40))
def test_the_fullest_device_has_as_little_as_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = [int(cost) for cost in rng.integers(1, 30, rng.integers(1, 9))]
    first, count = int(rng.integers(0, 60)), int(rng.integers(1, 5))
    places = share_out(first, costs, count)
    assert places == sorted(places)
    assert places[-1] < count
    held = [sum(c for c, p in zip(costs, places, strict=True) if p == device) for device in range(count)]
    assert max([held[0] + first, *held[1:]]) == best(first, costs, count)


def test_what_is_in_no_block_stays_on_the_first_device() -> None:
    model = tiny("llama")
    costs = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    spread = Spread.over(model, ["cuda:0", "cuda:1", "cuda:2"], costs)
    assert list(spread.places) == ["", "model.layers.0", "model.layers.1"]
    where = {name: spread.device_of(name).index for name in costs}
    assert {where[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")} == {
        0
    }
    for number in (0, 1):
        assert len({where[name] for name in costs if f"layers.{number}." in name}) == 1
    assert where["model.layers.0.mlp.up_proj.weight"] < where["model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.seconds
def test_passes_and_gradients_never_mix_devices(kind: str) -> None:
    arrays = probe_set(kind)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Interpolator(arrays, device=GPUS)
        model.set(W)
        assert {parameter.device for parameter in model.model.parameters()} == set(map(torch.device, GPUS))
        assert {buffer.device.type for buffer in model.model.buffers()} <= {"meta"}
        ids = torch.zeros((2, 8), dtype=torch.int64, device=model.device)
        with model._collecting(torch.zeros(2, dtype=torch.float64, device=model.device)):
            logits = model.model(input_ids=ids, use_cache=False).logits
            hidden = model.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            (logits.sum() + hidden.sum()).backward()
        assert logits.device == hidden.device == torch.device("meta:0")


@pytest.mark.seconds
def test_without_the_carrying_devices_would_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = probe_set("llama")
    with FakeTensorMode(allow_non_fake_inputs=True):
        monkeypatch.setattr(nn.Module, "register_forward_pre_hook", lambda *_, **__: None)
        model = Interpolator(arrays, device=GPUS)
        with pytest.raises(RuntimeError, match="meta:0"):
            model.model(input_ids=torch.zeros((2, 8), dtype=torch.int64, device="meta:0"), use_cache=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.seconds
def test_the_result_is_that_of_one_device(kind: str) -> None:
    arrays = probe_set(kind)
    sets = {"all": tokens(5)}
    alone, spread = Interpolator(arrays, device="cpu"), Interpolator(arrays, device=["cpu", "cpu"])
    for model in (alone, spread):
        model.set(W)
    assert has_plain_head(alone.model) == has_plain_head(spread.model)
    one, other = (model.gradients(sets, 2)["all"] for model in (alone, spread))
    assert np.array_equal(one[0].nats, other[0].nats)
    assert np.array_equal(one[1], other[1])
    assert np.array_equal(alone.losses(sets, 2)["all"].nats, spread.losses(sets, 2)["all"].nats)
    prompts = [np.array([3, 5, 7]), np.array([2, 4])]
    told = [
        continuations(partial(plain_generate, model.model), prompts, 6, [0], torch.device("cpu"))
        for model in (alone, spread)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*told, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.seconds
def test_a_probe_is_trained_as_on_one_device(recompute: bool) -> None:
    base = snapshot(tiny("llama"))
    ids, mask = (torch.from_numpy(part) for part in tokens(4))
    gradients = []
    for devices in ("cpu", ["cpu", "cpu"]):
        model = model_from(base, devices).train()
        set_recompute(model, recompute)
        adapted = attach(model, PROBE, seed=1)
        for _ in range(2):  # the first factor learns once the second is not 0
            training_loss(adapted, ids, mask)[0].backward()
            with torch.no_grad():
                for parameter in adapted.parameters():
                    if parameter.requires_grad:
                        parameter -= 0.01 * parameter.grad
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_and_the_cpu_together_give_what_the_cpu_gives() -> None:
    arrays = probe_set("llama")
    alone, spread = Interpolator(arrays, device="cpu"), Interpolator(arrays, device=["cuda", "cpu"])
    for model in (alone, spread):
        model.set(W)
    sets = {"all": tokens(5)}
    assert spread.losses(sets, 2)["all"].nats == pytest.approx(alone.losses(sets, 2)["all"].nats, rel=1e-5)


class Repeated(nn.Module):
    """A row of blocks, each with a longer row of its own."""

    def __init__(self, same: bool = False) -> None:
        super().__init__()
        made = [
            nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(8))}) for _ in range(3)
        ]
        self.layers = nn.ModuleList([made[0]] * 3 if same else made)


def test_rows_inside_blocks_are_not_taken_for_blocks() -> None:
    assert list(blocks_of(Repeated())) == ["layers.0", "layers.1", "layers.2"]


def test_models_that_cannot_be_spread_are_refused() -> None:
    shared = Repeated(same=True)
    costs = {name: 1 for name, _ in shared.named_parameters(remove_duplicate=False)}
    with pytest.raises(UserError, match=r"shares layers\.0\.experts\.0\.weight with layers"):
        Spread.over(shared, GPUS, costs)
    with pytest.raises(UserError, match="no row of blocks"):
        Spread.over(nn.Linear(2, 2), GPUS, {})
    assert Spread.over(nn.Linear(2, 2), "cpu", {}).devices == [torch.device("cpu")]


class Alternating(nn.Module):
    """Two rows of layers, used in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.one = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.other = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        for one, other in zip(self.one, self.other, strict=True):
            hidden = other(hidden + one(hidden))
        return hidden


@pytest.mark.seconds
def test_a_model_whose_blocks_are_not_in_a_row_is_found_out() -> None:
    with torch.device("meta"):
        alternating, plain = Alternating(), tiny("llama")
    with pytest.raises(UserError, match="mixes what is on them"):
        check_spread(alternating, 2)
    check_spread(plain, 2)


def test_without_gpus_the_cpu_is_used() -> None:
    assert visible_devices(0) == [torch.device("cpu")]
    if not torch.cuda.is_available():
        assert visible_devices(4) == [torch.device("cpu")]
