"""Old data as one component: its inside stays, and the optimum over {old, new} is expanded to domains."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from opmix_ray.config import ProposalConfig
from opmix_ray.decision.old_part import OldPart, choose_components
from opmix_ray.decision.rule import DecisionInputs, conclude, fit_decision
from opmix_ray.mixture import Mixture
from opmix_ray.trials.rows import TrialRow

DOMAINS = ("a", "b", "x", "y")
OLD = Mixture({"a": 0.75, "b": 0.25, "x": 0.0, "y": 0.0})
NEED = {"a": 0.3, "b": 0.1, "x": 0.2, "y": 0.05}


def question(current: Mixture = OLD, old: Mixture | None = OLD, **changes: object) -> DecisionInputs:
    chosen = choose_components("old_new", old, current)
    components = chosen.components(0.9)
    fields = {
        "components": components,
        "sets": DOMAINS,
        "objective": dict.fromkeys(DOMAINS, 0.25),
        "current": current,
        "prior": Mixture.uniform(DOMAINS),
        "lower": dict(zip(DOMAINS, components.data.min(axis=0).tolist(), strict=True)),
        "upper": dict.fromkeys(DOMAINS, 1.0),
        "settings": ProposalConfig(kl=0.01),
        "seed": 0,
        "old": chosen.old,
        "steps": 200.0,
    }
    return DecisionInputs(**(fields | changes))  # type: ignore[arg-type]


def rows(asked: DecisionInputs, count: int = 14) -> list[TrialRow]:
    """Candidates whose loss on a set falls with the logarithm of its domain's share."""
    rng = np.random.default_rng(3)
    names = asked.components.names
    found = []
    for number in range(count):
        weights = rng.dirichlet([1.0] * len(names)) if number else asked.components.weights_for(asked.current)
        ratios = dict(zip(DOMAINS, asked.components.ratios(weights).tolist(), strict=True))
        losses = {name: 3 - NEED[name] * math.log(ratios[name] + 0.2) for name in DOMAINS}
        found.append(
            TrialRow(
                run=f"{number:03d}", weights=dict(zip(names, weights.tolist(), strict=True)), ratios=ratios,
                losses=losses, objective=sum(losses.values()) / 4,
                nats={name: [10 * loss + n / 50 for n in range(20)] for name, loss in losses.items()},
                targets={name: [10] * 20 for name in DOMAINS},
            )
        )  # fmt: skip
    return found


def test_what_is_old_and_what_is_new() -> None:
    part = OldPart.of(OLD, OLD)
    assert part is not None
    assert (part.names, part.inside.shares) == (["old", "x", "y"], {"a": 0.75, "b": 0.25})
    assert part.reduce(np.array([[0.3, 0.1, 0.4, 0.2]]))[0] == pytest.approx([0.4, 0.4, 0.2])
    assert part.reduced(Mixture.uniform(DOMAINS)).shares == {"old": 0.5, "x": 0.25, "y": 0.25}


def test_the_inside_is_that_of_the_mixture_in_force() -> None:
    started = Mixture({"a": 0.1, "b": 0.3, "x": 0.6, "y": 0.0})
    part = OldPart.of(OLD, started)
    assert part is not None
    assert part.inside.shares == pytest.approx({"a": 0.25, "b": 0.75})
    alone = OldPart.of(OLD, Mixture({"a": 0, "b": 0, "x": 1, "y": 0}))
    assert alone is not None
    assert alone.inside.shares == {"a": 0.75, "b": 0.25}, "of the old mixture where nothing old is in force"


def test_without_anything_new_or_old_there_is_no_such_part() -> None:
    assert OldPart.of(Mixture.uniform(DOMAINS), OLD) is None
    assert OldPart.of(Mixture({"gone": 1}), OLD) is None
    assert OldPart.of(None, OLD) is not None, "without a past, old is what the mixture in force has"


def test_the_proposal_keeps_the_inside_of_the_old_data() -> None:
    asked = question()
    found = fit_decision(rows(asked), asked)
    assert found.law is not None
    assert found.mixture is not None
    assert found.proposal is not None
    assert found.law.domains == ["old", "x", "y"]
    assert found.mixture["a"] / found.mixture["b"] == pytest.approx(3, rel=1e-6)
    assert found.proposal.mixture["old"] == pytest.approx(found.mixture["a"] + found.mixture["b"])
    assert found.mixture["x"] > found.mixture["y"] > 0.01
    assert found.weights is not None
    assert asked.components.ratios(found.weights) == pytest.approx(found.mixture.array(DOMAINS), abs=1e-6)


@pytest.mark.seconds
def test_a_second_decision_in_the_stage_starts_from_what_the_first_one_chose() -> None:
    first = question()
    chosen = fit_decision(rows(first), first).mixture
    assert chosen is not None
    again = question(current=chosen)
    found = fit_decision(rows(again), again)
    assert found.mixture is not None
    assert found.mixture.distance(chosen) < 0.05, "the same losses lead to the same mixture"


def test_caps_hold_for_single_old_domains() -> None:
    asked = question(upper={"a": 0.15, "b": 1.0, "x": 1.0, "y": 1.0})
    found = fit_decision(rows(asked), asked)
    assert found.mixture is not None
    assert found.mixture["a"] <= 0.15 + 1e-6
    assert found.mixture["b"] == pytest.approx(found.mixture["a"] / 3)


def test_the_decision_is_written_over_domains() -> None:
    asked = question()
    candidates = rows(asked)
    found = fit_decision(candidates, asked)
    checked = replace(min(candidates, key=lambda row: row.objective), run="proposal")
    decision = conclude(candidates, checked, found, asked, index=0, step=5, stage="s")
    assert decision.kept == "proposal"
    assert list(decision.mixture) == list(DOMAINS)
    assert sum(decision.mixture.values()) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_more_of_the_new_never_helps_the_old(seed: int) -> None:
    """Short probes hardly move the sets of old data; noise must not read that as what new data do for them."""
    asked = question()
    rng = np.random.default_rng(seed)
    told = [
        replace(row, losses=row.losses | {name: 3 + rng.normal(0, 0.002) for name in "ab"})
        for row in rows(asked, count=6)
    ]
    law = fit_decision(told, asked).law
    assert law is not None
    at = np.array([[0.8, 0.1, 0.1], [0.2, 0.4, 0.4]])
    less, more = law.predict(at)
    assert (more[:2] > less[:2]).all()
    assert (more[2:] < less[2:]).all()
