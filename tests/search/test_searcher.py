"""The order of candidates does not depend on evaluators, and a cut-off search goes on where it was."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from opmix_ray.mixture import Mixture
from opmix_ray.search.components import Components
from opmix_ray.search.rows import TrialRow
from opmix_ray.search.searcher import PROPOSAL, MixtureSearch
from opmix_ray.search.space import Simplex
from opmix_ray.train.probes import probe_data

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
        "nats/x": [value, value],
        "targets/x": [1, 1],
    }


def search(
    sampler: str = "gp",
    *,
    evaluators: int = 2,
    order: int = 0,
    recorded: dict[str, TrialRow] | None = None,
    trials: int = 11,
    broken: dict[str, dict[str, Any] | None] | None = None,
) -> tuple[MixtureSearch, list[TrialRow]]:
    """Run a search with trials that end in a random order."""
    made: list[TrialRow] = []
    found = MixtureSearch(
        Simplex(PARTS),
        sampler=sampler,
        seed=5,
        trials=trials,
        round_size=3,
        start=[PARTS.weights_for(OLD), PARTS.weights_for(Mixture.uniform(DOMAINS))],
        recorded=recorded or {},
        on_row=made.append,
        propose=lambda rows: PARTS.weights_for(Mixture.from_array(DOMAINS, [0.25, 0.25, 0.5])),
    )
    rng = random.Random(order)
    running: list[tuple[str, list[float]]] = []
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
                running.append((f"t{number}", answer["weights"]))
        if not running:
            assert over
            break
        trial, weights = running.pop(rng.randrange(len(running)))
        run = found._running[trial][0]
        result = (broken or {}).get(run, measure(weights))
        found.on_trial_complete(trial, result, error=result is None)
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
    bad = measure([1, 0, 0, 0]) | {"objective": 1e3, "finite": False, "nats/x": [math.nan, 1.0]}
    found, _ = search(broken={"004": bad, "005": None})
    rows = {row.run: row for row in found.ordered()}
    assert rows["004"].status == "nan"
    assert math.isnan(rows["004"].objective)
    assert rows["005"].status == "failed"
    assert len(rows) == 11
    values = [trial.value for trial in found.study.trials if trial.value is not None]
    assert all(math.isfinite(value) for value in values)
    assert found.study.best_value == min(row.objective for row in rows.values() if row.usable)


def test_every_trial_of_the_study_is_told() -> None:
    found, _ = search()
    assert [trial.state.name for trial in found.study.trials] == ["COMPLETE"] * 11
