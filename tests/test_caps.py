"""Repetition caps: epochs, greatest shares, and the mixture within them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture, epochs, fit_to_caps, share_caps


def test_epochs_count_what_was_used_before() -> None:
    there = {"code": 100, "prose": 400, "spare": 5}
    planned = epochs(Mixture({"code": 1, "prose": 3}), there, 800, used={"code": 50})
    assert planned == {"code": 2.5, "prose": 1.5}
    assert epochs(Mixture({"code": 1, "prose": 3}), there, 800) == {"code": 2.0, "prose": 1.5}


def test_epochs_of_an_empty_domain_are_infinite_only_if_it_is_asked() -> None:
    assert epochs({"void": 0.5, "code": 0.5}, {"code": 10}, 10) == {"void": math.inf, "code": 0.5}
    assert epochs({"void": 0.0, "code": 1.0}, {"void": 0, "code": 10}, 10) == {"void": 0.0, "code": 1.0}


def test_caps_follow_from_tokens_epochs_and_use() -> None:
    caps = share_caps(
        {"code": 100, "prose": 1000, "free": 10, "void": 0, "spent": 50},
        {"code": 4, "prose": 2, "free": None, "void": None, "spent": 1},
        {"code": 150, "spent": 60},
        1000,
    )
    assert caps == {"code": 0.25, "prose": 1.0, "free": 1.0, "void": 0.0, "spent": 0.0}


def test_a_domain_without_an_entry_has_no_cap() -> None:
    assert share_caps({"code": 1, "prose": 1}, {"code": 1}, {}, 100) == {"code": 0.01, "prose": 1.0}


def test_a_plan_that_exactly_uses_up_the_data_is_accepted() -> None:
    assert share_caps({"a": 1, "b": 2}, {"a": 3, "b": 3}, {}, 9) == {"a": 1 / 3, "b": 2 / 3}


def test_too_long_a_plan_names_every_domain_its_excess_and_the_remedies() -> None:
    with pytest.raises(UserError) as caught:
        share_caps(
            {"code": 1e6, "prose": 2e6, "void": 0}, {"code": 4, "prose": 1, "void": 1}, {"code": 1.5e6}, 6e6
        )
    line = str(caught.value)
    assert "asks for 6,000,000 tokens" in line
    assert "4,500,000 there are by 1,500,000, or 0.5 epochs of all data" in line
    assert "code has 2,500,000 left of 1,000,000 x 4 epochs, 500,000 too few for its part" in line
    assert "prose has 2,000,000 left of 2,000,000 x 1 epochs, 1,000,000 too few for its part" in line
    assert "void has no tokens" in line
    for remedy in ("fewer steps", "more epochs", "add data"):
        assert remedy in line


def test_a_long_list_of_domains_is_cut() -> None:
    names = [f"d{i}" for i in range(30)]
    with pytest.raises(UserError, match="and 22 more"):
        share_caps(dict.fromkeys(names, 1.0), dict.fromkeys(names, 1.0), {}, 31)


def test_senseless_numbers_are_errors() -> None:
    with pytest.raises(UserError, match="stage_tokens"):
        share_caps({"a": 1}, {}, {}, 0)
    with pytest.raises(UserError, match=r"max_epochs\.a"):
        share_caps({"a": 1}, {"a": -1}, {}, 1)
    with pytest.raises(UserError, match=r"max_epochs\.a"):
        share_caps({"a": 1}, {"a": math.nan}, {}, 1)


def test_a_mixture_within_its_caps_is_returned_untouched() -> None:
    mixture = Mixture({"a": 0.1, "b": 0.2, "c": 0.7})
    fitted, moved = fit_to_caps(mixture, {"a": 0.1, "b": 1.0}, {"c": 0.5})
    assert fitted is mixture
    assert moved == {}


def test_excess_goes_to_the_others_in_proportion() -> None:
    fitted, moved = fit_to_caps(Mixture({"a": 0.6, "b": 0.1, "c": 0.3, "off": 0.0}), {"a": 0.2})
    assert dict(fitted) == pytest.approx({"a": 0.2, "b": 0.2, "c": 0.6, "off": 0.0})
    assert moved == pytest.approx({"a": -0.4, "b": 0.1, "c": 0.3})


def test_excess_cascades_into_further_caps() -> None:
    fitted, _ = fit_to_caps(Mixture({"a": 0.6, "b": 0.3, "c": 0.1}), {"a": 0.2, "b": 0.35})
    assert dict(fitted) == pytest.approx({"a": 0.2, "b": 0.35, "c": 0.45})


def test_a_share_of_zero_stays_exactly_zero_while_the_others_can_fill_the_mixture() -> None:
    wanted = Mixture({"a": 0.9, "b": 0.1, "off": 0.0, "out": 0.0})
    fitted, _ = fit_to_caps(wanted, {"a": 0.5, "b": 0.5, "off": 0.3})
    assert fitted["off"] == fitted["out"] == 0.0
    fitted, _ = fit_to_caps(wanted, {"a": 0.5, "b": 0.3, "out": 0.05})
    assert dict(fitted) == pytest.approx({"a": 0.5, "b": 0.3, "off": 0.15, "out": 0.05})


def test_least_shares_are_kept() -> None:
    fitted, moved = fit_to_caps(Mixture({"a": 0.9, "b": 0.1, "c": 0.0}), {"a": 0.8}, {"c": 0.1})
    assert fitted["c"] == pytest.approx(0.1)
    assert fitted["a"] / fitted["b"] <= 9 + 1e-9
    assert sum(moved.values()) == pytest.approx(0)


def test_caps_below_one_name_the_domains() -> None:
    with pytest.raises(UserError, match=r"sum to 0\.5000.*a at most 0\.1; b at most 0\.4.*fewer steps"):
        fit_to_caps(Mixture({"b": 1, "a": 1}), {"a": 0.1, "b": 0.4, "other": 1.0})


def test_a_least_share_above_its_cap_is_an_error() -> None:
    with pytest.raises(UserError, match=r"a = 0\.3: the least share is above"):
        fit_to_caps(Mixture({"a": 1, "b": 1}), {"a": 0.2}, {"a": 0.3})
    with pytest.raises(UserError, match="bounds"):
        fit_to_caps(Mixture({"a": 1, "b": 1}), {"a": 0.7}, {"a": 0.6, "b": 0.6})


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 20))
@pytest.mark.seconds
def test_fitted_mixtures_keep_caps_and_proportions(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(n)]
    wanted = Mixture.from_array(names, rng.dirichlet([0.5] * n))
    there = dict(zip(names, rng.integers(1, 1000, n).tolist(), strict=True))
    total = sum(there.values()) * rng.uniform(0.3, 1.9)
    caps = share_caps(there, dict.fromkeys(names, 2.0), {}, total)
    fitted, moved = fit_to_caps(wanted, caps)
    assert sum(moved.values()) == pytest.approx(0, abs=1e-7)
    assert max(epochs(fitted, there, total).values()) <= 2 + 1e-6
    free = [name for name in names if fitted[name] < caps[name] - 1e-9 and wanted[name] > 1e-6]
    factors = [fitted[name] / wanted[name] for name in free]
    assert not factors or max(factors) <= min(factors) * (1 + 1e-4)
    assert all(fitted[name] >= wanted[name] - 1e-9 for name in free)
