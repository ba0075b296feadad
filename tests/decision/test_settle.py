"""A search may end when the expected gain no longer moves."""

from __future__ import annotations

from opmix_ray.decision.settle import Settled
from opmix_ray.trials.rows import passes
from tests.decision.test_decide import question, rows


def test_a_gain_at_rest_is_noticed_after_as_many_rounds_as_asked_for() -> None:
    candidates = rows(24)
    calm = [Settled(question(), patience) for patience in (1, 3)]
    ends = [next((n for n in range(4, 25, 4) if settled(candidates[:n])), None) for settled in calm]
    assert ends[0] is not None
    assert ends[1] is None or ends[1] >= ends[0] + 8
    assert ends[0] >= 12  # eight rows are needed for a first gain, and one more round to compare


def test_passes_count_what_was_spared() -> None:
    candidates = rows(6)
    assert passes(candidates, 10) == {
        "trials": 6,
        "trials_at_most": 10,
        "stopped_early": 0,
        "sequences": 6 * 120,
        "sequences_at_most": 10 * 120,
    }
