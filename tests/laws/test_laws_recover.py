"""Each law finds what it was made for; stacks and extrapolations do what they say."""

from __future__ import annotations

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.laws import Extrapolation, FittedLaw, fit_law
from opmix_ray.laws.base import Constant
from opmix_ray.laws.combined import Stack, stack_weights
from opmix_ray.laws.curves import LogLinear
from opmix_ray.laws.fit import own_domain
from opmix_ray.laws.linear import Additive, Extrapolated
from opmix_ray.laws.power import Power
from opmix_ray.numerics.ridge import fit_ridge

DOMAINS = ["a", "b", "c", "d"]


def mixtures(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(4), rows)


def fit(law: str, ratios: np.ndarray, metrics: np.ndarray, **options: object) -> FittedLaw:
    names = [f"m{i}" for i in range(metrics.shape[1])]
    return fit_law(ratios, metrics, domains=DOMAINS, metric_names=names, law=law, **options)  # type: ignore[arg-type]


def test_the_log_linear_law_finds_its_parameters() -> None:
    slopes = np.array([-3.0, -0.5, 0.2, 0.0])
    ratios = mixtures(40)
    found = fit("log-linear", ratios, 1.5 + np.exp(ratios @ slopes)[:, None]).responses[0]
    assert isinstance(found, LogLinear)
    assert found.floor == pytest.approx(1.5, abs=0.05)
    np.testing.assert_allclose(found.slopes, slopes, atol=0.15)


@pytest.mark.seconds
def test_the_power_law_finds_its_parameters() -> None:
    worth = np.array([1.0, 0.2, 0.05, 0.01])
    ratios = mixtures(60)
    found = fit("power", ratios, 1.5 + (ratios @ worth)[:, None] ** -0.3).responses[0]
    assert isinstance(found, Power)
    assert found.beta == pytest.approx(0.3, abs=0.08)
    np.testing.assert_allclose(np.exp(found.worth - found.worth[0]), worth, rtol=0.25)


@pytest.mark.seconds
def test_the_power_law_extrapolates_to_a_domain_alone() -> None:
    worth = np.array([1.0, 0.2, 0.05, 0.01])
    ratios = 0.6 * mixtures(60) + 0.1
    law = fit("power", ratios, 1.5 + (ratios @ worth)[:, None] ** -0.3)
    np.testing.assert_allclose(law.predict(np.eye(4))[:2, 0], 1.5 + worth[:2] ** -0.3, rtol=0.05)


@pytest.mark.parametrize("law", ["log-linear", "power"])
@pytest.mark.seconds
def test_a_failed_run_does_not_bend_the_curve(law: str) -> None:
    ratios = mixtures(30)
    clean = 1.5 + np.exp(ratios @ np.array([-2.0, -0.5, 0.2, 0.0]))[:, None]
    spoilt = clean.copy()
    spoilt[3] += 3
    new = mixtures(50, seed=1)
    apart = np.abs(fit(law, ratios, spoilt).predict(new) - fit(law, ratios, clean).predict(new)).max()
    assert apart < 0.05


@pytest.mark.parametrize("law", ["log-linear", "power", "log-share", "linear"])
@pytest.mark.seconds
def test_standard_errors_cover_what_noise_does(law: str) -> None:
    ratios, new = mixtures(30), mixtures(20, seed=1)
    rng = np.random.default_rng(0)
    truth = {
        "log-linear": lambda p: 1.5 + np.exp(p @ np.array([-2.0, -0.5, 0.2, 0.0])),
        "power": lambda p: 1.5 + (p @ np.array([1.0, 0.2, 0.05, 0.01])) ** -0.3,
        "log-share": lambda p: 2 - 0.3 * np.log(p[:, 0] + 0.01),
        "linear": lambda p: 2 - p[:, 0],
    }[law]
    drawn = [
        fit(law, ratios, (truth(ratios) + 0.03 * rng.standard_normal(30))[:, None]).responses[0]
        for _ in range(12)
    ]
    spread = np.std([response.predict(new) for response in drawn], axis=0)
    said = np.mean([response.std(new) for response in drawn], axis=0)
    assert 0.5 < np.sqrt((said**2).mean() / (0.03**2 + (spread**2).mean())) < 2


def test_a_metric_knows_its_domain_by_name() -> None:
    assert own_domain("eval_code_loss", ["prose", "code"]) == 1
    assert (
        own_domain("metric/the_pile_arxiv_val_loss", ["train_the_pile_github", "train_the_pile_arxiv"]) == 1
    )
    assert own_domain("mmlu", ["prose", "code"]) is None


def test_leave_one_out_of_a_ridge_is_leaving_one_out() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.standard_normal((12, 3)), np.ones(12)
    values = features @ [1.0, -1.0, 0.5] + 0.1 * rng.standard_normal(12)
    tiny = np.array([1e-12])
    fitted = fit_ridge(features, values, weights, penalties=tiny)
    for row in range(12):
        kept = np.arange(12) != row
        again = fit_ridge(features[kept], values[kept], weights[kept], penalties=tiny)
        predicted = again.intercept + features[row] @ again.beta
        assert values[row] - predicted == pytest.approx(fitted.loo[row], abs=1e-6)


def test_the_stack_finds_the_better_law() -> None:
    rng = np.random.default_rng(0)
    measured = rng.standard_normal(200)
    good = measured + 0.1 * rng.standard_normal(200)
    fair = measured + 0.2 * rng.standard_normal(200)
    poor = rng.standard_normal(200)
    weights = stack_weights(np.column_stack([good, fair, poor]), measured, len(measured))
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == pytest.approx(0.8, abs=0.08)  # inverse variances: 100 to 25
    assert weights[2] == 0


def test_one_broken_row_does_not_decide_the_stack() -> None:
    rng = np.random.default_rng(0)
    measured = rng.standard_normal(100)
    good = measured + 0.1 * rng.standard_normal(100)
    poor = measured + 0.5 * rng.standard_normal(100)
    good[0] += 10
    assert stack_weights(np.column_stack([good, poor]), measured, len(measured))[0] > 0.8


def test_a_stack_is_its_parts() -> None:
    parts = [Constant(1.0), Constant(3.0)]
    stack = Stack(parts, [0.25, 0.75])
    np.testing.assert_allclose(stack.predict(mixtures(3)), 2.5)
    assert stack.convex
    np.testing.assert_allclose(stack.std(mixtures(3)), np.sqrt(0.25 * 1.5**2 + 0.75 * 0.5**2))


@pytest.mark.seconds
def test_auto_models_the_objective_where_metrics_err_against_each_other() -> None:
    rng = np.random.default_rng(0)
    ratios = mixtures(40)
    signal = 2 + (ratios[:, 0] + 0.05) ** -0.3
    apart = 2.0 * rng.standard_normal(40)  # cancels in the average
    metrics = np.column_stack([signal + apart, signal - apart]) + 0.01 * rng.standard_normal((40, 2))
    law = fit("auto", ratios, metrics)
    assert law.direct is not None
    new = mixtures(100, seed=1)
    wanted = 2 + (new[:, 0] + 0.05) ** -0.3
    summed = law.predict(new).mean(axis=1)
    assert np.corrcoef(law.objective(new), wanted)[0, 1] > 0.95
    assert np.corrcoef(law.objective(new), wanted)[0, 1] > np.corrcoef(summed, wanted)[0, 1]
    assert law.details["objective"]["weights"]["sum of metrics"] < 0.5
    again = law.reweighted(np.random.default_rng(0))
    assert again.direct is not None
    assert np.corrcoef(again.objective(new), wanted)[0, 1] > 0.9


@pytest.mark.seconds
def test_auto_keeps_the_sum_where_metrics_tell_more() -> None:
    ratios = mixtures(40)
    metrics = 2 + (ratios + 0.01) ** -0.4 + 0.05 * np.random.default_rng(1).standard_normal((40, 4))
    law = fit("auto", ratios, metrics)
    assert law.direct is None
    assert law.details["objective"]["weights"] == {"sum of metrics": 1.0}
    assert sum(law.details["weights"].values()) == pytest.approx(1)


def blurred(rows: int = 24) -> tuple[np.ndarray, np.ndarray]:
    ratios = mixtures(rows)
    return ratios, 2 - 0.2 * np.log(ratios + 0.3) @ np.eye(4) + 0.001 * np.random.default_rng(
        1
    ).standard_normal((rows, 4))


@pytest.mark.seconds
def test_an_extrapolation_changes_the_pseudo_count_and_nothing_at_its_anchor() -> None:
    ratios, metrics = blurred()
    anchor = (0.4, 0.3, 0.2, 0.1)
    plain = fit("own-share", ratios, metrics)
    read = fit("auto", ratios, metrics, extrapolate=Extrapolation(eps_ratio=0.01, anchor=anchor))
    assert read.name == "own-share"
    np.testing.assert_allclose(read.predict(np.array(anchor)), plain.predict(np.array(anchor)), rtol=1e-9)
    for before, after in zip(plain.responses, read.responses, strict=True):
        assert isinstance(before, Additive)
        assert isinstance(after, Extrapolated)
        np.testing.assert_array_equal(after.origin.predict(ratios), before.predict(ratios))
        assert after.eps == pytest.approx(0.01 * before.eps)
        np.testing.assert_array_equal(after.slopes, before.slopes)
    corner = np.array([[0.001, 0.333, 0.333, 0.333]])
    assert read.predict(corner)[0, 0] > plain.predict(corner)[0, 0] + 0.3
    assert read.quality == plain.quality


@pytest.mark.seconds
def test_an_extrapolation_with_steeper_slopes() -> None:
    ratios, metrics = blurred()
    plain = fit("log-share", ratios, metrics)
    steep = fit("log-share", ratios, metrics, extrapolate=Extrapolation(eps_ratio=1.0, slope_ratio=2.0))
    away = np.array([0.1, 0.3, 0.3, 0.3])
    for before, after in zip(plain.responses, steep.responses, strict=True):
        assert isinstance(before, Additive)
        assert isinstance(after, Additive)
        np.testing.assert_allclose(after.slopes, 2 * before.slopes)
    assert steep.reweighted(np.random.default_rng(0)).predict(away).shape == (1, 4)


@pytest.mark.seconds
def test_an_extrapolated_law_travels_and_is_refitted_as_such() -> None:
    ratios, metrics = blurred()
    read = fit("log-share", ratios, metrics, extrapolate=Extrapolation(eps=0.002))
    assert all(r.eps == 0.002 for r in read.responses if isinstance(r, Additive))
    again = FittedLaw.from_dict(read.to_dict())
    np.testing.assert_allclose(again.predict(ratios), read.predict(ratios))
    redrawn = read.reweighted(np.random.default_rng(0))
    assert all(r.eps == 0.002 for r in redrawn.responses if isinstance(r, Additive))


@pytest.mark.parametrize("law", ["log-linear", "power", "gaussian-process"])
@pytest.mark.seconds
def test_other_laws_cannot_be_extrapolated(law: str) -> None:
    with pytest.raises(UserError, match="use `own-share`"):
        fit(law, *blurred(10), extrapolate=Extrapolation())


@pytest.mark.parametrize(
    "wrong",
    [
        dict(eps_ratio=0.0),
        dict(eps=-1.0),
        dict(slope_ratio=float("inf")),
        dict(eps_ratio=None),
        dict(slope_trust=1.5),
        dict(transfer_trust=-0.1),
    ],
)
def test_extrapolations_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Extrapolation(**wrong)


def test_an_anchor_of_the_wrong_length() -> None:
    with pytest.raises(UserError, match="anchor has 2 shares"):
        fit("log-share", *blurred(), extrapolate=Extrapolation(anchor=(0.5, 0.5)))
