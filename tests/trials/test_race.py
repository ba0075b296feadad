"""A candidate is left early only where paired sequences show that it is worse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opmix_ray.model.loss import SetLoss
from opmix_ray.trials.race import Rival, lead

TARGETS = np.full(40, 127)


def made(seed: int, shift: float, seen: int, noise: float = 2.0) -> tuple[dict[str, SetLoss], Rival]:
    """Two candidates on sequences that differ a lot among themselves, and little between the candidates."""
    rng = np.random.default_rng(seed)
    losses, nats = {}, {}
    for name in ("a", "b"):
        level = rng.normal(600, 80, len(TARGETS))
        nats[name] = level.tolist()
        other = level + shift * TARGETS + rng.normal(0, noise, len(TARGETS))
        losses[name] = SetLoss(other[:seen], TARGETS[:seen])
    return losses, Rival(nats, {name: TARGETS.tolist() for name in nats})


def test_a_much_worse_candidate_is_behind_after_few_sequences() -> None:
    losses, rival = made(0, 0.1, 6)
    assert 0.05 < lead(losses, rival, {"a": 0.5, "b": 0.5}, 0.999) < 0.1


def test_a_better_candidate_never_is() -> None:
    losses, rival = made(1, -0.02, 40)
    assert lead(losses, rival, {"a": 0.5, "b": 0.5}, 0.999) < 0


def test_equal_candidates_are_told_apart_as_seldom_as_was_asked_for() -> None:
    wrong = 0
    for seed in range(400):
        losses, rival = made(seed, 0.0, 8)
        wrong += lead(losses, rival, {"a": 0.5, "b": 0.5}, 0.95) > 0
    assert 6 <= wrong <= 34  # 20 expected; binomial, 0.998


def test_sets_without_weight_do_not_count() -> None:
    losses, rival = made(2, 0.1, 6)
    losses["b"] = SetLoss(losses["b"].nats * math.nan, losses["b"].tokens)
    assert lead(losses, rival, {"a": 1.0, "b": 0.0}, 0.99) > 0


@pytest.mark.parametrize("seen", [0, 1])
def test_too_few_sequences_decide_nothing(seen: int) -> None:
    losses, rival = made(3, 1.0, seen)
    assert lead(losses, rival, {"a": 0.5, "b": 0.5}, 0.9) == -math.inf
