"""A candidate is scored on the devices asked for, in full batches across the sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opmix_ray.cluster.connect import missing_resources
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.runner.check_plan import check_plan
from opmix_ray.runner.validate import check_before
from opmix_ray.trials.trial import CandidateScorer
from tests.model.tiny_models import made_probes, tiny, tokens
from tests.support import TinyRun

SETS = {"a": tokens(7, 12, seed=1), "b": tokens(5, 12, seed=2)}
OBJECTIVE = {"a": 0.5, "b": 0.5}
W = np.array([0.3, 0.7])


@pytest.fixture(scope="module")
def probe_set() -> ProbeSet:
    model = tiny("llama")
    return ProbeSet.build(model, made_probes(model, 2), ["d0", "d1"])


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.seconds
def test_batches_across_sets_give_every_set_its_own_losses(probe_set: ProbeSet, chunks: int) -> None:
    alone = Interpolator(probe_set)
    alone.set(W)
    exact = alone.losses(SETS, 4)
    found = CandidateScorer(probe_set, SETS, OBJECTIVE, batch_size=4, chunks=chunks, autocast=False).score(W)
    for name, loss in exact.items():
        np.testing.assert_allclose(found.losses[name].nats, loss.nats, rtol=1e-5)
        np.testing.assert_array_equal(found.losses[name].tokens, loss.tokens)
    assert found.done
    assert found.tokens == 12 * 12
    assert found.objective == pytest.approx((exact["a"].mean + exact["b"].mean) / 2, rel=1e-5)


@pytest.mark.seconds
def test_a_scorer_stays_on_the_cpu_where_a_gpu_is_but_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine seems to have a GPU; a scorer that took it would fail here."""
    model = tiny("llama")
    probe_set = ProbeSet.build(model, made_probes(model, 2), ["d0", "d1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scorer = CandidateScorer(probe_set, {"x": tokens()}, {"x": 1.0}, autocast=False, device="cpu")
    assert scorer.score(np.array([0.5, 0.5])).done


@pytest.mark.parametrize("key", ["probe.gpus", "search.gpus"])
def test_several_gpus_must_be_whole_ones(tiny: TinyRun, key: str) -> None:
    assert check_plan(tiny.load(f"{key}=0.5")) == check_plan(tiny.load(f"{key}=2")) == []
    (error,) = check_plan(tiny.load(f"{key}=2.5"))
    assert str(error) == f"{key} = 2.5: is neither a part of a GPU nor some whole ones; set 2"


@pytest.mark.seconds
def test_a_model_that_cannot_be_spread_is_refused_before_anything_runs(tiny: TinyRun) -> None:
    assert check_before(tiny.load("search.gpus=2")) == []
    # Zamba uses one block of attention again and again between its own layers.
    tiny.tree["model"]["config"] = {
        "model_type": "zamba", "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 12,
        "num_attention_heads": 2, "num_key_value_heads": 2, "n_mamba_heads": 2, "attention_head_dim": 128,
    }  # fmt: skip
    assert check_before(tiny.load("search.gpus=1")) == []
    (error,) = check_before(tiny.load("search.gpus=4"))
    assert "cannot be spread over several GPUs: it shares model.layers." in str(error)
    assert str(error).endswith("set 1, or 0 for CPUs")


def test_a_cluster_without_gpus_is_said_to_do_on_cpus(tiny: TinyRun) -> None:
    have = {"CPU": 4.0, "GPU": 0.0}
    (error,) = missing_resources(tiny.load("search.gpus=1"), have, [have])
    assert "or set search.gpus to 0: evaluators then run on CPUs" in str(error)
