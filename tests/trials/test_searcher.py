"""The order of candidates does not depend on evaluators, and a cut-off search goes on where it was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opmix_ray.decision.old_part import probe_data
from opmix_ray.mixture import Mixture
from opmix_ray.trials.components import Components
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.searcher import PROPOSAL, MixtureSearch
from opmix_ray.trials.space import Simplex

DOMAINS = ("a", "b", "c")
NAMES = ("old", *DOMAINS)
OLD = Mixture({"a": 0.5, "b": 0.3, "c": 0.2})
PARTS = Components(NAMES, DOMAINS, np.array([probe_data(n, OLD, 0.9).array(DOMAINS) for n in NAMES]))
BEST = np.array([0.2, 0.2, 0.6])


def measure(weights: list[float]) -> dict[str, Any]:
    """A smooth objective with its minimum at BEST, in the form that Tune hands over."""
    value = 2 + float(((PARTS.ratios(np.array(weights)) - BEST) ** 2).sum())
    return {
        "objective": value,
        "finite": True,
        "complete": True,
        "tokens": 10,
        "flops": 1.0,
        "scoring_seconds": 0.1,
        "nats": {"x": [value, value]},
        "targets": {"x": [1, 1]},
    }


def made_search(sampler: str = "gp", **options: Any) -> MixtureSearch:
    """A search of three domains in rounds of three."""
    defaults: dict[str, Any] = {"recorded": {}, "on_row": lambda row: None}
    return MixtureSearch(
        Simplex(PARTS),
        sampler=sampler,
        seed=5,
        round_size=3,
        start=[PARTS.weights_for(OLD), PARTS.weights_for(Mixture.uniform(DOMAINS))],
        propose=lambda rows: PARTS.weights_for(Mixture.from_array(DOMAINS, [0.25, 0.25, 0.5])),
        **(defaults | options),
    )


def search(
    sampler: str = "gp",
    *,
    evaluators: int = 2,
    order: int = 0,
    recorded: dict[str, TrialRow] | None = None,
    trials: int = 11,
    broken: dict[str, dict[str, Any] | None] | None = None,
    fails: Callable[[list[str]], bool] = lambda runs: False,
    **options: Any,
) -> tuple[MixtureSearch, list[TrialRow]]:
    """Run a search with trials that end in a random order."""
    made: list[TrialRow] = []
    found = made_search(
        sampler,
        trials=trials,
        evaluators=evaluators,
        recorded=recorded or {},
        on_row=made.append,
        **options,
    )
    rng = random.Random(order)
    running: list[tuple[str, dict[str, Any]]] = []
    number, over = 0, False
    while not over or running:
        while len(running) < evaluators and not over:
            number += 1
            answer = found.suggest(f"t{number}")
            if answer == "FINISHED":
                over = True
            elif answer is None:
                break
            else:
                assert isinstance(answer, dict)
                running.append((f"t{number}", answer))
        if not running:
            assert over
            break
        trial, config = running.pop(rng.randrange(len(running)))
        if "rest" in config:
            found.on_trial_complete(trial, {"objective": 1e3, "rested": config["rest"]})
            continue
        scored = [
            (broken or {}).get(run, measure(weights))
            for (run, _), weights in zip(found._running[trial], config["batch"], strict=True)
        ]
        lost = None in scored or fails([run for run, _ in found._running[trial]])
        found.on_trial_complete(trial, None if lost else {"scored": scored}, error=lost)
    return found, made


def table(found: MixtureSearch) -> list[list[float]]:
    return [list(row.weights.values()) for row in found.ordered()]


@pytest.mark.parametrize("sampler", ["gp", "tpe", "qmc", "cmaes", "random"])
def test_candidates_do_not_depend_on_evaluators_or_on_which_is_first(sampler: str) -> None:
    one, _ = search(sampler, evaluators=1)
    many, _ = search(sampler, evaluators=4, order=3)
    assert table(one) == table(many)
    assert len(table(one)) == 11


@pytest.mark.parametrize("sampler", ["gp", "tpe", "qmc", "cmaes", "random"])
@pytest.mark.parametrize("kept", [0, 1, 4, 11])
def test_a_cut_off_search_makes_exactly_the_missing_candidates(sampler: str, kept: int) -> None:
    whole, made = search(sampler)
    recorded = {row.run: row for row in made[:kept]}
    again, new = search(sampler, recorded=recorded)
    assert table(again) == table(whole)
    assert {row.run for row in new} == {row.run for row in made} - set(recorded)


def test_a_finished_search_makes_nothing() -> None:
    _, made = search()
    again, new = search(recorded={row.run: row for row in made})
    assert new == []
    assert again.rows[PROPOSAL].run == PROPOSAL


def test_the_first_candidate_is_the_mixture_in_force() -> None:
    found, _ = search()
    assert found.ordered()[0].ratios == pytest.approx(OLD.shares)
    assert found.ordered()[1].ratios == pytest.approx(dict.fromkeys(DOMAINS, 1 / 3))


def test_the_gaussian_process_finds_better_mixtures_than_chance() -> None:
    gp = min(row.objective for row in search("gp", trials=24)[0].ordered())
    chance = min(row.objective for row in search("random", trials=24)[0].ordered())
    assert gp < chance
    assert gp - 2 < 0.01


def test_a_loss_that_is_not_a_number_is_flagged_and_never_wins() -> None:
    bad = measure([1, 0, 0, 0]) | {"objective": 1e3, "finite": False, "nats": {"x": [math.nan, 1.0]}}
    found, _ = search(broken={"004": bad, "008": None})
    rows = {row.run: row for row in found.ordered()}
    assert rows["004"].status == "nan"
    assert math.isnan(rows["004"].objective)
    assert rows["008"].status == "failed"
    assert len(rows) == 11
    values = [trial.value for trial in found.study.trials if trial.value is not None]
    assert all(math.isfinite(value) for value in values)
    assert found.study.best_value == min(row.objective for row in rows.values() if row.usable)


def test_a_candidate_whose_evaluator_fails_comes_again_first() -> None:
    made: list[TrialRow] = []
    found = made_search(trials=9, retries=2, on_row=made.append)
    first = found.suggest("t0")
    second = found.suggest("t1")
    for number in range(1, 3):
        found.on_trial_complete(f"t{2 * number - 2}", None, error=True)
        assert found.suggest(f"t{2 * number}") == first
    found.on_trial_complete("t1", {"scored": [measure(second["batch"][0])]})  # type: ignore[index,call-overload]
    assert [row.run for row in made] == ["001"]
    found.on_trial_complete("t4", None, error=True)
    assert [(row.run, row.status) for row in made] == [("001", "ok"), ("000", "failed")]


@pytest.mark.parametrize("evaluators", [1, 3])
def test_evaluators_that_fail_now_and_then_change_no_candidate(evaluators: int) -> None:
    plain, _ = search(trials=9)
    rng = random.Random(2)
    found, made = search(trials=9, evaluators=evaluators, retries=50, fails=lambda runs: rng.random() < 0.4)
    assert sum(found._failures.values()) > 3
    assert table(found) == table(plain)
    assert {row.status for row in made} == {"ok"}


@pytest.mark.parametrize("evaluators", [1, 3])
def test_a_proposal_whose_evaluator_fails_is_made_again(evaluators: int) -> None:
    failures = iter([True, True])
    found, made = search(
        trials=6,
        evaluators=evaluators,
        retries=2,
        fails=lambda runs: PROPOSAL in runs and next(failures, False),
    )
    assert found._failures == {PROPOSAL: 2}
    assert found.rows[PROPOSAL].status == made[-1].status == "ok"


def test_every_trial_of_the_study_is_told() -> None:
    found, _ = search()
    assert [trial.state.name for trial in found.study.trials] == ["COMPLETE"] * 11


def test_an_idle_evaluator_rests() -> None:
    found = made_search(trials=9)
    given = [found.suggest(f"t{number}") for number in range(7)]
    assert [len(config["batch"]) for config in given[:6]] == [1] * 6  # type: ignore[index,call-overload]
    assert set(given[6]) == {"rest"}  # type: ignore[arg-type]
