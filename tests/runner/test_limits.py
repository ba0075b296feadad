"""Limits on sets: what no mixture reaches is refused before a run, and a run says what it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opmix_ray import run
from opmix_ray.data.prepare import prepare
from opmix_ray.runner.validate import check_prepared
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.support import TinyRun, read_json


def test_a_limit_below_what_any_mixture_reaches_is_refused(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["evaluation"]["limits"] = {"code": 1.5}
    config = tiny.load()
    (error,) = check_prepared(config, prepare(config))
    assert "evaluation.limits.code = 1.5: no mixture gets there" in str(error)
    assert "\n" not in str(error)
    line = opmix("run", tiny.write(), "--output", tiny.directory / "out").only_error()
    assert "evaluation.limits.code" in line
    assert not (tiny.directory / "out" / "metrics.jsonl").exists()


def test_a_limit_that_may_be_reached_is_not(tiny: TinyRun) -> None:
    tiny.tree["evaluation"]["limits"] = {"code": 6.0, "german": "now"}
    config = tiny.load()
    assert check_prepared(config, prepare(config)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("budget", [0.05, None])
def test_a_run_keeps_limits_in_perplexity_and_says_so(
    tiny: TinyRun, ray_session: None, budget: float | None
) -> None:
    tiny.tree["stages"][0]["decide_at"] = [0.0, 0.5] if budget else [0.5]
    tiny.tree["search"]["budget"] = budget
    if budget:  # sizes by hand would stay, and counting alone is to decide
        del tiny.tree["probe"]["steps"], tiny.tree["search"]["trials"], tiny.tree["search"]["sequences"]
    tiny.tree["evaluation"] |= {
        "objective": "perplexity", "weights": {"code": 1, "mathematics": 1},
        "limits": {"german": "+5 %", "code": 6.8},
    }  # fmt: skip
    config = tiny.load()
    run(config)
    out = Path(config.output_uri())
    decisions: list[dict[str, Any]] = [
        read_json(file) for file in sorted(out.glob("decisions/*/decision.json"))
    ]
    assert len(decisions) == (2 if budget else 1)
    for made in decisions:
        limits = made["details"]["limits"]
        assert set(limits) == {"german", "code"}
        assert limits["german"]["kept"] is True, "a model this young cannot get worse"
        assert limits["code"]["kept"] is False
        assert "no mixture keeps the limit on `code` (at most 6.8" in made["reason"]
        assert "perplexity" in made["reason"]
        assert set(made["details"]["predicted"]) == {"code", "german", "mathematics"}
    evaluations = read_json(out / "result.json")["evaluations"]
    last = evaluations[-1]
    assert last["objective"] == pytest.approx(
        (last["perplexity"]["code"] + last["perplexity"]["mathematics"]) / 2
    )
    now = next(one for one in evaluations if one["step"] == 6)["losses"]["german"]
    assert decisions[-1]["details"]["limits"]["german"]["ceiling"] == pytest.approx(1.05 * now)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Limits on sets at the end of the stage" in page
    assert "the weighted mean of perplexity" in page
    if budget:
        spent = [made["details"]["cost"].get("search", {}).get("flops", 0) for made in decisions]
        assert spent[0] > 0, "the sets are measured where nothing else has"
        assert spent[1] == 0, "and not where the run has done so"
