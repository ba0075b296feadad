"""Decisions that fail, or that lack a candidate: the run goes on, and says so."""

from __future__ import annotations

import json
import math

import pytest

from tests.killing import finish, kill_when, start
from tests.support import TinyRun, opmix, read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_run_whose_decisions_all_fail_ends_with_a_warning_and_a_code_of_its_own(tiny: TinyRun) -> None:
    tiny.tree["probe"]["learning_rate_ratio"] = 1e35
    tiny.tree["proposal"] = {"law": "log-linear"}  # which knows nothing where no candidate has a loss
    output = tiny.directory / "out"
    ended = opmix("run", str(tiny.write()), "--output", str(output))
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        "warning: every decision failed, so that the mixture was never decided on: only 0 of 6 candidates"
    )
    assert "Traceback" not in ended.stderr
    result = read_json(output / "result.json")
    assert [decision["failed"] for decision in result["decisions"]] == [True]
    assert result["final_mixture"] == pytest.approx(dict.fromkeys(result["final_mixture"], 1 / 3))
    again = opmix("run", str(tiny.file), "--output", str(output))
    assert again.returncode == 3, "as often as it is asked"


def test_where_no_candidate_has_a_loss_what_was_counted_decides_and_that_is_said(tiny: TinyRun) -> None:
    tiny.tree["probe"]["learning_rate_ratio"] = 1e35
    output = tiny.directory / "out"
    ended = opmix("run", str(tiny.write()), "--output", str(output))
    assert ended.returncode == 0, ended.stderr
    (decision,) = read_json(output / "result.json")["decisions"]
    assert not decision["failed"]
    words = "none of 6 candidates gave a finite loss, so that it is counted alone: "
    assert decision["reason"].startswith(words)
    assert words in ended.stdout


def test_one_candidate_whose_loss_is_no_number_is_left_out_of_the_decision(tiny: TinyRun) -> None:
    output = tiny.directory / "out"
    trials = output / "decisions/000/trials.jsonl"
    kill_when(
        start(tiny, output), output, lambda out: trials.exists() and trials.read_text().count("\n") >= 2, 400
    )
    first, second, *_ = trials.read_text().splitlines()
    row = json.loads(second)
    row |= {"status": "nan", "objective": math.nan, "losses": dict.fromkeys(row["losses"], math.nan)}
    trials.write_text(f"{first}\n{json.dumps(row)}\n")
    finish(start(tiny, output, "--resume"))
    decision = read_json(output / "decisions/000/decision.json")
    assert (decision["trials"], decision["usable"]) == (6, 5)
    assert all(math.isfinite(share) for share in decision["mixture"].values())
    assert decision["law_name"]
    law = (output / "decisions/000/law.json").read_text()
    assert "NaN" not in law
    shown = (output / "report.html").read_text()
    assert "NaN" not in shown.replace("isNaN", "")
    assert opmix("status", str(output)).returncode == 0
