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
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.searcher import PROPOSAL, Asked, MixtureSearch, Scored, Turns
from opmix_ray.trials.space import Components, Simplex

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


class Simulated:
    """Evaluators of this process, whose turns end in a random order; the real `Turns` deal out the candidates."""

    def __init__(
        self,
        evaluators: int = 2,
        retries: int = 0,
        order: int = 0,
        broken: dict[str, dict[str, Any] | None] | None = None,
        fails: Callable[[list[str]], bool] = lambda runs: False,
    ) -> None:
        self.given: dict[str, list[np.ndarray]] = {}
        self.turns = Turns(self.given.__setitem__, evaluators=evaluators, retries=retries)
        self.score = self.turns.score
        self._evaluators, self._broken, self._fails = evaluators, broken or {}, fails
        self._rng = random.Random(order)
        self._live: list[str] = []
        self._begun = 0

    def begin(self) -> str:
        """Let one more turn begin."""
        self._begun += 1
        turn = f"t{self._begun}"
        assert self.turns.suggest(turn) == {"turn": turn}
        self.turns.begin(turn)
        return turn

    def next(self) -> Scored:
        while self.turns.done.empty():
            while len(self._live) < self._evaluators:
                self._live.append(self.begin())
            turn = self._rng.choice([turn for turn in self._live if turn in self.given])
            self._live.remove(turn)
            self.end(turn)
        return self.turns.next()

    def end(self, turn: str) -> None:
        runs = [run for run, _ in self.turns.working[turn]]
        scored = [
            self._broken.get(run, measure(weights.tolist()))
            for run, weights in zip(runs, self.given.pop(turn), strict=True)
        ]
        failed = None in scored or self._fails(runs)
        self.turns.on_trial_complete(turn, None if failed else {"scored": scored}, error=failed)


def search(
    sampler: str = "gp", *, recorded: dict[str, TrialRow] | None = None, trials: int = 11, **evaluators: Any
) -> tuple[MixtureSearch, list[TrialRow]]:
    """Run a search of three domains in rounds of three, and its proposal."""
    made: list[TrialRow] = []
    found = MixtureSearch(
        Simplex(PARTS),
        Simulated(**evaluators),
        sampler=sampler,
        seed=5,
        trials=trials,
        round_size=3,
        start=[PARTS.weights_for(OLD), PARTS.weights_for(Mixture.uniform(DOMAINS))],
        recorded=recorded or {},
        on_row=made.append,
    )
    assert [row.run for row in found.candidates()] == [f"{i:03d}" for i in range(trials)]
    found.check(PARTS.weights_for(Mixture.from_array(DOMAINS, [0.25, 0.25, 0.5])))
    return found, made


def ordered(found: MixtureSearch) -> list[TrialRow]:
    return [row for run, row in sorted(found.rows.items()) if run != PROPOSAL]


def table(found: MixtureSearch) -> list[list[float]]:
    return [list(row.weights.values()) for row in ordered(found)]


@pytest.mark.parametrize("sampler", ["gp", "tpe", "qmc", "cmaes", "random"])
@pytest.mark.seconds
def test_candidates_do_not_depend_on_evaluators_or_on_which_is_first(sampler: str) -> None:
    one, _ = search(sampler, evaluators=1)
    many, _ = search(sampler, evaluators=4, order=3)
    assert table(one) == table(many)
    assert len(table(one)) == 11


@pytest.mark.parametrize("sampler", ["gp", "tpe", "qmc", "cmaes", "random"])
@pytest.mark.parametrize("kept", [0, 1, 4, 11])
@pytest.mark.seconds
def test_a_cut_off_search_makes_exactly_the_missing_candidates(sampler: str, kept: int) -> None:
    whole, made = search(sampler)
    recorded = {row.run: row for row in made[:kept]}
    again, new = search(sampler, recorded=recorded)
    assert table(again) == table(whole)
    assert {row.run for row in new} == {row.run for row in made} - set(recorded)


@pytest.mark.seconds
def test_a_finished_search_makes_nothing() -> None:
    _, made = search()
    again, new = search(recorded={row.run: row for row in made})
    assert new == []
    assert again.rows[PROPOSAL].run == PROPOSAL


@pytest.mark.seconds
def test_the_first_candidate_is_the_mixture_in_force() -> None:
    found, _ = search()
    assert ordered(found)[0].ratios == pytest.approx(OLD.shares)
    assert ordered(found)[1].ratios == pytest.approx(dict.fromkeys(DOMAINS, 1 / 3))


@pytest.mark.seconds
def test_the_gaussian_process_finds_better_mixtures_than_chance() -> None:
    gp = min(row.objective for row in ordered(search("gp", trials=24)[0]))
    chance = min(row.objective for row in ordered(search("random", trials=24)[0]))
    assert gp < chance
    assert gp - 2 < 0.01


@pytest.mark.seconds
def test_a_loss_that_is_not_a_number_is_flagged_and_never_wins() -> None:
    bad = measure([1, 0, 0, 0]) | {"objective": 1e3, "finite": False, "nats": {"x": [math.nan, 1.0]}}
    found, _ = search(broken={"004": bad, "008": None})
    rows = {row.run: row for row in ordered(found)}
    assert rows["004"].status == "nan"
    assert math.isnan(rows["004"].objective)
    assert rows["008"].status == "failed"
    assert len(rows) == 11
    values = [trial.value for trial in found.study.trials if trial.value is not None]
    assert all(math.isfinite(value) for value in values)
    assert found.study.best_value == min(row.objective for row in rows.values() if row.usable)


def candidates(count: int) -> list[Asked]:
    return [(f"{number:03d}", PARTS.weights_for(OLD)) for number in range(count)]


def test_a_candidate_whose_evaluator_fails_comes_again_first() -> None:
    evaluators = Simulated(retries=2)
    turns = evaluators.turns
    turns.score(candidates(9))
    first, second = evaluators.begin(), evaluators.begin()
    for _ in range(2):
        assert turns.working[first][0][0] == "000"
        turns.on_trial_complete(first, None, error=True)
        first = evaluators.begin()
    evaluators.end(second)
    assert turns.next()[0] == "001"
    assert turns.working[first][0][0] == "000"
    turns.on_trial_complete(first, None, error=True)
    run, _, result = turns.next()
    assert (run, result) == ("000", None)
    assert turns.done.empty()


@pytest.mark.parametrize("evaluators", [1, 3])
def test_evaluators_that_fail_now_and_then_change_no_candidate(evaluators: int) -> None:
    plain, _ = search(trials=9)
    rng = random.Random(2)
    failed = 0

    def fails(runs: list[str]) -> bool:
        nonlocal failed
        fail = rng.random() < 0.4
        failed += fail * len(runs)
        return fail

    found, made = search(trials=9, evaluators=evaluators, retries=50, fails=fails)
    assert failed > 3
    assert table(found) == table(plain)
    assert {row.status for row in made} == {"ok"}


@pytest.mark.parametrize("evaluators", [1, 3])
def test_a_proposal_whose_evaluator_fails_is_made_again(evaluators: int) -> None:
    left = [True, True]
    found, made = search(
        trials=6,
        evaluators=evaluators,
        retries=2,
        fails=lambda runs: PROPOSAL in runs and bool(left) and left.pop(),
    )
    assert not left
    assert found.rows[PROPOSAL].status == made[-1].status == "ok"


@pytest.mark.seconds
def test_every_trial_of_the_study_is_told() -> None:
    found, _ = search()
    assert [trial.state.name for trial in found.study.trials] == ["COMPLETE"] * 11


def test_an_idle_evaluator_waits_for_the_next_candidate() -> None:
    evaluators = Simulated(evaluators=3)
    turns = evaluators.turns
    turns.score(candidates(2))
    first, second, idle = (evaluators.begin() for _ in range(3))
    assert set(turns.working) == set(evaluators.given) == {first, second}
    turns.score([(PROPOSAL, PARTS.weights_for(OLD))])
    assert [run for run, _ in turns.working[idle]] == [PROPOSAL]


def test_a_turn_that_does_not_begin_keeps_no_candidate() -> None:
    evaluators = Simulated()
    evaluators.turns.score(candidates(3))
    evaluators.turns.suggest("no place for it")
    for number in range(3):
        evaluators.end(evaluators.begin())
        assert evaluators.turns.next()[0] == f"{number:03d}"


def test_evaluators_take_several_short_candidates_and_leave_the_others_their_part() -> None:
    evaluators = Simulated(evaluators=2)
    turns = evaluators.turns
    turns.score(candidates(7))
    evaluators.end(evaluators.begin())  # now it is known that they are short
    taken = [len(turns.working[evaluators.begin()]) for _ in range(3)]
    assert taken == [3, 2, 1]


def test_at_the_end_evaluators_that_wait_go_home() -> None:
    evaluators = Simulated()
    turn = evaluators.begin()
    evaluators.turns.close()
    assert evaluators.given == {turn: []}
    assert evaluators.turns.suggest("another") == "FINISHED"
    late = "began late"
    evaluators.turns.begin(late)
    assert evaluators.given[late] == []
