"""The bandit's and Aioli's arithmetic, step by step, on losses that are made up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from opmix_ray.config.strategy import AioliConfig, OdmConfig
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.online import (
    Bandit,
    Sweeps,
    exp3_policy,
    exploration,
    interactions,
    perturbed,
    update_rewards,
)
from opmix_ray.train.callback import Moment, TrainingCallback

UNIFORM = Mixture.uniform([*"abc"])


def play(
    callback: TrainingCallback, steps: int, losses: dict[str, float], held_out: Any = None
) -> list[Mixture]:
    """The mixture of every step; memory goes through JSON as it does in a checkpoint."""
    memory: dict[str, Any] = {}
    mixture, seen, found = UNIFORM, {}, []
    for done in range(steps):
        moment = Moment(done, steps, mixture, seen)
        if callback.measures(memory, moment):
            moment = Moment(done, steps, mixture, seen, held_out(done, found))
        mixture = callback.steer(memory, moment) or mixture
        memory = json.loads(json.dumps(memory))
        found.append(mixture)
        seen = losses
    return found


def test_the_bandit_moves_towards_the_domain_with_the_greatest_loss() -> None:
    found = play(Bandit(settings=OdmConfig(warmup_fraction=0.0)), 200, {"a": 1.0, "b": 2.0, "c": 6.0})
    assert found[0] == UNIFORM
    assert found[-1]["c"] > found[-1]["b"] > found[-1]["a"] > 0


def test_equal_losses_keep_the_bandit_uniform() -> None:
    assert play(Bandit(), 100, dict.fromkeys("abc", 3.0))[-1].distance(UNIFORM) < 1e-9


def test_exploration_falls_and_bounds_every_share_from_below() -> None:
    rates = [exploration(turn, 3) for turn in range(1, 200)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(np.sqrt(np.log(3) / (3 * 199)))
    policy = exp3_policy(np.array([0.0, 0.0, 1e6]), turn=50)
    assert policy.sum() == pytest.approx(1)
    assert policy.min() == pytest.approx(exploration(50, 3))


def test_rewards_are_weighted_by_importance() -> None:
    rewards = {"a": 1.0, "b": 1.0}
    update_rewards(rewards, {"a": 2.0}, {"a": 0.25, "b": 0.75}, smoothing=0.9)
    assert rewards == {"a": pytest.approx(0.9 + 0.1 * 8), "b": 1.0}


def test_the_sweep_is_undone_exactly() -> None:
    """Losses that fall by A p are told apart into A, up to shift and scale."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.1, 1.0, (4, 3))
    falls = truth @ perturbed(3, 0.75).T
    assert interactions(falls, 0.75) == pytest.approx(truth / truth.sum())
    assert interactions(falls - 5, 0.75).min() == pytest.approx(0, abs=1e-12)


def test_aioli_sweeps_then_leans_to_the_domain_that_helps_most() -> None:
    total = {"loss": 10.0}

    def held_out(done: int, mixtures: list[Mixture]) -> dict[str, float]:
        total["loss"] = 10.0 - sum(0.1 * mixture["b"] for mixture in mixtures)  # only b's data help
        return {"x": total["loss"]}

    callback = Sweeps(objective={"x": 1.0}, settings=AioliConfig(rounds=2, sweep_fraction=0.3, eta=2.0))
    found = play(callback, 40, {}, held_out)
    sweep = [max(mixture, key=mixture.__getitem__) for mixture in found[:6]]
    assert sweep == ["a", "a", "b", "b", "c", "c"]
    assert found[0]["a"] == pytest.approx(0.75)
    assert all(mixture == found[6] for mixture in found[6:20])
    assert found[6]["b"] > 0.5
    assert found[39]["b"] == pytest.approx(found[6]["b"])  # every round starts from the stage's first mixture


def test_a_stage_too_short_for_its_sweeps_is_left_alone() -> None:
    callback = Sweeps(objective={"x": 1.0}, settings=AioliConfig(rounds=4))
    assert play(callback, 8, {}) == [UNIFORM] * 8


def test_repetition_caps_hold_for_moved_mixtures() -> None:
    callback = TrainingCallback(caps={"a": 0.1, "b": 1.0, "c": 1.0})
    assert callback.allowed(Mixture({"a": 8, "b": 1, "c": 1})).shares == pytest.approx(
        {"a": 0.1, "b": 0.45, "c": 0.45}
    )
