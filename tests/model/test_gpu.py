"""On a GPU: the same losses, gradients and probes as on the CPU. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opmix_ray.config import ProbeConfig
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.loss import training_loss
from opmix_ray.model.probe import attach, extract
from tests.model.tiny_models import CONFIGS, made_probes, tiny, tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WEIGHTS = (np.array([0.0, 0.0, 0.0]), np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interpolated_losses_are_those_of_the_cpu(name: str, dtype: str) -> None:
    model = tiny(name, dtype)
    probe_set = ProbeSet.build(model, made_probes(model, 3), ["d0", "d1", "d2"])
    sets = {"a": tokens(5), "b": tokens(7, seed=1)}
    gpu, cpu = Interpolator(probe_set, device="cuda"), Interpolator(probe_set, device="cpu")
    for w in WEIGHTS:
        gpu.set(w)
        cpu.set(w)
        found, wanted = gpu.losses(sets, 4), cpu.losses(sets, 4)
        for key in sets:
            np.testing.assert_allclose(
                found[key].nats, wanted[key].nats, rtol=1e-4 if dtype == "float32" else 2e-2
            )


@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients_are_those_of_the_cpu(name: str) -> None:
    model = tiny(name)
    probe_set = ProbeSet.build(model, made_probes(model, 3), ["d0", "d1", "d2"])
    sets = {"a": tokens(5)}
    gpu, cpu = Interpolator(probe_set, device="cuda"), Interpolator(probe_set, device="cpu")
    for w in WEIGHTS[:2]:
        gpu.set(w)
        cpu.set(w)
        np.testing.assert_allclose(
            gpu.gradients(sets, 4)["a"][1], cpu.gradients(sets, 4)["a"][1], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_probe_learns_the_same_as_on_the_cpu(name: str) -> None:
    ids, mask = (torch.from_numpy(part) for part in tokens(8, seed=3))
    factors = []
    for device in ("cpu", "cuda"):
        adapted = attach(tiny(name).to(device), ProbeConfig(rank=3, alpha=7.5), seed=1)  # type: ignore[arg-type]
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for _ in range(5):
            nats, count, _ = training_loss(adapted, ids.to(device), mask.to(device))
            (nats / count).backward()
            optimizer.step()
            optimizer.zero_grad()
        factors.append(extract(adapted, name="p", data={"d": 1.0}).factors)
    for layer, (a, b) in factors[0].items():
        np.testing.assert_allclose(factors[1][layer][0], a, atol=1e-5)
        np.testing.assert_allclose(factors[1][layer][1], b, atol=1e-5)
