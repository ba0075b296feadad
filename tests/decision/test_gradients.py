"""A decision whose candidates bring their losses' derivatives, from the command line to its files."""

from __future__ import annotations

import json

import pytest

from tests.support import TinyRun, opmix, read_json


@pytest.mark.slow
def test_a_decision_with_gradients_scores_a_third_of_the_candidates(tiny: TinyRun) -> None:
    tiny.tree["search"] |= {"gradients": True, "trials": 12}
    tiny.tree["proposal"] = tiny.tree.get("proposal", {}) | {"law": "own-share"}
    out = tiny.directory / "out"
    done = opmix("search", str(tiny.write()), "--output", str(out))
    assert done.returncode == 0, done.stderr
    decision = read_json(out / "decisions/000/decision.json")
    assert decision["trials"] == 4
    assert decision["details"]["gradients"] is True
    assert decision["law_name"] == "own-share"
    rows = [json.loads(line) for line in (out / "decisions/000/trials.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert all(len(values) == 3 for row in rows for values in row["slopes"].values())
    assert sum(row["flops"] for row in rows) == pytest.approx(decision["details"]["cost"]["search"]["flops"])
