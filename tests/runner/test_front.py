"""The front between sets: every point is the best for some weights, and none is better than another on all sets."""

from __future__ import annotations

import numpy as np

from opmix_ray.decision.rule import fit
from opmix_ray.mixture import Mixture
from opmix_ray.runner.search import front
from tests.decision.test_aimed import DOMAINS, question


def test_the_front_between_two_sets_trades_one_for_the_other() -> None:
    law = fit([], question())
    even = Mixture.uniform(DOMAINS)
    points = front(
        law, ["easy", "hard"], prior=even, kl=0.01, lower={"middle": 0.2}, upper={"hard": 0.6}, current=even
    )
    easy, hard = ([point.losses[name] for point in points] for name in ("easy", "hard"))
    assert len(points) > 4
    assert easy == sorted(easy)
    assert hard == sorted(hard, reverse=True)
    for point in points:
        assert point.mixture["middle"] >= 0.2 - 1e-6
        assert point.mixture["hard"] <= 0.6 + 1e-6
        at = Mixture(point.mixture).array(law.domains)[None]
        predicted = dict(zip(DOMAINS, law.predict(at)[0].tolist(), strict=True))
        assert abs(predicted["easy"] - point.losses["easy"]) < 1e-9
    shares = np.array([[point.mixture[name] for name in DOMAINS] for point in points])
    assert shares[0, 0] > shares[-1, 0] + 0.2


def test_the_front_between_many_sets_has_each_alone() -> None:
    law = fit([], question())
    even = Mixture.uniform(DOMAINS)
    points = front(law, list(DOMAINS), prior=even, kl=0.01, lower={}, upper={}, current=even)
    losses = np.array([[point.losses[name] for name in DOMAINS] for point in points])
    pool = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    assert (losses.min(axis=0) < law.predict(pool).min(axis=0) + 0.03).all()
    for row in losses:
        assert not ((losses < row - 1e-3).all(axis=1)).any()
