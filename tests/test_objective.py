"""What is minimised and what must not get worse: values, slopes, limits, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from opmix_ray.config.objective import Limit, Objective, bytes_per_token_of, weighted
from opmix_ray.data.held_out import search_sets
from opmix_ray.data.prepare import prepare
from opmix_ray.decision.rule import measure_gain
from opmix_ray.errors import UserError
from opmix_ray.runner.check_plan import check_plan
from opmix_ray.runner.plan import in_stage
from opmix_ray.trials.rows import TrialRow
from tests.support import DOMAINS, TinyRun

WEIGHTS = {"a": 1.0, "b": 3.0, "nothing": 0.0}
BYTES = {"a": 4.0, "b": 3.5, "nothing": None}
LOSSES = np.array([2.0, 3.0])


@pytest.mark.parametrize(
    ("kind", "value", "unit"),
    [
        ("loss", 0.25 * 2 + 0.75 * 3, "nats per token"),
        ("perplexity", 0.25 * math.exp(2) + 0.75 * math.exp(3), "perplexity"),
        ("bits_per_byte", (0.25 * 2 / 4 + 0.75 * 3 / 3.5) / math.log(2), "bits per byte"),
    ],
)
def test_each_objective_is_a_mean_of_its_own_and_its_gradient_is_the_slope(
    kind: str, value: float, unit: str
) -> None:
    objective = weighted(kind, WEIGHTS, BYTES)
    assert objective.sets == ("a", "b")
    assert objective.weights.tolist() == [0.25, 0.75]
    assert objective.unit == unit
    assert objective.value(LOSSES) == pytest.approx(value)
    assert objective.at({"a": 2.0, "b": 3.0, "nothing": math.nan}) == pytest.approx(value)
    assert math.isnan(objective.at({"a": 2.0}))
    many = np.random.default_rng(0).uniform(0.5, 6, (4, 3, 2))
    assert objective.value(many).shape == (4, 3)
    step = 1e-6 * np.eye(2)
    slope = (objective.value(many[..., None, :] + step) - objective.value(many[..., None, :] - step)) / 2e-6
    np.testing.assert_allclose(objective.gradient(many), slope, rtol=1e-5)


def test_a_set_of_high_loss_counts_for_more_in_perplexity() -> None:
    objective = weighted("perplexity", {"a": 1, "b": 1})
    assert objective.weights_at({"a": 2.0, "b": 2.0}) == pytest.approx({"a": 0.5, "b": 0.5})
    near = objective.weights_at({"a": 2.0, "b": 4.0})
    assert near["b"] / near["a"] == pytest.approx(math.exp(2))
    assert objective.value(np.array([2.0, 1e4])) == math.inf


def test_bytes_per_token_are_found_again_in_a_row() -> None:
    row = {"losses": {"a": 2.0, "quiz": 0.4}, "bits_per_byte": {"a": 2.0 / math.log(2) / 3.7}}
    assert bytes_per_token_of(row) == pytest.approx({"a": 3.7})


def scored(means: list[float], seed: int) -> TrialRow:
    rng = np.random.default_rng(seed)
    targets = rng.integers(20, 32, (2, 24))
    nats = {n: m * t + rng.normal(0, 0.1, 24) for n, m, t in zip("ab", means, targets, strict=True)}
    return TrialRow("000", {}, {}, nats=nats, targets=dict(zip("ab", targets, strict=True)))


def test_a_gain_is_in_the_objectives_unit() -> None:
    old, new = scored([3.0, 4.0], 1), scored([3.0, 3.9], 1)
    gains = {
        kind: measure_gain(old, new, weighted(kind, {"a": 1, "b": 1}), confidence=0.95, resamples=400, seed=0)
        for kind in ("loss", "perplexity")
    }
    assert gains["loss"].mean == pytest.approx(0.05, abs=1e-3)
    assert gains["loss"].unit == "nats per token"
    assert gains["perplexity"].mean == pytest.approx((math.exp(4) - math.exp(3.9)) / 2, rel=0.02)
    assert gains["perplexity"].unit == "perplexity"
    for gain in gains.values():
        assert gain.low < gain.mean < gain.high


@pytest.mark.parametrize(
    ("given", "ceiling"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (0, 0.0),
        ("now", 2.0),
        ("+1 %", 2.02),
        ("+ 0.5%", 2.01),
        (" +10 % ", 2.2),
        ("+0 %", 2.0),
    ],
)
def test_limits(given: float | str, ceiling: float) -> None:
    assert Limit.read("code", given).ceiling(2.0) == pytest.approx(ceiling)


def said(tiny: TinyRun, **evaluation: Any) -> list[str]:
    tiny.tree["evaluation"] |= evaluation
    try:
        return [str(error) for error in check_plan(tiny.load())]
    except UserError as error:
        return str(error).splitlines()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (-0.1, "below 0"),
        ("-1 %", "is not a limit"),
        ("1 %", "is not a limit"),
        ("+1", "is not a limit"),
        ("+x %", "is not a limit"),
        ("then", "is not a limit"),
        ("", "is not a limit"),
        ("3.2", "is not a limit"),
        (True, "evaluation.limits.code"),
        (None, "evaluation.limits.code"),
        ([3], "evaluation.limits.code"),
    ],
)
def test_what_is_no_limit_is_one_line_with_a_remedy(tiny: TinyRun, given: Any, words: str) -> None:
    lines = said(tiny, limits={"code": given})
    assert len(lines) == 1
    assert "evaluation.limits.code" in lines[0]
    assert words in lines[0]


def test_unknown_sets_and_objectives(tiny: TinyRun) -> None:
    assert "did you mean `german`" in said(tiny, limits={"germn": "now"})[0]
    lines = said(tiny, limits={}, objective="perplexty")
    assert len(lines) == 1
    assert "evaluation.objective = perplexty: no such objective" in lines[0]
    assert "perplexity, bits_per_byte" in lines[0]


@pytest.mark.parametrize("kind", ["perplexity", "bits_per_byte"])
def test_answers_have_no_perplexity(tiny: TinyRun, kind: str) -> None:
    quiz = {
        "path": "quiz.jsonl",
        "metric": "choice",
        "choices_column": "c",
        "answer_column": "a",
        "prompt_column": "p",
    }
    lines = said(tiny, objective=kind, sets={"quiz": quiz})
    assert any(f"the set quiz is measured by choice, which has no {kind}" in line for line in lines)
    assert not said(tiny, weights={"code": 1}, limits={"quiz": "now"})


def test_bytes_must_be_known() -> None:
    with pytest.raises(UserError, match="the set b holds token ids without their text"):
        weighted("bits_per_byte", {"a": 1, "b": 1}, {"a": 4.0, "b": None})
    assert weighted("bits_per_byte", {"a": 1, "b": 0}, {"a": 4.0, "b": None}).sets == ("a",)


@pytest.mark.seconds
def test_only_sets_with_a_weight_or_a_limit_are_looked_at(tiny: TinyRun) -> None:
    tiny.tree["evaluation"] |= {"weights": {"code": 2, "german": 0}, "limits": {"mathematics": "+1 %"}}
    config = tiny.load()
    assert check_plan(config) == []
    assert config.decided_on() == ["code", "mathematics"]
    prepared = prepare(config)
    assert list(search_sets(prepared, 8, 6, config.decided_on())) == ["code", "mathematics"]
    assert list(search_sets(prepared, 8, 6)) == list(DOMAINS)
    assert str(config.limits()["mathematics"]) == "mathematics at most as now +1 %"


def test_a_stage_without_some_domains_keeps_its_kind_of_objective(tiny: TinyRun) -> None:
    tiny.tree["stages"] = [
        {"name": "a", "steps": 4, "domains": ["code", "german"]}, {"name": "b", "steps": 4},
    ]  # fmt: skip
    tiny.tree["evaluation"]["objective"] = "perplexity"
    first = in_stage(tiny.load(), 0)
    objective = first.objective_of({})
    assert (objective.kind, objective.sets) == ("perplexity", ("code", "german"))
    assert first.decided_on() == ["code", "german"]


def test_weights_by_set_mean_the_mean_loss() -> None:
    objective = Objective.of({"a": 2.0, "b": 2.0})
    assert objective.kind == "loss"
    assert Objective.of(objective) is objective
    assert objective.value(LOSSES) == 2.5
