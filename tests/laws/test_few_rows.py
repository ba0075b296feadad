"""With few rows, `auto` is a mean of the simplest laws; with more, cross-validation decides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.laws.combined import stack_weights
from opmix_ray.laws.fitted import make_folds

DOMAINS = list("abcdefg")
NAMES = ["x", "y", "z"]


def sweep(rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixtures, metrics with noise and metrics without; noise in units of a metric's spread."""
    rng = np.random.default_rng(seed)
    shares = 2.0 ** -rng.integers(
        0, 6, (rows, 7)
    )  # halved again and again, as published sweeps of few domains are
    shares /= shares.sum(axis=1, keepdims=True)
    true = 1.5 + (shares @ rng.dirichlet(np.full(7, 0.4), 3).T + 0.02) ** -0.3
    return shares, true + noise * true.std(axis=0) * rng.standard_normal(true.shape), true


def fit(shares: np.ndarray, metrics: np.ndarray, law: str) -> FittedLaw:
    names = NAMES[: metrics.shape[1]]
    return fit_law(shares, metrics, domains=DOMAINS, metric_names=names, law=law)


@pytest.mark.seconds
def test_fourteen_rows_of_seven_domains_rank_as_well_as_the_simplest_law() -> None:
    lost = []
    for seed in range(3):
        shares, metrics, true = sweep(200, 0.4, seed)
        rank = [
            spearmanr(
                fit(shares[:14], metrics[:14], law).objective(shares[14:]), true[14:].mean(axis=1)
            ).statistic
            for law in ("ridge", "auto")
        ]
        lost.append(rank[0] - rank[1])
    assert np.mean(lost) < 0.02
    assert max(lost) < 0.1


@pytest.mark.seconds
def test_a_power_law_wants_three_rows_for_each_parameter() -> None:
    shares, metrics, _ = sweep(30, 0.05, 0)
    assert "power" not in fit(shares[:26], metrics[:26, :1], "auto").details["rmse_cv"]
    assert "power" in fit(shares[:27], metrics[:27, :1], "auto").details["rmse_cv"]


@pytest.mark.parametrize(("rows", "least"), [(8, 0.25), (400, 0.0)])
def test_few_rows_say_little_about_laws(rows: int, least: float) -> None:
    rng = np.random.default_rng(0)
    measured = rng.standard_normal(rows)
    good, poor = (measured + error * rng.standard_normal(rows) for error in (0.3, 0.6))
    assert stack_weights(np.column_stack([good, poor]), measured, rows)[1] >= least
    assert (stack_weights(np.column_stack([good, poor]), measured, rows)[1] < 0.25) == (rows == 400)


def test_runs_of_one_mixture_are_held_out_together() -> None:
    shares, _, _ = sweep(4, 0.0, 0)
    often = np.tile(shares, (3, 1))  # rows 0, 4 and 8 are one mixture with three seeds
    assert sorted(part.tolist() for part in make_folds(often, 0)) == [[n, n + 4, n + 8] for n in range(4)]
    noise = np.random.default_rng(0).standard_normal((4, 1))  # what differs between mixtures is chance
    told = fit(often, np.tile(noise, (3, 1)), "ridge").quality["objective"]["spearman_cv"]
    assert told is not None
    assert told < 0.5
