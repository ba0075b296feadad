"""Mixtures: a point on the simplex, and scaling it into a box."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix_ray.errors import UserError, UserErrors
from opmix_ray.mixture import Mixture, fill_box

WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda w: sum(w) > 0)


@given(WEIGHTS)
@pytest.mark.seconds
def test_shares_sum_to_one_and_keep_order_and_zeros(weights: list[float]) -> None:
    mixture = Mixture({f"d{i}": w for i, w in enumerate(weights)})
    assert math.fsum(mixture.values()) == pytest.approx(1, abs=1e-12)
    assert mixture.domains == [f"d{i}" for i in range(len(weights))]
    assert all(mixture[f"d{i}"] == 0 for i, w in enumerate(weights) if w == 0)
    assert mixture.array() == pytest.approx(np.array(weights) / math.fsum(weights))


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, -math.inf])
def test_a_weight_out_of_range_is_named(weight: float) -> None:
    with pytest.raises(UserError, match=r"code = .*finite number of at least 0"):
        Mixture({"prose": 1.0, "code": weight})


def test_no_domain_and_no_weight_are_errors() -> None:
    with pytest.raises(UserError, match="at least one domain"):
        Mixture({})
    with pytest.raises(UserError, match="positive finite sum"):
        Mixture({"a": 0.0, "b": 0.0})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mixture([0.5, 0.5]), r"weights = .*: a mixture is a mapping"),  # type: ignore[arg-type]
        (lambda: Mixture(None), "weights = None: a mixture is a mapping"),  # type: ignore[arg-type]
        (lambda: Mixture({"a": "x"}), "a = x: a weight must be a finite number"),  # type: ignore[dict-item]
        (lambda: Mixture({"a": 1e308, "b": 1e308}), "positive finite sum"),
        (lambda: Mixture.uniform("abc"), "domains = 'abc': must be a list of names"),
        (lambda: Mixture.uniform(["a", "a"]), "domains = a: stands twice"),
        (lambda: Mixture.uniform(5), "domains = 5: must be a list of names"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_mixture_is_named(make: Callable[[], Mixture], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_ways_to_make_a_mixture() -> None:
    assert Mixture.uniform({"a": 1, "b": 2}) == Mixture.of({"a": 3, "b": 3})
    assert Mixture.uniform(["a", "b", "c", "d"]) == dict.fromkeys("abcd", 0.25)
    assert Mixture.proportional({"a": 30, "b": 10}) == {"a": 0.75, "b": 0.25}
    assert Mixture.from_array(["a", "b"], [-1e-12, 0.5]) == {"a": 0.0, "b": 1.0}
    with pytest.raises(UserError, match="a = -0"):
        Mixture.from_array(["a", "b"], [-1e-3, 0.5])
    with pytest.raises(ValueError, match="shorter"):
        Mixture.from_array(["a", "b"], [1.0])


def test_a_mixture_is_a_value() -> None:
    mixture = Mixture({"a": 1, "b": 3})
    mixture.shares["a"] = 9.0
    assert mixture == {"a": 0.25, "b": 0.75}
    assert hash(mixture) == hash(Mixture({"a": 2, "b": 6}))
    assert len({mixture, Mixture({"a": 2, "b": 6}), Mixture({"a": 1, "b": 1})}) == 2
    assert pickle.loads(pickle.dumps(mixture)) == mixture
    with pytest.raises(TypeError):
        mixture["a"] = 1.0  # type: ignore[index]


def test_arrays_follow_the_order_asked_for() -> None:
    mixture = Mixture({"a": 1, "b": 3})
    assert mixture.array(["b", "new", "a"]).tolist() == [0.75, 0.0, 0.25]
    assert mixture.over(["b", "new"]) == {"b": 1.0, "new": 0.0}
    assert mixture.over(["b", "new"]).domains == ["b", "new"]
    with pytest.raises(UserError):
        mixture.over(["new"])


def test_components_are_expanded_into_what_they_stand_for() -> None:
    top = Mixture({"old": 0.5, "code": 0.25, "news": 0.25})
    whole = top.expand({"old": {"code": 1, "books": 3}, "unused": {"x": 1}})
    assert dict(whole) == pytest.approx({"code": 0.375, "books": 0.375, "news": 0.25})
    assert whole.domains == ["code", "books", "news"]
    assert top.expand({}) == top


def test_kl_is_what_it_is_by_hand() -> None:
    one, other = Mixture({"a": 0.5, "b": 0.5}), Mixture({"a": 0.25, "b": 0.75})
    assert one.kl(other) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert one.kl(one) == 0.0
    assert Mixture({"a": 1, "b": 0}).kl({"a": 0.5}) == pytest.approx(math.log(2))
    assert one.kl({"a": 1.0, "b": 0.0}) == math.inf
    assert one.kl({"a": 1.0}) == math.inf


@given(st.integers(0, 2**32), st.integers(2, 9))
def test_kl_and_distance_obey_pinsker(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(n)]
    one, other = (Mixture.from_array(names, rng.dirichlet([0.5] * n) + 1e-9) for _ in range(2))
    distance = one.distance(other)
    assert 0 <= distance <= 1
    assert distance == pytest.approx(other.distance(one))
    assert one.kl(other) >= 2 * distance**2 - 1e-12


def test_distance_counts_domains_of_either_side() -> None:
    assert Mixture({"a": 1}).distance({"b": 1.0}) == 1.0
    assert Mixture({"a": 1, "b": 1}).distance({"b": 0.5, "c": 0.5}) == 0.5


def divergence(shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shares > 0, shares * np.log(shares / weights), 0.0).sum(axis=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
@pytest.mark.seconds
def test_no_point_of_a_grid_in_the_box_is_nearer_than_the_filled_one(seed: int) -> None:
    """Water-filling is the KL projection onto the box: brute force over three domains."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([0.6] * 3) + 1e-6
    lower = np.round(rng.uniform(0, 0.3, 3), 2)
    upper = np.round(rng.uniform(0.4, 1.0, 3), 2)
    filled = fill_box(weights, lower, upper)
    axis = np.arange(101) / 100
    first, second = (grid.ravel() for grid in np.meshgrid(axis, axis))
    points = np.stack([first, second, 1 - first - second], axis=1)
    inside = ((points >= lower - 1e-9) & (points <= upper + 1e-9)).all(axis=1)
    assert inside.any()
    nearest = divergence(np.maximum(points[inside], 0), weights).min()
    assert divergence(filled, weights) <= nearest + 1e-9
    assert divergence(filled, weights) >= nearest - 0.05


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([0.05, 1.0, 30.0]))
@pytest.mark.seconds
def test_filled_shares_are_one_factor_clipped(seed: int, n: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([spread] * n) * 10 ** rng.uniform(-3, 3)
    lower = rng.uniform(0, 1 / n, n)
    upper = rng.uniform(1 / n, 1.5, n)
    filled = fill_box(weights, lower, upper)
    assert filled.sum() == pytest.approx(1, abs=1e-9)
    assert (filled >= lower - 1e-12).all()
    assert (filled <= upper + 1e-12).all()
    free = (filled > lower + 1e-9) & (filled < upper - 1e-9)
    factors = filled[free] / (weights[free] + 1e-12)
    if free.any():
        factor = factors.mean()
        assert factors == pytest.approx(factor, rel=1e-6)
        assert np.clip(factor * (weights + 1e-12), lower, upper) == pytest.approx(filled, abs=1e-8)


def test_filling_by_hand() -> None:
    assert fill_box(np.array([6.0, 1.0, 3.0]), 0, np.array([0.2, 1, 1])) == pytest.approx([0.2, 0.2, 0.6])
    assert fill_box(np.array([8.0, 1.0, 1.0]), np.array([0, 0, 0.3]), 1) == pytest.approx(
        [0.7 * 8 / 9, 0.7 / 9, 0.3]
    )
    assert fill_box(np.array([1.0, 3.0]), 0, 1) == pytest.approx([0.25, 0.75])
    assert fill_box(np.array([5.0]), 0, 1) == pytest.approx([1.0])


def test_zero_weights_rise_evenly_when_nothing_else_can() -> None:
    assert fill_box(np.array([1.0, 0.0, 0.0]), 0, np.array([0.4, 1, 1])) == pytest.approx([0.4, 0.3, 0.3])
    assert fill_box(np.zeros(4), 0, 1) == pytest.approx([0.25] * 4)
    assert fill_box(np.array([1.0, 0.0]), 0, 1) == pytest.approx([1.0, 0.0])


def test_a_box_with_one_point_is_that_point() -> None:
    point = np.array([0.2, 0.3, 0.5])
    assert fill_box(np.array([9.0, 1.0, 0.0]), point, point) == pytest.approx(point)


@pytest.mark.parametrize(("lower", "upper"), [(0.6, 1.0), (0.0, 0.4), ([0.5, 0.0], [0.4, 1.0])])
def test_an_empty_box_is_an_error(lower: float | list[float], upper: float | list[float]) -> None:
    with pytest.raises(UserError, match="bounds cannot be met"):
        fill_box(np.ones(2), np.array(lower), np.array(upper))


def test_errors_say_where_what_and_what_to_do_and_travel() -> None:
    error = UserError("is wrong", file="run.yaml", key="data.code", value="x" * 99, remedy="mend\nit")
    assert str(error) == f"run.yaml: data.code = {'x' * 77}...: is wrong; mend it"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.key, copy.remedy) == (str(error), "data.code", "mend\nit")
    several = pickle.loads(pickle.dumps(UserErrors([error, UserError("too")])))
    assert str(several) == f"{error}\ntoo"
    assert isinstance(several, UserError)
