"""A decision minimises what is asked for, also where counting alone decides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opmix_ray.config import ProposalConfig
from opmix_ray.config.objective import Limit, Objective, weighted
from opmix_ray.counts.ceilings import DataResponse
from opmix_ray.counts.ngrams import DataLeft, count_ngrams
from opmix_ray.decision.choice import aimed
from opmix_ray.decision.data_law import Known
from opmix_ray.decision.rule import Decision, DecisionInputs, conclude, fit, fit_decision
from opmix_ray.mixture import Mixture
from opmix_ray.trials.space import Components

DOMAINS = ("easy", "middle", "hard")
VOCABULARY, LENGTH = 96, 32
WIDTH = {"easy": 2, "middle": 5, "hard": 16}  # words that may follow one: the hard set's loss is highest


def text(name: str, seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of a Markov chain on the domain's own part of the vocabulary."""
    rng = np.random.default_rng([seed, WIDTH[name]])
    ids = np.zeros((rows, LENGTH), np.int64)
    for column in range(1, LENGTH):
        ids[:, column] = (ids[:, column - 1] * 5 + rng.integers(0, WIDTH[name], rows)) % 32
    return ids + 32 * DOMAINS.index(name), np.ones((rows, LENGTH), bool)


def question(**changes: Any) -> DecisionInputs:
    """What counting alone answers: three domains, and a set like each of them."""
    data = DataLeft(4000.0, np.zeros(3), np.full(3, 100.0 * LENGTH))
    held = {name: text(name, 9, 20) for name in DOMAINS}
    counted = count_ngrams(held, {name: text(name, 1, 100) for name in DOMAINS}, VOCABULARY)
    even = np.full(3, 1 / 3)
    fields: dict[str, Any] = {
        "components": Components(DOMAINS, DOMAINS, np.eye(3)),
        "sets": DOMAINS,
        "objective": weighted("loss", dict.fromkeys(DOMAINS, 1.0)),
        "current": Mixture.uniform(DOMAINS),
        "prior": Mixture.uniform(DOMAINS),
        "lower": {},
        "upper": {},
        "settings": ProposalConfig(prior="current"),
        "seed": 0,
        "steps": 100.0,
        "known": Known({name: one.for_the_set(even, data) for name, one in counted.items()}, data),
        "free": {},
    }
    return DecisionInputs(**(fields | changes))


def decide(asked: DecisionInputs) -> Decision:
    return conclude([], None, fit_decision([], asked), asked, index=0, step=0, stage="s")


def greatest(losses: Any) -> float:
    return max(losses.values())


WORST = replace(weighted("loss", dict.fromkeys(DOMAINS, 1.0)), kind="worst", unit="worst", own=greatest)
SIZES = {"easy": 2.0, "middle": 3.0, "hard": 5.0}


def aims() -> dict[str, Objective]:
    even = dict.fromkeys(DOMAINS, 1.0)
    return {kind: weighted(kind, even, SIZES) for kind in ("loss", "perplexity", "bits_per_byte")} | {
        "worst": WORST
    }


@pytest.mark.parametrize("kind", ["loss", "perplexity", "bits_per_byte", "worst"])
def test_the_law_has_the_objectives_value_and_slopes(kind: str) -> None:
    law = fit([], question(objective=aims()[kind]))
    at, step = np.array([[0.2, 0.5, 0.3]]), 1e-6
    predicted = dict(zip(DOMAINS, law.predict(at)[0].tolist(), strict=True))
    assert law.objective(at)[0] == pytest.approx(aims()[kind].at(predicted))
    moved = step * np.eye(3)
    slopes = (law.objective(at + moved) - law.objective(at - moved)) / (2 * step)
    np.testing.assert_allclose(law.gradient(at)[0], slopes, rtol=1e-4)


def test_the_standard_error_follows_the_slopes() -> None:
    plain = fit([], question())
    at = np.array([[0.1, 0.2, 0.7]])
    in_bits = aimed(
        plain, weighted("bits_per_byte", dict.fromkeys(DOMAINS, 1.0), dict.fromkeys(DOMAINS, 2.0))
    )
    assert in_bits.objective_std(at) == pytest.approx(plain.objective_std(at) / math.log(2) / 2)


@pytest.mark.seconds
def test_perplexity_gives_more_to_the_set_of_high_loss() -> None:
    by_loss, by_perplexity = decide(question()), decide(question(objective=aims()["perplexity"]))
    assert by_perplexity.kept == "proposal"
    assert by_perplexity.mixture["hard"] > by_loss.mixture["hard"] + 0.05
    assert "perplexity lower with the proposal" in by_perplexity.reason
    law = fit([], question(objective=aims()["perplexity"]))
    values = law.objective(
        np.array([Mixture(decision.mixture).array(law.domains) for decision in (by_perplexity, by_loss)])
    )
    assert values[0] < values[1]


@pytest.mark.seconds
def test_another_unit_of_the_same_objective_is_the_same_decision() -> None:
    in_bits = weighted("bits_per_byte", dict.fromkeys(DOMAINS, 1.0), dict.fromkeys(DOMAINS, 0.5))
    in_nats = decide(question())
    assert decide(question(objective=in_bits)).mixture == pytest.approx(in_nats.mixture, abs=2e-3)


@pytest.mark.seconds
def test_a_packages_own_number_is_minimised() -> None:
    decision = decide(question(objective=WORST))
    law = fit([], question(objective=WORST))
    pool = np.random.default_rng(0).dirichlet(np.ones(3), 4000)
    found = law.objective(Mixture(decision.mixture).array(law.domains)[None])[0]
    assert found < law.objective(np.full((1, 3), 1 / 3))[0] - 0.05
    assert found < law.objective(pool).min() + 0.05 * math.log(3)  # what the KL term may cost


def limited(given: float | str, name: str = "middle", **changes: Any) -> tuple[DecisionInputs, Decision]:
    """A decision for the hard set alone, which leaves nothing to the others, under a limit on one of them."""
    fields: dict[str, Any] = {
        "objective": weighted("loss", {"easy": 0.0, "middle": 0.0, "hard": 1.0}),
        "now": {"easy": 1.6, "middle": 2.4, "hard": 3.9},
        "limits": {name: Limit.read(name, given)},
    }
    asked = question(**(fields | changes))
    return asked, decide(asked)


def ends(asked: DecisionInputs, decision: Decision, name: str) -> tuple[float, float]:
    """Prediction of a set and its 95 % bound at the decision's mixture."""
    law = fit([], asked)
    shares = Mixture(decision.mixture).array(law.domains)[None]
    response = law.responses[law.metric_names.index(name)]
    error = law.details["level_errors"][name]
    return float(response.predict(shares)[0]), float(
        response.predict(shares)[0] + 1.645 * math.hypot(response.std(shares)[0], error)
    )


@pytest.mark.seconds
def test_a_limit_that_binds_is_kept_at_its_95_percent_bound() -> None:
    free, decision = limited(9.0)
    _, bound = ends(free, decision, "middle")
    assert "none binds" in decision.reason
    ceiling = bound - 0.08
    asked, held = limited(ceiling)
    assert held.kept == "proposal"
    assert held.mixture["middle"] > decision.mixture["middle"]
    assert ends(asked, held, "middle")[1] == pytest.approx(ceiling, abs=2e-3)
    assert ends(asked, held, "middle")[1] <= ceiling + 2e-5
    assert "the limit on `middle`" in held.reason
    assert "binds" in held.reason
    told = held.details["limits"]["middle"]
    assert (told["kept"], told["binds"]) == (True, True)
    assert told["ceiling"] == pytest.approx(ceiling)


@pytest.mark.seconds
def test_a_limit_that_nothing_keeps_says_so_and_comes_near() -> None:
    asked, decision = limited(0.5)
    assert "no mixture keeps the limit on `middle` (at most 0.5" in decision.reason
    told = decision.details["limits"]["middle"]
    assert (told["kept"], told["confidence"]) == (False, 0.0)
    assert "this one comes near it" in decision.reason
    pool = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    response = fit([], asked).responses[1]
    free = Mixture(limited(9.0)[1].mixture).array(DOMAINS)
    least, most = response.predict(pool).min(), response.predict(free[None])[0]
    reached = ends(asked, decision, "middle")[0]
    assert reached <= least + 0.1 * (most - least) + 1e-3, "near it"
    assert reached > least + 0.02 * (most - least), "but not where the other sets pay most"


@pytest.mark.seconds
@pytest.mark.parametrize(("confidence", "z", "surer"), [(0.8, 0.842, 1.645), (0.5, 0.0, 0.842)])
def test_a_limit_that_cannot_be_promised_is_kept_with_less_confidence(
    confidence: float, z: float, surer: float
) -> None:
    free, unlimited = limited(9.0)
    law = fit([], free)
    response, error = law.responses[1], law.details["level_errors"]["middle"]
    pool = np.random.default_rng(0).dirichlet(np.ones(3), 2000)

    def least(z: float) -> float:
        return float((response.predict(pool) + z * np.hypot(response.std(pool), error)).min())

    ceiling = 0.5 * (least(z) + least(surer))
    asked, decision = limited(ceiling)
    expected, bound = ends(asked, decision, "middle")
    assert expected + z / 1.645 * (bound - expected) == pytest.approx(ceiling, abs=2e-3), "no more than that"
    told = decision.details["limits"]["middle"]
    assert (told["kept"], told["confidence"]) == (False, confidence)
    assert f"with 95 % confidence; this one keeps it with {100 * confidence:g} %" in decision.reason
    assert unlimited.mixture["middle"] < decision.mixture["middle"]


@pytest.mark.seconds
def test_a_limit_out_of_reach_costs_another_one_nothing() -> None:
    free, _ = limited(9.0)
    law = fit([], free)
    easy = law.responses[0]
    pool = np.random.default_rng(0).dirichlet(np.ones(3), 2000)
    bounds = easy.predict(pool) + 1.645 * np.hypot(easy.std(pool), law.details["level_errors"]["easy"])
    ceiling = float(np.quantile(bounds, 0.1))
    both = {"easy": Limit.read("easy", ceiling), "middle": Limit.read("middle", 0.5)}
    _, decision = limited(0.5, limits=both)
    told = decision.details["limits"]
    assert (told["easy"]["kept"], told["middle"]["confidence"]) == (True, 0.0)
    assert "no mixture keeps the limit on `middle`" in decision.reason
    assert "`easy`" not in decision.reason.split("no mixture")[1]
    _, alone = limited(0.5)
    assert decision.mixture["middle"] < alone.mixture["middle"]
    assert decision.details["limits"]["middle"]["predicted"] > alone.details["limits"]["middle"]["predicted"]


@pytest.mark.seconds
def test_a_relative_limit_is_measured_from_the_loss_of_now() -> None:
    # A model below what counting says stays where it is under the mixture in force, and no lower.
    now = {"easy": 0.3, "middle": 0.8, "hard": 1.5}
    free, decision = limited(9.0, now=now)
    assert ends(free, decision, "middle")[0] > 0.8 + 0.02
    asked, held = limited("now", now=now)
    assert ends(asked, held, "middle")[1] == pytest.approx(0.8, abs=2e-3)
    _, looser = limited("+1 %", now=now)
    assert held.mixture["hard"] < looser.mixture["hard"] < decision.mixture["hard"]


@pytest.mark.seconds
def test_a_limit_pulls_the_mixture_in_force_too() -> None:
    poor = Mixture({"easy": 0.05, "middle": 0.05, "hard": 0.9})
    now = {"easy": 0.3, "middle": 0.8, "hard": 1.5}
    fields = {"current": poor, "before": Mixture({"easy": 0.2, "middle": 0.6, "hard": 0.2}), "now": now}
    _, decision = limited("+3 %", **fields)
    assert decision.kept == "proposal"
    assert decision.mixture["middle"] > poor["middle"] + 0.1
    assert decision.details["limits"]["middle"]["kept"]
    assert decision.details["limits"]["middle"]["at_95"] <= 0.8 * 1.03 + 2e-5
    assert "higher with" in decision.reason


def test_levels_lie_just_below_counting_seen_from_now() -> None:
    asked = question(now={"easy": 4.2, "middle": 4.2, "hard": 4.2})
    counted, law = fit([], question()), fit([], asked)
    for before, after, name in zip(counted.responses, law.responses, DOMAINS, strict=True):
        assert isinstance(before, DataResponse)
        assert isinstance(after, DataResponse)
        assert after.level == pytest.approx(before.level - 0.08 * (4.2 - before.level))
        error = math.hypot(0.17 * (4.2 - before.level), 0.05)
        assert law.details["level_errors"][name] == pytest.approx(error)
