"""Decisions without the probes that failed for good."""

from __future__ import annotations

import numpy as np
import pytest

from opmix_ray.decision.old_part import probe_data
from opmix_ray.decision.probing import can_do_without, holding
from opmix_ray.mixture import Mixture
from opmix_ray.model.probe import Probe
from opmix_ray.trials.space import Components

OLD = Mixture({"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05})


def probe(name: str) -> Probe:
    data = probe_data(name, OLD, 0.9).shares
    return Probe(name, data, factors={}, scale=1.0, rank=1, alpha=1.0, target_modules=[])


def test_a_lost_domain_keeps_its_share_in_every_candidate_and_the_mixture_in_force_is_one() -> None:
    held = {"b": 0.3, "d": 0.05}
    probes = [holding(probe(name), held) for name in ("a", "c")]
    data = np.array([[each.data[name] for name in OLD] for each in probes])
    components = Components(("a", "c"), tuple(OLD), data)
    assert data.sum(axis=1) == pytest.approx(1)
    for weights in ([1.0, 0.0], [0.2, 0.8], [0.5, 0.5]):
        ratios = components.ratios(np.array(weights))
        assert ratios[[1, 3]] == pytest.approx([0.3, 0.05])
    found = components.ratios(components.weights_for(OLD))
    assert found == pytest.approx(list(OLD.shares.values()), abs=1e-6)


def test_there_must_be_two_probes_left_and_none_of_them_may_be_the_old_mixtures() -> None:
    names = list(OLD)
    assert can_do_without({}, ["a"], OLD)
    assert can_do_without({"b": "", "d": ""}, names, OLD)
    assert not can_do_without({"a": "", "b": "", "c": ""}, names, OLD)
    assert not can_do_without({"old": ""}, ["old", "a", "b"], OLD)
    assert not can_do_without({"a": ""}, ["a", "b", "c"], Mixture({"a": 1.0, "b": 0.0, "c": 0.0}))
