"""opmix report A B: which ends lower, what was promised and came, what makes the pair unfair, and wrong input."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from opmix_ray.compare.runs import write_comparison
from opmix_ray.errors import UserError
from opmix_ray.report.gather import gather
from opmix_ray.storage import Storage
from tests.report.reading import Page
from tests.report.synthetic import PLAIN, make_run


def runs(place: Path) -> list[Storage]:
    """One with a decision, one that trained under uniform."""
    made = [
        make_run(place / name, decisions=1, trials=6, domains=PLAIN[:3], steps=60, seed=seed)
        for seed, name in enumerate(("decided", "uniform"))
    ]
    plain = {name: 1 / 3 for name in PLAIN[:3]}
    for name in ("mixture.json", "state.json"):
        content = made[1].read_json(name)
        for entry in [*content.get("history", []), *content.get("mixtures", [])]:
            entry["mixture"] = plain
        made[1].write_json(name, content)
    return made


def test_the_verdict_is_the_difference_in_perplexity(tmp_path: Path) -> None:
    pair = runs(tmp_path)
    found = write_comparison(pair)
    ends = [gather(storage).weighted(gather(storage).evaluations[-1]) for storage in pair]
    change = 100 * (math.exp(ends[0] - ends[1]) - 1)
    way = "lower" if change <= 0 else "higher"
    assert f"{abs(change):.1f}\u00a0% {way} in perplexity than uniform" in found["verdict"]
    text = Path(found["report"]).read_text(encoding="utf-8")
    page = Page(text)
    assert page.errors == []
    assert "Against uniform the law promised" in page.text
    assert f"{ends[1] - ends[0]:.4f}".replace("-", "−") in page.text
    assert len(re.findall(r'id="(runs|loss|mixtures)"', text)) == 3
    assert "opmix compare runs several" in page.text


def test_what_is_unfair_is_said(tmp_path: Path) -> None:
    pair = runs(tmp_path)
    state = pair[1].read_json("result.json")
    state["ledger"]["main"]["flops"] *= 3
    pair[1].write_json("result.json", state)
    text = Page(Path(write_comparison(pair)["report"]).read_text(encoding="utf-8")).text
    assert re.search(r"uniform took [\d.]+ times the FLOPs of decided", text)
    pair[1].delete("result.json")
    assert "not comparable yet with uniform" in write_comparison(pair)["verdict"]


def test_runs_that_share_no_set_or_are_one_are_refused(tmp_path: Path) -> None:
    pair = runs(tmp_path)
    other = make_run(tmp_path / "other", decisions=1, trials=6, domains=PLAIN[3:], steps=60)
    with pytest.raises(UserError, match="share no evaluation set"):
        write_comparison([pair[0], other])
    with pytest.raises(UserError, match="named twice"):
        write_comparison([pair[0], pair[0]])
