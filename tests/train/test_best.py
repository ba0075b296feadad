"""Which evaluation is the best one: right answers first, then the objective; what is no number is never it."""

from __future__ import annotations

import math
from typing import Any

from opmix_ray.config.objective import Objective
from opmix_ray.train.checkpoint import BestRule


def row(text: float, **accuracy: float) -> dict[str, Any]:
    return {
        "losses": {"text": text, **{name: 1 - right for name, right in accuracy.items()}},
        "accuracy": accuracy,
    }


def rule(**weights: float) -> BestRule:
    return BestRule(Objective.of(weights), weights)


def test_without_questions_the_least_objective_is_best() -> None:
    found = rule(text=1)
    assert found.score(row(2.0)) > found.score(row(2.1))


def test_right_answers_count_before_the_objective_and_by_their_weights() -> None:
    found = rule(text=1, a=3, b=1)
    assert found.score(row(9.0, a=0.6, b=0.5)) > found.score(row(1.0, a=0.5, b=0.6))
    assert found.score(row(1.0, a=0.5, b=0.5)) > found.score(row(1.1, a=0.5, b=0.5))  # among equals


def test_questions_without_a_weight_do_not_choose() -> None:
    found = rule(text=1, a=0)
    assert found.score(row(1.0, a=0.0)) > found.score(row(1.1, a=1.0))


def test_what_is_no_number_is_worst_and_anything_is_better() -> None:
    found = rule(text=1)
    broken = found.score(row(math.nan))
    assert found.score(row(50.0)) > broken
    assert not found.score(row(math.nan)) > broken
