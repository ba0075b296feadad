"""A decision says what speaks for and against it, and is taken back where it does not stand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opmix_ray.decision.health import examine, with_health
from opmix_ray.decision.rule import Decision
from opmix_ray.trials.rows import TrialRow

OBJECTIVE = {"a": 0.5, "b": 0.5}
UNIFORM = {"a": 0.5, "b": 0.5}
DECISION = Decision(
    index=0, step=10, stage="s", kept="proposal", reason="it measures better", trials=3, usable=3,
    current={"a": 0.9, "b": 0.1}, proposal=UNIFORM, mixture=UNIFORM,
    gain={"mean": 0.02, "low": 0.01, "high": 0.03, "confidence": 0.95}, law_name="own-share",
    law={"a": {"r2_cv": 0.9}, "b": {"r2_cv": 0.7}, "objective": {"r2_cv": 0.0}}, details={"kl": 0.1},
)  # fmt: skip


def row(run: str, share: float, loss: float) -> TrialRow:
    return TrialRow(run, {}, {"a": share, "b": 1 - share}, {"a": loss, "b": loss + 1}, loss + 0.5)


ROWS = [row("000", 0.9, 3.10), row("001", 0.5, 3.00), row("002", 0.2, 3.06)]


def check(gap: float, share: float = 0.5) -> dict[str, dict[str, float]]:
    return {"data": {"a": share, "b": 1 - share}, "measured": {"a": 3.0 + gap, "b": 4.0 + gap}}


def test_a_decision_that_stands_is_left_as_it_is() -> None:
    found = with_health(DECISION, examine(DECISION, ROWS, OBJECTIVE, check(0.02)), verify=True)
    assert found.kept == "proposal"
    assert found.mixture == UNIFORM
    assert found.details["kl"] == 0.1
    health = found.details["health"]
    assert health["trusted"]
    assert [(c["name"], c["passed"]) for c in health["checks"]] == [
        ("law", True), ("interpolation", True), ("gain", True)
    ]  # fmt: skip
    assert health["checks"][1]["value"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("decision", "gap", "failed", "helps"),
    [
        (replace(DECISION, law={"a": {"r2_cv": 0.8}, "b": {"r2_cv": -0.4}}), 0.0, "law", "search.trials"),
        (DECISION, 0.06, "interpolation", "probe.steps"),
        (DECISION, -0.06, "interpolation", "probe.steps"),
    ],
)
def test_one_that_does_not_stand_keeps_the_old_mixture(
    decision: Decision, gap: float, failed: str, helps: str
) -> None:
    checks = examine(decision, ROWS, OBJECTIVE, check(gap))
    assert [c.name for c in checks if not c.passed] == [failed]
    found = with_health(decision, checks, verify=True)
    assert found.kept == "old"
    assert found.mixture == decision.current
    assert found.proposal == UNIFORM
    assert helps in found.reason
    assert not found.details["health"]["trusted"]


def test_one_set_that_candidates_hardly_move_does_not_speak_for_all() -> None:
    objective = {"a": 0.4, "b": 0.4, "c": 0.2}
    decision = replace(DECISION, law={"a": {"r2_cv": 0.8}, "b": {"r2_cv": 0.6}, "c": {"r2_cv": -9.0}})
    law = examine(decision, ROWS, objective, None)[0]
    assert (law.value, law.passed) == (0.6, True)


def test_without_verification_the_checks_are_only_noted() -> None:
    found = with_health(DECISION, examine(DECISION, ROWS, OBJECTIVE, check(0.5)), verify=False)
    assert found.kept == "proposal"
    assert not found.details["health"]["trusted"]


@pytest.mark.parametrize(
    ("rows", "probe"),
    [
        (ROWS, None),
        (ROWS, check(0.5, share=0.6)),  # no candidate has that mixture
        (ROWS[:1], check(0.5)),
        ([ROWS[0], replace(ROWS[1], status="failed"), ROWS[2]], check(0.5)),
    ],
)
def test_what_cannot_be_compared_is_unknown_and_not_held_against_it(
    rows: list[TrialRow], probe: dict[str, dict[str, float]] | None
) -> None:
    found = examine(DECISION, rows, OBJECTIVE, probe)[1]
    assert (found.name, found.passed, found.value) == ("interpolation", None, None)
    assert with_health(DECISION, [found], verify=True).kept == "proposal"


def test_a_gain_that_may_be_nothing_is_said_but_is_not_a_matter_of_trust() -> None:
    decision = replace(
        DECISION, kept="old", gain={"mean": 0.01, "low": -0.01, "high": 0.03, "confidence": 0.95}
    )
    found = with_health(decision, examine(decision, ROWS, OBJECTIVE, check(0.0)), verify=True)
    assert found.reason == decision.reason
    assert found.details["health"]["trusted"]
    assert found.details["health"]["checks"][2]["passed"] is False


def test_a_set_without_weight_does_not_count() -> None:
    probe = check(0.0)
    probe["measured"]["b"] = 9.0
    assert examine(DECISION, ROWS, {"a": 1.0, "b": 0.0}, probe)[1].passed
