"""Strategies that learn from separate models: the property that defines each, on models that are really trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import search_sets
from opmix_ray.data.prepare import Prepared
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import load_base, save_base
from opmix_ray.model.loss import evaluate_sets
from opmix_ray.strategies.doremi import next_weights, train_dro
from opmix_ray.strategies.making import Making
from opmix_ray.strategies.mergemix import Merger, score_merges
from opmix_ray.strategies.proxies import train_proxy
from opmix_ray.strategies.swarm import sample_mixtures

Making = Callable[..., Making]


@pytest.fixture(scope="module")
def sets(prepared: Prepared) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return search_sets(prepared, 8, 6)


def test_a_swarm_samples_around_the_prior() -> None:
    prior = Mixture({"a": 0.7, "b": 0.2, "c": 0.1})
    near = np.array([m.array() for m in sample_mixtures(prior, 400, (50.0, 100.0), seed=1)])
    wide = np.array([m.array() for m in sample_mixtures(prior, 400, (0.1, 0.5), seed=1)])
    assert near.mean(axis=0) == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert wide.std(axis=0).mean() > 3 * near.std(axis=0).mean()
    assert sample_mixtures(prior, 3, (0.5, 5.0), 1) == sample_mixtures(prior, 3, (0.5, 5.0), 1)


def test_the_law_of_a_swarm_leads_to_the_best_mixture(making: Making) -> None:
    """Losses made from shares: `german` is worth more than the others."""
    search = making("swarm")
    mixtures = sample_mixtures(Mixture.uniform(search.domains), 24, (0.5, 5.0), seed=2)
    worth = {"code": 0.5, "german": 2.0, "mathematics": 0.5}
    rows = [
        search.row(f"{i:03d}", m.shares, {d: 1 + worth[d] * np.exp(-4 * m[d]) for d in search.domains})
        for i, m in enumerate(mixtures)
    ]
    decision = search.by_law(rows, "proportional", "proxy models")
    assert decision.kept == "proposal"
    assert max(decision.mixture, key=decision.mixture.__getitem__) == "german"
    assert decision.law["objective"]["spearman_cv"] > 0.8
    assert decision.details["cost"]["fit"]["seconds"] > 0


def test_too_few_finite_losses_keep_the_mixture(making: Making) -> None:
    search = making("swarm")
    shares = Mixture.uniform(search.domains).shares
    rows = [search.row(f"{i}", shares, dict.fromkeys(search.domains, float("nan"))) for i in range(5)]
    decision = search.by_law(rows, "proportional", "proxy models")
    assert decision.kept == "old"
    assert "0 of 5 proxy models" in decision.reason


def test_a_proxy_learns_its_mixture_and_is_smaller_where_asked(making: Making, sets: dict) -> None:
    search = making("swarm")
    settings = ProxyConfig(steps=25, model={"hidden_size": 16})
    one = train_proxy(
        search.proxy("a", Mixture({"german": 1.0}), settings, evaluate=True, keep=True), None, sets
    )
    other = train_proxy(search.proxy("b", Mixture({"code": 1.0}), settings, evaluate=True), None, sets)
    assert one.losses["german"] < other.losses["german"]
    assert other.losses["code"] < one.losses["code"]
    assert one.model is not None
    assert one.model.weights["model.embed_tokens.weight"].shape[1] == 16
    assert one.tokens == 25 * 4 * 32 + sum(ids.size for ids, _ in sets.values())
    assert one.flops > 0


def test_dro_raises_the_weight_of_domains_that_lag_behind_the_reference(making: Making, sets: dict) -> None:
    """A reference that has seen `german` alone is ahead there and nowhere else."""
    search = making("doremi")
    settings = ProxyConfig(steps=6, learning_rate_ratio=3.0)
    reference = train_proxy(
        replace(search.proxy("reference", Mixture({"german": 1.0}), settings, keep=True), steps=40),
        None,
        sets,
    ).model
    assert reference is not None
    task = search.proxy("proxy", Mixture.uniform(search.domains), settings)
    found = train_dro(task, None, sets, reference, 1.0).found["mixture"]
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=found.__getitem__) == "german"


def test_domain_weights_follow_the_paper() -> None:
    alpha = next_weights(np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), eta=1.0)
    grown = np.array([0.5, 0.3 * np.e, 0.2 * np.e**2])
    assert alpha == pytest.approx(0.999 * grown / grown.sum() + 0.001 / 3)
    assert next_weights(alpha, np.array([0.0, 0.0, 99.0]), eta=1.0)[0] == pytest.approx(0.001 / 3)


def test_merging_is_linear_and_hits_base_and_experts(making: Making, sets: dict, tmp_path: Path) -> None:
    search = making("mergemix")
    proxy = ProxyConfig(steps=5)
    experts = []
    for name in ("german", "code"):
        task = search.proxy(name, Mixture({name: 1.0}), proxy, keep=True)
        experts.append(train_proxy(task, search.base, sets).model)
    save_base(experts[0], tmp_path)
    experts[0] = load_base(tmp_path)
    before = {name: array.copy() for name, array in search.base.weights.items()}
    merger = Merger(search.base, experts)
    corners = {"base": [0.0, 0.0], "german": [1.0, 0.0], "code": [0.0, 1.0]}
    expected = {"base": search.base, "german": experts[0], "code": experts[1]}
    for name, weights in corners.items():
        merger.set(np.array(weights))
        for key, parameter in merger.model.named_parameters():
            assert np.allclose(parameter.detach().numpy(), expected[name].weights[key], atol=1e-6)
    merger.set(np.array([0.3, 0.7]))
    for key, parameter in merger.model.named_parameters():
        base = before[key]
        mixed = base + 0.3 * (experts[0].weights[key] - base) + 0.7 * (experts[1].weights[key] - base)
        assert np.allclose(parameter.detach().numpy(), mixed, atol=1e-6)
        assert (search.base.weights[key] == before[key]).all()


def test_merged_models_score_like_the_experts_they_are(making: Making, sets: dict) -> None:
    search = making("mergemix")
    task = search.proxy("german", Mixture({"german": 1.0}), ProxyConfig(steps=15), keep=True, evaluate=True)
    expert = train_proxy(task, search.base, sets)
    config = search.config
    scores = score_merges(
        [np.array([0.0]), np.array([1.0])],
        sets,
        16,
        32,
        config.model,
        config.probe,
        search.base,
        expert.model,
    )
    assert scores[1].losses == pytest.approx(expert.losses, abs=1e-4)
    assert scores[1].losses["german"] < scores[0].losses["german"]
    with torch.no_grad():
        fresh = evaluate_sets(Merger(search.base, []).model, sets, 16, autocast=False)
    assert scores[0].losses == pytest.approx({name: loss.mean for name, loss in fresh.items()}, abs=1e-5)
