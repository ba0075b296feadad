"""Sizes of a decision within its budget, and the choice of least expected regret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.config import RunConfig, dump_config, load_config, make_config
from opmix_ray.decision.budget import (
    FOR_CHECKING,
    FORWARD,
    LEAST_CHECKING,
    PROBE,
    TRAIN,
    Size,
    decision_size,
    sized,
)
from opmix_ray.decision.choice import Choice, choose
from opmix_ray.laws.base import Constant
from opmix_ray.laws.fitted import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.output.state import identity


def config(steps: int, **sections: object) -> RunConfig:
    tree = {
        "data": {"seq_len": 128, "domains": {name: {"path": f"{name}.jsonl"} for name in "abcd"}},
        "train": {"batch_size": 16},
        "stages": [{"name": "s", "steps": steps, "decide_at": [0.1, 0.5]}],
    }
    return make_config(tree | sections)


@pytest.mark.parametrize("steps", [400, 1000, 3000, 20000])
@pytest.mark.parametrize("components", [2, 8, 32])
def test_all_decisions_together_cost_at_most_the_budget(steps: int, components: int) -> None:
    run = config(steps)
    size = sized(run, run.stages[0], components=components, sets=4)
    assert 2 * size.share <= run.search.budget  # type: ignore[operator]
    if size.probe is not None:
        probe = size.probe
        count = components + probe.check
        assert probe.batch_size is not None
        cost = (
            count * probe.steps * probe.batch_size * PROBE
            + (size.trials + 1 + probe.check) * size.sequences * 4 * FORWARD
        )
        assert cost / (steps * 16 * TRAIN) == pytest.approx(size.share)


def test_a_short_stage_has_no_probes_and_a_long_one_the_configured_ones() -> None:
    short, long = config(60), config(200_000)
    assert sized(short, short.stages[0], components=4, sets=4).probe is None
    size = sized(long, long.stages[0], components=4, sets=4)
    assert size.probe is not None
    assert (size.probe.steps, size.probe.batch_size) == (25, 16)
    assert (size.trials, size.sequences) == (12, 32)


@pytest.mark.parametrize("steps", [400, 3000, 20000, 200000])
def test_where_every_set_is_counted_probes_are_long_and_cost_a_fifth(steps: int) -> None:
    run = config(steps)
    size = decision_size(run, run.stages[0], components=4)
    assert 2 * size.share <= FOR_CHECKING * run.search.budget  # type: ignore[operator]
    if steps <= 3000:
        assert size.probe is None
        assert "probes that check what is counted (1 % of" in size.words
    else:
        assert size.probe is not None
        assert size.probe.steps >= LEAST_CHECKING


def test_weights_that_have_seen_nothing_are_not_probed_and_leave_the_budget_to_later_decisions(
    tmp_path: Path,
) -> None:
    def sizes(**sections: Any) -> list[Size]:
        stage = {"name": "s", "steps": 100_000, "decide_at": [0.0, 0.1]}
        run = config(0, stages=[stage, {**stage, "name": "t"}], **sections)
        return [
            decision_size(run, run.stages[number], components=4, first=first)
            for number, first in ((0, True), (0, False), (1, False))
        ]

    begun, later, next_stage = sizes()
    assert (begun.probe, begun.share) == (None, 0)
    assert begun.words == "nothing is learned yet: the mixture comes from counting alone"
    assert "for 1 decision(s)" in later.words
    assert "for 2 decision(s)" in next_stage.words
    run = config(
        0,
        stages=[
            {"name": name, "steps": 100_000, "decide_at": [0.0, 0.1], "restart": name == "t"} for name in "st"
        ],
    )
    again, later = (decision_size(run, run.stages[1], components=4, first=first) for first in (True, False))
    assert again.words == begun.words  # weights that a stage begins anew have seen nothing either
    assert "for 1 decision(s)" in later.words
    (tmp_path / "config.json").write_text("{}")
    for known in ({"model": {"path": str(tmp_path)}}, {"probe": {"steps": 25}}):
        first, second, _ = sizes(**known)
        assert first.probe is not None
        assert "for 2 decision(s)" in second.words


@pytest.mark.parametrize(
    "sections",
    [
        {"probe": {"steps": 4}},
        {"search": {"trials": 9}},
        {"proposal": {"law": "log-linear"}},
        {"evaluation": {"sets": {"q": {"path": "q.jsonl", "metric": "choice"}}, "weights": {"q": 1}}},
    ],
)
def test_who_asks_for_probes_or_has_questions_gets_the_whole_budget(sections: dict[str, Any]) -> None:
    run = config(1000, **sections)
    size = decision_size(run, run.stages[0], components=4)
    assert size.probe is not None
    assert size.share > FOR_CHECKING * run.search.budget / 2  # type: ignore[operator]


def test_a_law_that_needs_probes_has_them_in_a_short_stage_too() -> None:
    short = config(60, proposal={"law": "log-linear"})
    size = sized(short, short.stages[0], components=4, sets=4)
    assert size.probe is short.probe
    assert size.sequences == short.search.sequences
    assert "proposal.law log-linear needs them" in size.words


def test_what_is_set_by_hand_stays() -> None:
    run = config(1000, probe={"steps": 7}, search={"trials": 20})
    size = sized(run, run.stages[0], components=4, sets=1)
    assert size.probe is not None
    assert (size.probe.steps, size.trials) == (7, 20)
    assert "by hand: probe.steps, search.trials" in size.words


@pytest.mark.parametrize("given", [{}, {"probe": {"steps": 25}}, {"search": {"trials": 12, "sequences": 32}}])
def test_what_is_written_down_and_read_again_is_sized_alike(given: dict[str, object], tmp_path: Path) -> None:
    """Every worker of `compare --parallel`, and whoever runs an output's config.yaml again, reads what was written."""
    run = config(1000, **given)
    (tmp_path / "run.yaml").write_text(dump_config(run))
    again = load_config(tmp_path / "run.yaml")
    first, second = (sized(each, each.stages[0], components=4, sets=4) for each in (run, again))
    assert (first.words, first.sequences) == (second.words, second.sequences)
    assert (identity(run) == identity(config(1000))) == (not given)  # given by hand, it is another run


def test_no_budget_changes_nothing() -> None:
    run = config(10, search={"budget": None})
    assert sized(run, run.stages[0], components=4, sets=4).probe is run.probe


def test_a_budget_of_nothing_counts_alone_and_says_why() -> None:
    run = config(1000, search={"budget": 0})
    size = sized(run, run.stages[0], components=4, sets=4, counted=True)
    assert (size.probe, size.share) == (None, 0)
    assert size.words == "search.budget is 0: the mixture comes from counting alone"


def law(slope: np.ndarray) -> FittedLaw:
    class Linear(Constant):
        def predict(self, ratios: np.ndarray) -> np.ndarray:
            return 3.0 + ratios @ slope

        def std(self, ratios: np.ndarray) -> np.ndarray:
            return np.full(len(ratios), 0.01)

    return FittedLaw("l", ["a", "b"], ["m"], np.ones(1), [Linear(0.0)])


def test_the_mixture_of_least_expected_loss_is_chosen_and_the_one_in_force_is_among_them() -> None:
    current, other = Mixture({"a": 0.5, "b": 0.5}), Mixture({"a": 0.9, "b": 0.1})
    better = choose(law(np.array([-1.0, 0.0])), {"proposal": other}, current)
    assert better.name == "proposal"
    assert better.gain == pytest.approx(0.4)
    assert better.low < better.gain < better.high
    worse = choose(law(np.array([1.0, 0.0])), {"proposal": other}, current)
    assert worse.name == Choice.CURRENT
    assert worse.gain == 0.0
