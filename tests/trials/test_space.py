"""Search spaces: every draw is a mixture, every mixture of the space has parameters, bounds hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix_ray.config import DomainConfig
from opmix_ray.decision.old_part import choose_components, probe_data
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.paths import shipped
from opmix_ray.trials.space import (
    Bounded,
    Components,
    Grouped,
    Simplex,
    Space,
    load_space,
    mixture_space,
    read_space,
    weights_from,
)

DOMAINS = ("a", "b", "c", "d")
OLD = Mixture({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})


def components(new_share: float = 0.9) -> Components:
    names = ("old", *DOMAINS)
    data = np.array([probe_data(name, OLD, new_share).array(DOMAINS) for name in names])
    return Components(names, DOMAINS, data)


def spaces() -> list[Space]:
    parts = components()
    return [
        Simplex(parts),
        Bounded(parts, np.array([0.1, 0.05, 0.05, 0.05]), np.array([0.5, 0.6, 0.7, 0.3])),
        Grouped(parts, {"left": ["a", "b"], "right": ["c"], "rest": ["d"]}),
    ]


@pytest.mark.parametrize("space", spaces(), ids=lambda space: space.kind)
def test_every_draw_is_a_point_of_the_simplex(space: Space) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        weights = space.weights(study.ask(fixed_distributions=space.distributions()).params)
        assert weights.shape == (5,)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("space", spaces(), ids=lambda space: space.kind)
@pytest.mark.seconds
def test_parameters_of_a_draw_give_the_draw_again(space: Space) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(50):
        weights = space.weights(study.ask(fixed_distributions=space.distributions()).params)
        again = space.weights(space.params(weights))
        assert space.components.ratios(again) == pytest.approx(space.components.ratios(weights), abs=2e-4)


def test_simplex_draws_are_uniform_on_the_simplex() -> None:
    """Dirichlet(1) over 3 has mean 1/3 and variance 1/18 per share."""
    names = ("x", "y", "z")
    rng = np.random.default_rng(0)
    draws = np.array(
        [
            weights_from(dict(zip(mixture_space(names), rng.random(3), strict=True)), names)
            for _ in range(4000)
        ]
    )
    assert draws.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert draws.var(axis=0) == pytest.approx([1 / 18] * 3, rel=0.1)


@pytest.mark.seconds
def test_bounded_draws_stay_in_the_box() -> None:
    lower, upper = np.array([0.1, 0.05, 0.05, 0.05]), np.array([0.5, 0.6, 0.7, 0.3])
    space = Bounded(components(), lower, upper)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    for _ in range(100):
        ratios = space.components.ratios(
            space.weights(study.ask(fixed_distributions=space.distributions()).params)
        )
        assert (ratios >= lower - 1e-6).all()
        assert (ratios <= upper + 1e-6).all()


def test_the_mixture_in_force_is_a_vertex() -> None:
    assert components().weights_for(OLD).tolist() == [1, 0, 0, 0, 0]


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_reachable_mixtures_are_reached_exactly(shares: list[float]) -> None:
    parts = components()
    inside = Mixture.from_array(
        DOMAINS, 0.1 * OLD.array() + 0.9 * Mixture.from_array(DOMAINS, shares).array()
    )
    weights = parts.weights_for(inside)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    assert parts.ratios(weights) == pytest.approx(inside.array(), abs=1e-6)


def test_a_mixture_that_no_probes_span_gets_the_nearest_one() -> None:
    weights = components().weights_for(Mixture({"a": 1, "b": 0, "c": 0, "d": 0}))
    assert weights == pytest.approx([0, 1, 0, 0, 0], abs=1e-6)


def test_a_domain_no_probe_has_seen_is_an_error() -> None:
    with pytest.raises(UserError, match="no probe has seen"):
        components().weights_for(Mixture({"e": 1}))


def test_old_new_has_one_component_per_new_domain() -> None:
    current = Mixture({"a": 0.5, "b": 0.5, "c": 0.0})
    assert choose_components("old_new", current, current).names == ["old", "c"]
    assert choose_components("simplex", current, current).names == ["a", "b", "c"]
    with pytest.raises(UserError, match="needs a domain"):
        choose_components("old_new", OLD, OLD)


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("search_spaces").glob("*.yaml")))
def test_every_space_that_ships_loads(name: str) -> None:
    assert load_space(name, components()).distributions()


def test_bounds_of_the_sources_count_too() -> None:
    sources = {
        name: DomainConfig(path="x", min_share=0.2 if name == "d" else 0, max_share=1) for name in DOMAINS
    }
    space = load_space("bounded", components(), sources)
    assert isinstance(space, Bounded)
    assert space.lower[3] == 0.2


def test_groups_come_from_the_sources() -> None:
    sources = {n: DomainConfig(path="x", group="web" if n in "ab" else None) for n in DOMAINS}
    space = load_space("grouped", components(), sources)
    assert isinstance(space, Grouped)
    assert space.groups == {"web": ("a", "b"), "c": ("c",), "d": ("d",)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: boundet\n", "kind"),
        ("kind: bounded\nlower: 0.4\n", "cannot be met"),
        ("kind: bounded\nlower: {zzz: 0.1}\n", "no such domain"),
        ("kind: grouped\ngroups: {x: [a, b], y: [b, c, d]}\n", "two groups"),
        ("kind: grouped\ngroups: {x: [a, b], y: [c]}\n", "no group has d"),
        ("", "is empty"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=problem):
        load_space(str(file), components())


def test_an_unknown_space_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="simplex"):
        read_space("simplx")
