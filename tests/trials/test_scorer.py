"""One candidate after the other in one process: every set gets its own losses."""

from __future__ import annotations

import numpy as np
import pytest

from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.trials.trial import CandidateScorer
from tests.model.tiny_models import made_probes, tiny, tokens

SETS = {"a": tokens(7, 12, seed=1), "b": tokens(5, 12, seed=2)}
OBJECTIVE = {"a": 0.5, "b": 0.5}
W = np.array([0.3, 0.7])


@pytest.fixture(scope="module")
def probe_set() -> ProbeSet:
    model = tiny("llama")
    return ProbeSet.build(model, made_probes(model, 2), ["d0", "d1"])


@pytest.mark.parametrize("chunks", [1, 3])
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
