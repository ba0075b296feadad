"""Learning-rate schedules over a stage."""

from __future__ import annotations

from itertools import pairwise

import pytest

from opmix_ray.config import OptimizerConfig, ScheduleConfig
from opmix_ray.config.train import learning_rate

PEAK = OptimizerConfig(learning_rate=1.0)


def rates(steps: int = 100, **keys: object) -> list[float]:
    schedule = ScheduleConfig(**keys)  # type: ignore[arg-type]
    return [learning_rate(step, steps, PEAK, schedule) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    found = rates(kind="constant", warmup_fraction=0.1)
    assert found[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert set(found[10:]) == {1.0}


def test_wsd_is_stable_then_falls_linearly_to_the_final_ratio() -> None:
    found = rates(kind="wsd", warmup_fraction=0, decay_fraction=0.2, final_ratio=0.1)
    assert found[:80] == [1.0] * 80
    steps = [a - b for a, b in pairwise(found[80:])]
    assert steps == pytest.approx([0.9 / 20] * 19)
    assert found[-1] == pytest.approx(0.1 + 0.9 / 20)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates(kind="cosine", warmup_fraction=0, final_ratio=0.0)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert found[-1] < 0.001
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_stages_have_positive_rates(kind: str, steps: int) -> None:
    assert min(rates(steps, kind=kind)) > 0
