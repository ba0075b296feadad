"""A probe that stops and goes on elsewhere is the probe that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.decision.task import load_weights, probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import BaseModel, snapshot
from opmix_ray.model.probe import Probe
from opmix_ray.train.probe_run import Paused, ProbeRun, ProbeTask, load_paused, save_paused
from tests.support import TinyRun

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}  # it has dropout


@pytest.fixture(params=["llama", "gpt2"])
def task(request: pytest.FixtureRequest, tiny: TinyRun) -> tuple[ProbeTask, BaseModel]:
    if request.param == "gpt2":
        tiny.tree["model"]["config"] = GPT2
    config: RunConfig = tiny.load()
    prepared: Prepared = prepare(config)
    old = Mixture.uniform(list(prepared.domains))
    base = snapshot(load_weights(config, prepared, None))
    return probe_task(config, prepared, "code", old, "decision-0"), base


def bits(probe: Probe) -> dict[str, Any]:
    return {layer: (a.tobytes(), b.tobytes()) for layer, (a, b) in probe.factors.items()}


def test_training_in_parts_is_training_in_one_go_bit_for_bit(
    task: tuple[ProbeTask, BaseModel], tmp_path: Path
) -> None:
    whole = ProbeRun(*task)
    whole.advance(6)
    part = ProbeRun(*task)
    part.advance(1)
    sent: Paused = cloudpickle.loads(cloudpickle.dumps(part.paused()))
    part = ProbeRun(*task, sent)
    part.advance(4)
    save_paused(part.paused(), tmp_path)
    part = ProbeRun(*task, load_paused(tmp_path))
    part.advance(6)
    expected, found = whole.paused(), part.paused()
    assert found.steps == 6
    assert bits(found.probe) == bits(expected.probe)
    assert found.probe.losses == expected.probe.losses
    assert (found.probe.tokens, found.probe.flops) == (expected.probe.tokens, expected.probe.flops)
    for layer, moments in expected.moments.items():
        assert all(map(np.array_equal, found.moments[layer], moments))
        assert all(np.abs(values).max() > 0 for values in moments)


def test_what_was_lost_on_the_way_shows(task: tuple[ProbeTask, BaseModel]) -> None:
    """The comparison above can fail: a probe that forgets its moments ends elsewhere."""
    whole, part = ProbeRun(*task), ProbeRun(*task)
    whole.advance(4)
    part.advance(2)
    paused = part.paused()
    fresh = {layer: tuple(np.zeros_like(v) for v in values) for layer, values in paused.moments.items()}
    part = ProbeRun(*task, Paused(paused.probe, fresh))
    part.advance(4)
    assert bits(part.probe()) != bits(whole.probe())
