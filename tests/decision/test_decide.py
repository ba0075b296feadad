"""From rows to a decision: the interval, the rule, what a broken search does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from opmix_ray.config import ProposalConfig
from opmix_ray.decision.old_part import probe_data
from opmix_ray.decision.rule import (
    Decision,
    DecisionInputs,
    conclude,
    fit_decision,
    measure_gain,
    prior_mixture,
)
from opmix_ray.mixture import Mixture
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.space import Components

DOMAINS = ("a", "b", "c")
NAMES = ("old", *DOMAINS)
OLD = Mixture({"a": 0.6, "b": 0.3, "c": 0.1})
PARTS = Components(NAMES, DOMAINS, np.array([probe_data(n, OLD, 0.9).array(DOMAINS) for n in NAMES]))
SETS = DOMAINS
NEED = {"a": 0.1, "b": 0.2, "c": 0.6}  # how much each set gains from its domain


def question(**changes: object) -> DecisionInputs:
    fields = {
        "components": PARTS,
        "sets": SETS,
        "objective": dict.fromkeys(SETS, 1 / 3),
        "current": OLD,
        "prior": OLD,
        "lower": dict.fromkeys(DOMAINS, 0.01),
        "upper": dict.fromkeys(DOMAINS, 1.0),
        "settings": ProposalConfig(),
        "seed": 0,
        "steps": 200.0,
    }
    return DecisionInputs(**(fields | changes))  # type: ignore[arg-type]


def row(run: str, weights: np.ndarray, *, noise: float = 0.02, shift: float = 0.0) -> TrialRow:
    """A candidate whose loss on a set falls with the logarithm of its domain's share; sequences differ alike."""
    ratios = dict(zip(DOMAINS, PARTS.ratios(weights).tolist(), strict=True))
    rng = np.random.default_rng([1, sum(run.encode())])
    nats = {}
    for m, name in enumerate(SETS):
        level = 3 - NEED[name] * math.log(ratios[name] + 0.3) + shift
        sequences = np.random.default_rng(m).normal(0, 0.5, 40)  # the same for every candidate
        nats[name] = ((level + sequences + rng.normal(0, noise, 40)) * 10).tolist()
    losses = {name: sum(values) / 400 for name, values in nats.items()}
    return TrialRow(
        run=run,
        weights=dict(zip(NAMES, weights.tolist(), strict=True)),
        ratios=ratios,
        losses=losses,
        objective=sum(losses.values()) / 3,
        nats=nats,
        targets={name: [10] * 40 for name in SETS},
    )


def rows(count: int = 14) -> list[TrialRow]:
    draws = np.random.default_rng(3).dirichlet(np.ones(4), size=count - 1)
    return [row("000", np.array([1.0, 0, 0, 0])), *(row(f"{i + 1:03d}", w) for i, w in enumerate(draws))]


def decide(candidates: list[TrialRow], checked: TrialRow | None = None, **changes: object) -> Decision:
    asked = question(**changes)
    found = fit_decision(candidates, asked)
    if checked is None and found.weights is not None:
        checked = row("proposal", found.weights)
    return conclude(candidates, checked, found, asked, index=0, step=10, stage="s")


def test_the_starved_domain_that_matters_gets_more() -> None:
    decision = decide(rows())
    assert decision.kept == "proposal"
    assert decision.mixture["c"] > 0.3
    assert decision.gain is not None
    assert decision.gain["low"] > 0
    assert sum(decision.mixture.values()) == pytest.approx(1)
    assert set(decision.law) == {*SETS, "objective"}


def test_a_gain_that_may_be_nothing_keeps_the_old_mixture() -> None:
    decision = decide(rows(), checked=row("proposal", np.array([1.0, 0, 0, 0]), noise=0.2))
    assert decision.kept == "old"
    assert decision.mixture == OLD.shares
    assert "may be 0" in decision.reason
    assert decision.gain is not None
    assert decision.gain["low"] < 0 < decision.gain["high"]


def test_a_worse_proposal_is_called_worse() -> None:
    decision = decide(rows(), checked=row("proposal", np.array([1.0, 0, 0, 0]), shift=0.1))
    assert decision.kept == "old"
    assert "worse" in decision.reason


@pytest.mark.parametrize("status", ["nan", "failed"])
def test_a_proposal_without_a_loss_keeps_the_old_mixture(status: str) -> None:
    broken = TrialRow("proposal", {}, {}, status=status)  # type: ignore[arg-type]
    assert decide(rows(), checked=broken).kept == "old"


def test_broken_candidates_are_left_out_of_the_law() -> None:
    candidates = rows()
    candidates[3] = replace(
        candidates[3], status="nan", objective=math.nan, losses=dict.fromkeys(SETS, math.nan)
    )
    candidates[5] = TrialRow("005", candidates[5].weights, candidates[5].ratios, status="failed")
    decision = decide(candidates)
    assert decision.usable == 12
    assert decision.kept == "proposal"


def test_too_few_usable_candidates_keep_the_old_mixture() -> None:
    candidates = [rows()[0], *(replace(r, status="failed") for r in rows()[1:])]
    decision = decide(candidates)
    assert decision.kept == "old"
    assert "only 1 of 14" in decision.reason
    assert decision.gain is None


def test_bounds_hold() -> None:
    decision = decide(rows(), upper={"a": 1.0, "b": 1.0, "c": 0.15})
    assert decision.proposal["c"] <= 0.15 + 1e-6


@pytest.mark.parametrize("law", ["log-linear", "linear", "log-share"])
@pytest.mark.seconds
def test_other_laws_can_be_asked_for(law: str) -> None:
    decision = decide(rows(), settings=ProposalConfig(law=law))
    assert decision.law_name == law
    assert decision.proposal["c"] > OLD["c"]


@pytest.mark.seconds
def test_the_interval_covers_the_true_gain_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base = rng.normal(30, 5, 60)
        old = TrialRow("o", {}, {}, nats={"x": base.tolist()}, targets={"x": [10] * 60})
        new = TrialRow(
            "n", {}, {}, nats={"x": (base - 0.5 + rng.normal(0, 1, 60)).tolist()}, targets={"x": [10] * 60}
        )
        gain = measure_gain(old, new, {"x": 1.0}, confidence=0.9, resamples=400, seed=seed)
        covered += gain.low <= 0.05 <= gain.high
    assert 165 <= covered <= 195


def test_the_interval_is_narrow_because_sequences_are_paired() -> None:
    base = np.random.default_rng(0).normal(30, 10, 50)
    old = TrialRow("o", {}, {}, nats={"x": base.tolist()}, targets={"x": [10] * 50})
    new = TrialRow("n", {}, {}, nats={"x": (base - 0.1).tolist()}, targets={"x": [10] * 50})
    gain = measure_gain(old, new, {"x": 1.0}, confidence=0.95, resamples=300, seed=0)
    assert gain.low == pytest.approx(0.01)
    assert gain.high == pytest.approx(0.01)


def test_the_prior_gives_a_new_domain_its_uniform_share() -> None:
    prior = prior_mixture("current", Mixture({"a": 0.8, "b": 0.2, "c": 0.0}), {})
    assert prior.shares == pytest.approx({"a": 0.8 * 2 / 3, "b": 0.2 * 2 / 3, "c": 1 / 3})
    assert prior_mixture("proportional", OLD, {"a": 1, "b": 1, "c": 2})["c"] == 0.5
    assert prior_mixture({"a": 1, "b": 1, "c": 2}, OLD, {})["c"] == 0.5
