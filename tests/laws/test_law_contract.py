"""What every mixing law keeps to, whatever its form."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.laws import LAWS, FittedLaw, fit_law

DOMAINS = ["code", "prose", "maths", "forum"]
METRICS = ["code_loss", "chat_loss"]
OPTIONAL = {"trees": "lightgbm"}


def _names() -> Iterator[object]:
    for name in [*LAWS, "auto"]:
        package = OPTIONAL.get(name)
        if package is None:
            yield pytest.param(name)
            continue
        missing = importlib.util.find_spec(package) is None
        yield pytest.param(
            name, marks=[pytest.mark.slow, pytest.mark.skipif(missing, reason=f"needs {package}")]
        )


every_law = pytest.mark.parametrize("law", list(_names()))
every_smooth_law = pytest.mark.parametrize(
    "law",
    [p for p in _names() if p.values[0] != "trees"],  # type: ignore[attr-defined]
)


def truth(ratios: np.ndarray) -> np.ndarray:
    """Losses that fall with a metric's own domain and a little with a related one, (n, 4) -> (n, 2)."""
    code, prose, maths, forum = ratios.T
    return np.column_stack(
        [
            1.0 + 1.2 * np.exp(-2.5 * code - 0.8 * maths),
            1.5 + 1.5 * np.exp(-1.5 * forum - 1.0 * prose),
        ]
    )


def sweep(rows: int, seed: int = 0, noise: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ratios = rng.dirichlet(np.ones(len(DOMAINS)), rows)
    return ratios, truth(ratios) + noise * rng.standard_normal((rows, len(METRICS)))


def fit(law: str, ratios: np.ndarray, metrics: np.ndarray, **options: object) -> FittedLaw:
    names = METRICS if metrics.shape[1] == len(METRICS) else [f"m{i}" for i in range(metrics.shape[1])]
    domains = DOMAINS if ratios.shape[1] == len(DOMAINS) else [f"d{i}" for i in range(ratios.shape[1])]
    return fit_law(ratios, metrics, domains=domains, metric_names=names, law=law, **options)  # type: ignore[arg-type]


@functools.cache
def plain(law: str) -> FittedLaw:
    """The law fitted to 24 rows, the same one for several tests."""
    return fit(law, *sweep(24))


@every_law
@pytest.mark.seconds
def test_shapes_and_finite(law: str) -> None:
    fitted = plain(law)
    new, _ = sweep(7, seed=1)
    assert fitted.predict(new).shape == (7, 2)
    assert fitted.objective(new).shape == fitted.objective_std(new).shape == (7,)
    assert fitted.gradient(new).shape == fitted.metric_gradient(new, 1).shape == (7, 4)
    for values in (fitted.predict(new), fitted.objective(new), fitted.gradient(new)):
        assert np.isfinite(values).all()
    assert (fitted.objective_std(new) > 0).all()
    assert fitted.predict(new[0]).shape == (1, 2)


@every_law
@pytest.mark.seconds
def test_learns_a_smooth_surface(law: str) -> None:
    fitted = fit(law, *sweep(60))
    new, _ = sweep(200, seed=1)
    worst = min(np.corrcoef(fitted.predict(new)[:, m], truth(new)[:, m])[0, 1] for m in range(2))
    assert worst > 0.8
    assert np.corrcoef(fitted.objective(new), truth(new).mean(axis=1))[0, 1] > 0.8


@every_law
@pytest.mark.seconds
def test_the_same_seed_gives_the_same_law(law: str) -> None:
    assert json.dumps(plain(law).to_dict()) == json.dumps(fit(law, *sweep(24)).to_dict())


@every_law
@pytest.mark.seconds
def test_travels_as_json(law: str) -> None:
    fitted = plain(law)
    again = FittedLaw.from_dict(json.loads(json.dumps(fitted.to_dict())))
    new, _ = sweep(9, seed=1)
    np.testing.assert_allclose(again.predict(new), fitted.predict(new), rtol=1e-12)
    np.testing.assert_allclose(again.objective(new), fitted.objective(new), rtol=1e-12)
    np.testing.assert_allclose(again.objective_std(new), fitted.objective_std(new), rtol=1e-9)
    np.testing.assert_allclose(again.gradient(new), fitted.gradient(new), rtol=1e-9)
    assert again.convex == fitted.convex
    assert again.quality == fitted.quality


@every_law
@pytest.mark.seconds
def test_units_of_the_metric_do_not_matter(law: str) -> None:
    ratios, metrics = sweep(24)
    new, _ = sweep(9, seed=1)
    small, large = plain(law), fit(law, ratios, 1000 * metrics)
    np.testing.assert_allclose(large.predict(new), 1000 * small.predict(new), rtol=2e-4)
    np.testing.assert_allclose(large.objective_std(new), 1000 * small.objective_std(new), rtol=2e-2)


@every_law
@pytest.mark.seconds
def test_metrics_below_zero_are_fine(law: str) -> None:
    ratios, metrics = sweep(30)
    fitted = fit(law, ratios, metrics - 5)
    new, _ = sweep(40, seed=1)
    assert np.corrcoef(fitted.objective(new), truth(new).mean(axis=1))[0, 1] > 0.8


@every_law
@pytest.mark.seconds
def test_more_domains_than_rows(law: str) -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(12), 8)
    metrics = np.column_stack([3 - ratios[:, 0], 3 - 2 * ratios[:, 1]])
    fitted = fit(law, ratios, metrics)
    predicted = fitted.predict(ratios)
    assert np.isfinite(predicted).all()
    assert (predicted > metrics.min(axis=0) - 2).all()
    assert (predicted < metrics.max(axis=0) + 2).all()


@every_law
@pytest.mark.seconds
def test_a_constant_metric_is_predicted_as_such(law: str) -> None:
    ratios, metrics = sweep(16)
    metrics[:, 1] = 2.5
    fitted = fit(law, ratios, metrics)
    new, _ = sweep(9, seed=1)
    np.testing.assert_allclose(fitted.predict(new)[:, 1], 2.5)
    np.testing.assert_allclose(fitted.metric_gradient(new, 1), 0.0)
    assert fitted.quality[METRICS[1]]["spearman_cv"] is None


@every_law
def test_all_metrics_constant(law: str) -> None:
    ratios, metrics = sweep(12)
    fitted = fit(law, ratios, np.full_like(metrics, 1.5))
    np.testing.assert_allclose(fitted.objective(ratios), 1.5)
    assert (fitted.objective_std(ratios) >= 0).all()


@every_law
@pytest.mark.seconds
def test_rows_given_twice_change_little(law: str) -> None:
    ratios, metrics = sweep(24)
    new, _ = sweep(40, seed=1)
    once, twice = plain(law), fit(law, np.tile(ratios, (2, 1)), np.tile(metrics, (2, 1)))
    assert np.isfinite(twice.predict(new)).all()
    assert np.corrcoef(once.objective(new), twice.objective(new))[0, 1] > (0.6 if law in OPTIONAL else 0.9)


@every_law
@pytest.mark.seconds
def test_a_missing_value_is_left_out_of_its_metric_only(law: str) -> None:
    ratios, metrics = sweep(25)
    metrics[4, 0] = np.nan
    fitted = fit(law, ratios, metrics)
    assert fitted.quality[METRICS[0]]["rows"] == 24
    assert fitted.quality[METRICS[1]]["rows"] == 25
    assert fitted.quality["objective"]["rows"] == 24
    assert np.isfinite(fitted.predict(ratios)).all()
    assert np.isfinite(fitted.objective(ratios)).all()


@every_law
@pytest.mark.seconds
def test_the_order_of_domains_does_not_matter(law: str) -> None:
    ratios, metrics = sweep(24)
    turn = [2, 0, 3, 1]
    turned = fit_law(
        ratios[:, turn], metrics, domains=[DOMAINS[d] for d in turn], metric_names=METRICS, law=law
    )
    new, _ = sweep(30, seed=1)
    spread = np.ptp(truth(new).mean(axis=1))
    difference = np.abs(plain(law).objective(new) - turned.objective(new[:, turn])).max()
    assert difference < (0.3 if law in OPTIONAL else 0.02) * spread


@every_law
@pytest.mark.seconds
def test_zero_shares_are_mixtures_too(law: str) -> None:
    rng = np.random.default_rng(2)
    ratios = rng.dirichlet(np.ones(4), 30)
    ratios = np.where(ratios < 0.15, 0, ratios)
    ratios = ratios / ratios.sum(axis=1, keepdims=True)
    fitted = fit(law, ratios, truth(ratios))
    assert np.isfinite(fitted.predict(np.eye(4))).all()
    assert np.isfinite(fitted.gradient(np.eye(4))).all()


@every_smooth_law
@pytest.mark.seconds
def test_the_gradient_is_that_of_the_prediction(law: str) -> None:
    fitted = plain(law)
    at, _ = sweep(5, seed=1)
    for metric in range(len(METRICS)):
        slope = fitted.metric_gradient(at, metric)
        for d in range(4):
            step = np.zeros(4)
            step[d] = 1e-6
            rise = (fitted.predict(at + step) - fitted.predict(at - step))[:, metric] / 2e-6
            np.testing.assert_allclose(slope[:, d], rise, rtol=2e-3, atol=2e-4)


@every_law
@pytest.mark.seconds
def test_a_law_called_convex_is(law: str) -> None:
    fitted = plain(law)
    if not fitted.convex:
        return
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(4), 500), rng.dirichlet(np.ones(4), 500)
    middle = fitted.objective((a + b) / 2)
    assert (middle <= (fitted.objective(a) + fitted.objective(b)) / 2 + 1e-9).all()


@every_law
@pytest.mark.seconds
def test_the_objective_counts_only_what_has_weight(law: str) -> None:
    ratios, metrics = sweep(40)
    fitted = fit(law, ratios, metrics, objective={"code_loss": 2.0})
    new, _ = sweep(60, seed=1)
    assert np.corrcoef(fitted.objective(new), truth(new)[:, 0])[0, 1] > 0.85


@every_law
@pytest.mark.seconds
def test_standard_errors_are_of_the_right_size(law: str) -> None:
    fitted = fit(law, *sweep(40, noise=0.05))
    new, measured = sweep(400, seed=1, noise=0.05)
    error = fitted.objective(new) - measured.mean(axis=1)
    ratio = float(np.sqrt((error**2).mean()) / np.sqrt((fitted.objective_std(new) ** 2).mean()))
    assert 0.4 < ratio < 2.5


@every_law
@pytest.mark.seconds
def test_random_row_weights_move_the_law_a_little(law: str) -> None:
    fitted = plain(law)
    first = fitted.reweighted(np.random.default_rng(0))
    second = fitted.reweighted(np.random.default_rng(0))
    new, _ = sweep(30, seed=1)
    np.testing.assert_array_equal(first.objective(new), second.objective(new))
    moved = np.abs(first.objective(new) - fitted.objective(new)).max()
    assert 0 < moved < np.ptp(truth(new).mean(axis=1))


@every_law
@pytest.mark.seconds
def test_a_redrawn_law_differs_by_what_is_not_known(law: str) -> None:
    fitted = plain(law)
    first, second = (fitted.redrawn(np.random.default_rng(seed)) for seed in (0, 0))
    other = fitted.redrawn(np.random.default_rng(1))
    new, _ = sweep(30, seed=1)
    np.testing.assert_array_equal(first.objective(new), second.objective(new))
    assert 0 < np.abs(first.objective(new) - other.objective(new)).max() < np.ptp(truth(new).mean(axis=1))


@every_law
@pytest.mark.seconds
def test_noisy_measurements_count_less(law: str) -> None:
    ratios, metrics = sweep(40, noise=0.0)
    noise = np.full(metrics.shape, 0.001)
    noise[::2] = 1.0
    rng = np.random.default_rng(5)
    spoilt = metrics.copy()
    spoilt[::2] += rng.standard_normal(metrics[::2].shape)
    new, _ = sweep(100, seed=1)
    told = fit(law, ratios, spoilt, noise=noise).objective(new)
    plain = fit(law, ratios, spoilt).objective(new)
    wanted = truth(new).mean(axis=1)
    assert ((told - wanted) ** 2).mean() < ((plain - wanted) ** 2).mean()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(law="log-lniear"), "log-linear"),
        (dict(objective={"cod_loss": 1.0}), "code_loss"),
        (dict(objective={"code_loss": -1.0}), "at least 0"),
        (dict(objective={"code_loss": 0.0}), "above 0"),
        (dict(domains=DOMAINS[:3]), "columns"),
        (dict(domains=["a", "a", "b", "c"]), "once"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], word: str) -> None:
    ratios, metrics = sweep(12)
    arguments: dict[str, object] = dict(domains=DOMAINS, metric_names=METRICS) | change
    with pytest.raises(UserError, match=word):
        fit_law(ratios, metrics, **arguments)  # type: ignore[arg-type]


def test_rows_that_are_no_mixture_are_refused() -> None:
    ratios, metrics = sweep(12)
    for spoil in (np.nan, -0.2, 1.7):
        wrong = ratios.copy()
        wrong[5, 0] = spoil
        with pytest.raises(UserError, match="row 5"):
            fit("linear", wrong, metrics)


def test_too_few_rows_are_refused() -> None:
    ratios, metrics = sweep(12)
    with pytest.raises(UserError, match="at least 3"):
        fit("linear", ratios[:2], metrics[:2])
    metrics[2:, 1] = np.nan
    with pytest.raises(UserError, match="chat_loss"):
        fit("linear", ratios, metrics)


def test_a_damaged_file_is_refused() -> None:
    data = fit("linear", *sweep(12)).to_dict()
    with pytest.raises(UserError, match="format"):
        FittedLaw.from_dict(data | {"format": 99})
    for number in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="what it predicts is no number"):
            FittedLaw.from_dict(data | {"std_scale": number})
        with pytest.raises(UserError, match="what it predicts is no number"):
            FittedLaw.from_dict(data | {"objective": dict.fromkeys(METRICS, number)})
    del data["objective"]
    with pytest.raises(UserError, match="damaged"):
        FittedLaw.from_dict(data)
    with pytest.raises(UserError, match="cannot be refitted"):
        FittedLaw.from_dict(fit("linear", *sweep(12)).to_dict()).reweighted(np.random.default_rng(0))
