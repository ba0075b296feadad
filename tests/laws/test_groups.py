"""Many metrics are fitted as groups that move alike."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.laws.combined import MANY, MOST, Groups
from opmix_ray.laws.fit import check_table

DOMAINS = ["a", "b", "c"]
COUNT = MANY + 8
NAMES = [f"m{i}" for i in range(COUNT)]
NOISE = np.where(np.arange(COUNT) % 2, 0.005, 0.05)  # every second metric is ten times as noisy


def truth(ratios: np.ndarray) -> np.ndarray:
    """Losses that all come from two curves, (n, 3) -> (n, COUNT)."""
    curves = (ratios[:, :2] + 0.05) ** -0.3
    share = np.linspace(0.1, 0.9, COUNT)
    return 1 + curves[:, :1] * share + curves[:, 1:] * (1 - share)


def sweep(rows: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ratios = rng.dirichlet(np.ones(3), rows)
    return ratios, truth(ratios) + NOISE * rng.standard_normal((rows, COUNT))


def fit(metrics: np.ndarray, ratios: np.ndarray) -> FittedLaw:
    return fit_law(ratios, metrics, domains=DOMAINS, metric_names=NAMES)


@functools.cache
def plain() -> FittedLaw:
    ratios, metrics = sweep()
    return fit(metrics, ratios)


def error(law: FittedLaw) -> np.ndarray:
    """Root mean square error of every metric on new mixtures, noise not counted."""
    new, _ = sweep(200, seed=1)
    return np.sqrt(((law.predict(new) - truth(new)) ** 2).mean(axis=0))


@pytest.mark.seconds
def test_noisy_metrics_borrow_from_the_others() -> None:
    law = plain()
    assert len(law.details["groups"]) <= MOST < COUNT
    found = error(law)
    assert found[::2].mean() < 0.5 * NOISE[0]
    assert found.max() < NOISE[0]


def test_metrics_that_move_alike_are_a_group() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), 15)  # rows for three groups
    kinds = np.repeat([0, 1, 2], COUNT // 3)
    metrics = 2 - ratios[:, kinds] * rng.uniform(0.5, 2, COUNT) + 0.01 * rng.standard_normal((15, COUNT))
    groups = Groups.of(check_table(ratios, metrics, DOMAINS, NAMES), np.full(COUNT, 1 / COUNT))
    found = {frozenset(names) for names in groups.named(NAMES)}
    assert found == {frozenset(np.array(NAMES)[kinds == kind]) for kind in range(3)}


def test_the_groups_sum_to_the_objective_whatever_its_weights() -> None:
    ratios, metrics = sweep(60)
    metrics[:, 3] = 1.5
    weights = np.arange(COUNT) % 3 / (np.arange(COUNT) % 3).sum()  # a third of the metrics count for nothing
    groups = Groups.of(check_table(ratios, metrics, DOMAINS, NAMES), weights)
    objective, _ = groups.objective(weights, groups.table.metrics, np.zeros(groups.table.metrics.shape))
    np.testing.assert_allclose(objective, groups.filled @ weights, rtol=1e-9)
    blends, _ = groups.held_out(groups.table.metrics, np.zeros(groups.table.metrics.shape), [np.arange(3)])
    np.testing.assert_allclose(blends[:3] @ weights, objective[:3], rtol=1e-9)


def test_a_metric_out_of_fold_has_not_seen_its_row() -> None:
    ratios, metrics = sweep(60)
    groups = Groups.of(check_table(ratios, metrics, DOMAINS, NAMES), np.full(COUNT, 1 / COUNT))
    other = replace(groups, filled=groups.filled + np.where(np.arange(60) < 6, 1.0, 0.0)[:, None])
    means, stds = groups.table.metrics, np.zeros(groups.table.metrics.shape)
    folds = [np.arange(6), np.arange(6, 60)]
    first, second = (found.held_out(means, stds, folds)[0] for found in (groups, other))
    np.testing.assert_array_equal(first[:6], second[:6])
    assert np.abs(first[6:] - second[6:]).max() > 0.1


@pytest.mark.seconds
def test_missing_and_broken_values_bend_nothing() -> None:
    ratios, metrics = sweep()
    metrics[3, 4] = np.nan
    metrics[8, 6] += 5
    law = fit(metrics, ratios)
    assert law.quality[NAMES[4]]["rows"] == 29
    assert law.quality["objective"]["rows"] == 29
    assert error(law).max() < 2 * NOISE[0]


@pytest.mark.seconds
def test_a_constant_metric_among_many_is_predicted_as_such() -> None:
    ratios, metrics = sweep()
    metrics[:, 2] = 1.5
    law = fit(metrics, ratios)
    new, _ = sweep(5, seed=1)
    np.testing.assert_allclose(law.predict(new)[:, 2], 1.5)
    np.testing.assert_allclose(law.metric_gradient(new, 2), 0.0)


@pytest.mark.seconds
def test_blends_travel_as_json_with_what_they_share_once() -> None:
    law = plain()
    text = json.dumps(law.to_dict())
    again = FittedLaw.from_dict(json.loads(text))
    new, _ = sweep(9, seed=1)
    np.testing.assert_allclose(again.predict(new), law.predict(new), rtol=1e-9)
    np.testing.assert_allclose(again.objective_std(new), law.objective_std(new), rtol=1e-9)
    assert text.count('"rows": [[') <= len(law.details["groups"]) + 1


@pytest.mark.seconds
def test_the_gradient_of_a_blend_is_that_of_its_prediction() -> None:
    law = plain()
    at, _ = sweep(4, seed=1)
    for d in range(3):
        step = np.zeros(3)
        step[d] = 1e-6
        rise = (law.predict(at + step) - law.predict(at - step))[:, 5] / 2e-6
        np.testing.assert_allclose(law.metric_gradient(at, 5)[:, d], rise, rtol=2e-3, atol=2e-4)


@pytest.mark.seconds
def test_a_redrawn_law_keeps_its_groups_and_moves() -> None:
    law = plain()
    new, _ = sweep(30, seed=1)
    first = law.redrawn(np.random.default_rng(0))
    np.testing.assert_array_equal(first.objective(new), law.redrawn(np.random.default_rng(0)).objective(new))
    moved = np.abs(first.objective(new) - law.objective(new)).max()
    assert 0 < moved < np.ptp(truth(new).mean(axis=1))


def test_the_objective_is_the_mean_of_the_blends() -> None:
    law = plain()
    assert law.direct is None
    new, _ = sweep(9, seed=1)
    np.testing.assert_allclose(law.objective(new), law.predict(new).mean(axis=1), rtol=1e-12)
    slopes = np.mean([law.metric_gradient(new, m) for m in range(COUNT)], axis=0)
    np.testing.assert_allclose(law.gradient(new), slopes, rtol=1e-9)
