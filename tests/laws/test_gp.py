"""The Gaussian process: gradient, closed forms and tails against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from opmix_ray.laws import fit_law
from opmix_ray.laws.gaussian_process import GaussianProcess
from opmix_ray.numerics import gp


def problem(rows: int = 25, inputs: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets, parameters and spreads of noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs))
    y = np.sin(x[:, 0]) + 0.3 * x[:, 1] + 0.1 * rng.standard_normal(rows)
    theta = np.concatenate([rng.uniform(-2, 0, inputs), [-0.3, 0.2, 0.1, -1.5]])
    return x, y, theta, rng.uniform(0.5, 2, rows)


def test_the_gradient_of_the_evidence() -> None:
    x, y, theta, spread = problem()
    _, gradient = gp.evidence(theta, x, y, spread)
    for k in range(len(theta)):
        step = np.zeros_like(theta)
        step[k] = 1e-6
        rise = gp.evidence(theta + step, x, y, spread)[0] - gp.evidence(theta - step, x, y, spread)[0]
        assert gradient[k] == pytest.approx(rise / 2e-6, rel=1e-5, abs=1e-6)


def test_posterior_and_evidence_are_those_of_scikit_learn() -> None:
    x, y, theta, spread = problem()
    relevance, (line, signal, bend, sigma) = np.exp(theta[:4]), np.exp(theta[4:])
    mine = ConstantKernel(line**2) * DotProduct(0.0, sigma_0_bounds="fixed")
    mine += ConstantKernel(signal**2) * Matern(1 / bend, nu=2.5) + ConstantKernel(gp.MEAN)
    noise = sigma**2 * spread + gp.JITTER
    other = GaussianProcessRegressor(mine, alpha=noise, optimizer=None).fit(x * relevance, y)
    solved = gp.solve(theta, x, y, spread)
    new = np.random.default_rng(1).standard_normal((9, 4))
    mean, std = other.predict(new * relevance, return_std=True)
    cross = gp.kernel(new, x, theta).value + gp.MEAN
    np.testing.assert_allclose(cross @ solved.alpha, mean, atol=1e-8)
    known = np.einsum("nm,mk,nk->n", cross, solved.inverse, cross)
    np.testing.assert_allclose(gp.variance(new, theta) - known, std**2, atol=1e-7)
    away = theta - gp.start_theta(4)
    prior = gp.RELEVANCE_PRECISION * away[:4] @ away[:4] + gp.PRECISION * away[4:] @ away[4:]
    likelihood = other.log_marginal_likelihood_value_ + 0.5 * len(y) * np.log(2 * np.pi)
    assert gp.evidence(theta, x, y, spread)[0] == pytest.approx(-likelihood + 0.5 * prior, rel=1e-9)


def test_rows_left_out_in_closed_form_are_rows_left_out() -> None:
    x, y, theta, spread = problem()
    held = np.array([3, 4, 17])
    kept = np.setdiff1d(np.arange(len(y)), held)
    mean, std = gp.leave_out(gp.solve(theta, x, y, spread), y, held)
    solved = gp.solve(theta, x[kept], y[kept], spread[kept])
    cross = gp.kernel(x[held], x[kept], theta).value + gp.MEAN
    np.testing.assert_allclose(mean, cross @ solved.alpha, rtol=1e-6)
    variance = gp.variance(x[held], theta) - np.einsum("nm,mk,nk->n", cross, solved.inverse, cross)
    noise = np.exp(2 * theta[gp.NOISE]) * spread[held] + gp.JITTER
    np.testing.assert_allclose(std**2, variance + noise, rtol=1e-6)


@pytest.mark.seconds
def test_a_failed_run_loses_its_weight() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), 40)
    clean = 2 + (ratios[:, :1] + 0.05) ** -0.3
    spoilt = clean.copy()
    spoilt[7] += 2.0
    names = dict(domains=["a", "b", "c"], metric_names=["loss"])
    law = fit_law(ratios, spoilt, law="gaussian-process", **names)  # type: ignore[arg-type]
    response = law.responses[0]
    assert isinstance(response, GaussianProcess)
    assert response.noise[7] > 20 * np.median(response.noise)
    others = np.arange(40) != 7
    np.testing.assert_allclose(law.predict(ratios[others]), clean[others], atol=0.05)


@pytest.mark.seconds
def test_domains_that_do_not_matter_get_long_lengths() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(5), 60)
    metrics = 2 + (ratios[:, :1] + 0.02) ** -0.3 + 0.003 * rng.standard_normal((60, 1))
    law = fit_law(ratios, metrics, domains=list("abcde"), metric_names=["loss"], law="gaussian-process")
    response = law.responses[0]
    assert isinstance(response, GaussianProcess)
    assert response.theta[0] > response.theta[1:5].max() + 1


@pytest.mark.seconds
def test_parameters_kept_above_many_rows_and_searched_again_below(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), 40)
    metrics = 2 + (ratios[:, :1] + 0.02) ** -0.3 + 0.02 * rng.standard_normal((40, 1))
    names = dict(domains=["a", "b", "c"], metric_names=["loss"], law="gaussian-process")
    searched = fit_law(ratios, metrics, **names).held_out  # type: ignore[arg-type]
    monkeypatch.setattr("opmix_ray.laws.gaussian_process.REFIT_BELOW", 10)
    kept = fit_law(ratios, metrics, **names).held_out  # type: ignore[arg-type]
    assert searched is not None
    assert kept is not None
    assert not np.array_equal(searched, kept)
    np.testing.assert_allclose(searched, kept, atol=0.1)
    assert np.corrcoef(kept[:, 0], metrics[:, 0])[0, 1] > 0.95
