"""What is kept, what is drawn together and what is left open when a law is read for trained models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from opmix_ray.errors import UserError
from opmix_ray.laws import Extrapolation, FittedLaw, fit_law
from opmix_ray.laws.extrapolate import stage_growth
from opmix_ray.laws.fit import OwnSlope
from opmix_ray.laws.linear import Additive, Extrapolated
from tests.laws import trained
from tests.laws.trained import FILES

DOMAINS = ["a", "b", "c"]
ANCHOR = (0.5, 0.3, 0.2)


def rows(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Losses that fall with the own share, four times as fast for c as for a, and where b harms a."""
    ratios = np.random.default_rng(3).dirichlet(np.ones(3), count)
    slopes = np.array([0.1, 0.2, 0.4])
    losses = 3 - slopes * np.log(ratios + 0.1)
    losses[:, 0] += 0.3 * (ratios[:, 1] - ratios[:, 2])
    return ratios, losses


def read(**how: float) -> FittedLaw:
    return fit_law(
        *rows(), domains=DOMAINS, metric_names=DOMAINS, law="own-share",
        extrapolate=Extrapolation(anchor=ANCHOR, **how),  # type: ignore[arg-type]
    )  # fmt: skip


def own_slopes(law: FittedLaw) -> np.ndarray:
    return np.array([-r.slopes[d] for d, r in enumerate(law.responses[:3])])  # type: ignore[attr-defined]


def test_own_slopes_are_found_and_kept_where_they_are_trusted() -> None:
    np.testing.assert_allclose(own_slopes(read(eps=0.01)), [0.1, 0.2, 0.4], rtol=0.1)


@pytest.mark.parametrize("trust", [0.0, 0.4])
def test_slopes_are_drawn_to_their_geometric_mean(trust: float) -> None:
    whole, drawn = own_slopes(read(eps=0.01)), own_slopes(read(eps=0.01, slope_trust=trust))
    common = np.exp(np.log(whole).mean())
    np.testing.assert_allclose(drawn, common * (whole / common) ** trust, rtol=1e-6)


@pytest.mark.seconds
def test_a_slope_that_noise_has_turned_or_flattened_is_drawn_like_the_others() -> None:
    """A domain whose probe said nothing must not lose its share."""
    ratios, losses = rows(12)
    losses[:, 0] = 3 + np.random.default_rng(0).normal(0, 0.05, len(losses))
    losses[:, 1] = 3 + 0.001 * np.log(ratios[:, 1] + 0.1)
    for trust in (0.4, 0.0):
        law = fit_law(
            ratios, losses, domains=DOMAINS, metric_names=DOMAINS, law="own-share",
            extrapolate=Extrapolation(anchor=ANCHOR, eps=0.01, slope_trust=trust),
        )  # fmt: skip
        plain = fit_law(ratios, losses, domains=DOMAINS, metric_names=DOMAINS, law="own-share")
        fitted = [OwnSlope.of(response, own) for own, response in enumerate(plain.responses)]
        least = 0.05 * np.median([slope.value for slope in fitted if slope])
        counted = np.array([max(slope.value, slope.error, least) for slope in fitted if slope])
        assert fitted[1] is not None
        assert fitted[1].value < 0 < counted[1]
        assert fitted[0] is not None
        assert counted[0] > least
        common = np.exp(np.log(counted).mean())
        np.testing.assert_allclose(own_slopes(law), common * (counted / common) ** trust, rtol=1e-6)


def test_the_slope_of_a_law_in_all_log_shares_is_its_steepest_fall() -> None:
    def response(*slopes: float) -> Additive:
        zeros = np.zeros(3)
        return Additive(3.0, np.array(slopes), zeros, 0.1, np.zeros(6), np.eye(7), 0.1)

    assert OwnSlope.of(response(-0.1, 0.3, 0.0), 1) == OwnSlope(-0.1, 1.0)
    assert OwnSlope.of(response(0.0, 0.3, 0.0), 1) == OwnSlope(0.3, 1.0)
    assert OwnSlope.of(response(0.0, 0.3, 0.0), 0) is None
    assert OwnSlope.of(response(0.0, 0.3, 0.0), None) is None
    assert OwnSlope.of(response(0.1, 0.3, 0.0), 1) is None


def test_a_metric_without_a_domain_of_its_own_may_be_harmed() -> None:
    """It is not noise that a target, or a set of old data, gets worse with a domain's share."""
    ratios, _ = rows(12)
    harmed = 3 + 0.3 * np.log(ratios[:, 0] + 0.05)
    own = [3 - 0.2 * np.log(ratios[:, d] + 0.05) for d in range(3)]
    law = fit_law(
        ratios, np.column_stack([*own, harmed]), domains=DOMAINS, metric_names=[*DOMAINS, "target"],
        law="own-share", extrapolate=Extrapolation(anchor=ANCHOR, eps=0.01, slope_trust=0.4),
    )  # fmt: skip
    here, there = law.responses[3].predict(np.array([ANCHOR, (0.65, 0.2, 0.15)]))
    assert there > here


def test_old_sets_belong_to_the_old_part_and_lose_by_what_is_new() -> None:
    """Whatever little, and however turned by noise, their losses move on short probes."""
    new = np.array([0.2, 0.08, 0.35, 0.22, 0.6, 0.9])
    ratios = np.column_stack([1 - new, new])
    sets = ["web", "code", "chat"]
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(0, 0.01, 6)
        losses = np.column_stack([4 + noise, 3 - 0.02 * np.log(1 - new + 0.05), 5 - 0.6 * np.log(new + 0.05)])
        law = fit_law(
            ratios, losses, domains=["old", "chat"], metric_names=sets, law="own-share",
            own={"web": "old", "code": "old"},
            extrapolate=Extrapolation(anchor=[0.7, 0.3], eps=0.01, slope_trust=0.4),
        )  # fmt: skip
        here, there = law.predict(np.array([[0.7, 0.3], [0.2, 0.8]]))
        assert there[0] > here[0]
        assert there[1] > here[1]
        assert there[2] < here[2]
    with pytest.raises(UserError, match="cannot belong"):
        fit_law(ratios, losses, domains=["old", "chat"], metric_names=sets, own={"web": "now"})


@pytest.mark.seconds
def test_slopes_are_not_drawn_towards_those_of_sets_without_weight() -> None:
    ratios, losses = rows(12)
    steep = 9 - 5 * np.log(ratios[:, 0] + 0.1)

    def read_with(objective: dict[str, float]) -> np.ndarray:
        law = fit_law(
            ratios, np.column_stack([losses, steep]), domains=DOMAINS, metric_names=[*DOMAINS, "later"],
            law="own-share", objective=objective,
            extrapolate=Extrapolation(anchor=ANCHOR, eps=0.01, slope_trust=0.4),
        )  # fmt: skip
        return own_slopes(law)

    without = dict.fromkeys(DOMAINS, 1.0)
    whole, drawn = own_slopes(read(eps=0.01)), read_with({**without, "later": 0.0})
    common = np.exp(np.log(whole).mean())
    np.testing.assert_allclose(drawn, common * (whole / common) ** 0.4, rtol=0.05)
    assert (read_with({**without, "later": 1.0}) > 1.2 * drawn).all()


def test_slopes_grow_from_the_response_of_the_probes_and_the_pseudo_count_is_taken_as_it_is() -> None:
    law = read(eps=0.5, growth=2.0)  # above the fitted pseudo-count
    responses = [r for r in law.responses if isinstance(r, Extrapolated)]
    assert [r.eps for r in responses] == [0.5] * 3
    at = np.full((2, 3), 0.05)
    for d, response in enumerate(responses):
        at[0, d], at[1, d] = 0.02, 0.9
        fitted = response.origin.slopes[d] * np.diff(np.log(at[:, d] + response.origin.eps))[0]
        assert -response.slopes[d] == pytest.approx(-2 * fitted)
    with pytest.raises(UserError, match="pseudo-count"):
        Extrapolation(growth=2.0)


def test_growth_is_the_stages_over_the_probes() -> None:
    assert stage_growth(1.5, 2.0, 25, 25) == pytest.approx(1.5)
    assert (
        stage_growth(1.0, 2.0, 500, 25)
        > stage_growth(1.0, 2.0, 150, 25)
        > stage_growth(1.0, 2.0, 150, 50)
        > 1
    )


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name.endswith("-0.json.gz")], ids=lambda file: file.name
)
def test_mixtures_that_were_really_trained_are_as_far_apart_as_predicted(file: Path) -> None:
    law, ratios, true = trained.read(file, 500)
    predicted = law.predict(ratios)
    assert np.median([spearmanr(p, t).statistic for p, t in zip(predicted.T, true.T, strict=True)]) > 0.95
    assert 0.5 < predicted.mean(axis=1).std() / true.mean(axis=1).std() < 1.5


def test_what_domains_do_for_one_another_counts_as_far_as_it_is_trusted() -> None:
    more_b, more_c = np.array([[0.4, 0.5, 0.1]]), np.array([[0.4, 0.1, 0.5]])

    def harm(law: FittedLaw) -> float:
        return float(law.predict(more_b)[0, 0] - law.predict(more_c)[0, 0])

    assert harm(read(eps=0.01)) == pytest.approx(0.24, rel=0.1)
    assert harm(read(eps=0.01, transfer_trust=0.25)) == pytest.approx(0.06, rel=0.1)
    assert harm(read(eps=0.01, transfer_trust=0.0)) == pytest.approx(0, abs=1e-9)


def test_the_error_grows_away_from_the_anchor_by_the_doubt_about_slopes() -> None:
    law = read(eps=0.01)
    response = law.responses[0]
    assert isinstance(response, Extrapolated)
    near, far = np.array([ANCHOR]), np.array([[0.02, 0.5, 0.48]])
    assert response.std(near) == pytest.approx(response.origin.std(near))
    away = 0.25 * abs(response.slopes[0]) * abs(np.log(0.03 / 0.51))
    assert response.std(far) == pytest.approx(np.hypot(response.origin.std(far), away), rel=1e-6)


def test_reading_again_starts_from_the_fit() -> None:
    once = read(eps=0.01, transfer_trust=0.0)
    response = once.responses[0]
    twice = response.extrapolate(Extrapolation(eps=0.05, anchor=ANCHOR), "a")
    straight = read(eps=0.05).responses[0]
    mixtures = rows(5)[0]
    np.testing.assert_allclose(twice.predict(mixtures), straight.predict(mixtures))


def test_a_set_without_a_falling_slope_does_not_drag_the_others_down() -> None:
    ratios, losses = rows()
    losses[:, 1] = 2 + 0.01 * ratios[:, 1]  # more of b is no good for b
    law = fit_law(
        ratios, losses, domains=DOMAINS, metric_names=DOMAINS, law="own-share",
        extrapolate=Extrapolation(eps=0.01, slope_trust=0.4, anchor=ANCHOR),
    )  # fmt: skip
    assert own_slopes(law)[[0, 2]].min() > 0.05
