"""What a decision is told of the main run so far: losses by domain and evaluations of the weights in force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opmix_ray.decision.make import Situation
from opmix_ray.errors import UserError
from opmix_ray.runner.runner import run
from tests.support import DOMAINS, TinyRun

pytestmark = pytest.mark.usefixtures("ray_session")

TWO = ["code", "german"]


def situation(tiny: TinyRun, *stages: dict[str, Any]) -> Situation:
    """Of the first decision, at which the run ends."""
    tiny.tree["stages"] = list(stages)
    seen: list[Situation] = []

    def decide(*arguments: Any) -> Any:
        seen.append(next(each for each in arguments if isinstance(each, Situation)))
        raise UserError("seen")

    with pytest.raises(UserError, match="seen"):
        run(tiny.load(), decide=decide)
    return seen[0]


def test_a_decision_before_the_first_step_has_nothing(tiny: TinyRun) -> None:
    found = situation(tiny, {"name": "only", "steps": 4, "decide_at": [0.0]})
    assert found.curves is None
    assert found.evaluations == ()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_decision_sees_what_its_weights_have_been_through_and_again_after_a_resume(tiny: TinyRun) -> None:
    """The stage that begins anew forgets what was before it; the one that goes on does not."""
    stages = [
        {"name": "one", "steps": 2, "domains": TWO},
        {"name": "two", "steps": 3, "domains": TWO, "restart": True},
        {"name": "three", "steps": 4, "decide_at": [0.5], "start": "uniform"},
    ]
    first, second = situation(tiny, *stages), situation(tiny, *stages)
    curves = first.curves
    assert curves is not None
    assert curves.domains == (*TWO, "mathematics")
    assert curves.start == 2
    assert curves.steps.tolist() == [3, 4, 5, 6, 7]
    assert curves.tokens.sum(axis=1).tolist() == [4 * 31] * 5
    assert np.isnan(curves.losses()[:3, 2]).all()
    assert curves.losses()[3:, 2] == pytest.approx(6.5, abs=3)  # of a fresh model, in nats
    assert [each.step for each in first.evaluations] == [5, 7]
    assert set(first.evaluations[0].losses) == set(DOMAINS)
    assert second.curves is not None
    assert second.curves.to_dict() == curves.to_dict()
    assert second.evaluations == first.evaluations
