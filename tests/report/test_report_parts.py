"""Numbers, ticks, panels, intervals, delivered shares and the law, each by itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from opmix_ray.decision.rule import measure_gain
from opmix_ray.draw import numbers as n
from opmix_ray.draw.numbers import tick_labels, ticks
from opmix_ray.draw.panel import Line, Panel
from opmix_ray.draw.svg import draw
from opmix_ray.output.state import METRICS
from opmix_ray.report.decision_panels import candidates, probes
from opmix_ray.report.doubts import delivery
from opmix_ray.report.gather import gather
from opmix_ray.report.outlook import check_law, difference
from opmix_ray.report.words import summary
from opmix_ray.storage import Storage
from tests.report.synthetic import PLAIN, make_run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (n.loss(8.32208), "8.3221"),
        (n.loss(-0.00279, sign=True), "−0.0028"),
        (n.loss(math.nan), "n/a"),
        (n.loss(1e300), "1.00 × 10³⁰⁰"),
        (n.percent(1.508), "150.8 %"),
        (n.share(0.0), "0.0 %"),
        (n.share(1e-6), "< 0.1 %"),
        (n.count(6144.0), "6,144"),
        (n.power(5.888e9), "5.89 × 10⁹"),
        (n.power(1e-6), "1.00 × 10⁻⁶"),
        (n.seconds(0.0892), "0.09 s"),
        (n.seconds(4321), "1 h 12 min"),
        (n.seconds(119.9), "2 min 00 s"),
        (n.size(606880), "592.7 KiB"),
        (n.count(None), "n/a"),
        (n.count("x"), "n/a"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text.replace("\u00a0", " ") == expected  # a unit stays on the line of its number


@pytest.mark.parametrize(("low", "high"), [(0, 1), (8.2001, 8.2002), (-3, 900), (1e-9, 2e-9), (5, 5)])
def test_ticks_lie_inside_and_have_labels_of_their_own(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert 1 <= len(found) <= 6
    assert len(set(tick_labels(found))) == len(found)


def test_whole_ticks_are_whole() -> None:
    assert ticks(0, 3, 9, "whole") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.inf, math.nan], [1.0], [2.0, 2.0], [1.0, math.nan, 3.0]]
)
def test_any_values_can_be_drawn(values: list[float]) -> None:
    drawn = draw(Panel("p", "title", "text", [Line(list(range(len(values))), values)]))
    assert "nan" not in drawn
    assert "inf" not in drawn.replace("no finite values", "")
    assert ("no finite values" in drawn) == (not any(map(math.isfinite, values)))


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    drawn = draw(Panel("p", "title", "text", [Line([0, 1, 2, 3, 4], [1, 2, math.nan, 2, 1])]))
    path = drawn.split('class="l s-accent" d="')[1].split('"')[0]
    assert path.count("M") == 2


@pytest.mark.seconds
def test_intervals_agree_with_the_bootstrap(full: Storage) -> None:
    run = gather(full)
    for files in run.decisions:
        assert files.checked is not None
        ours = difference(files.rows[0], files.checked, run.objective)
        theirs = measure_gain(
            files.rows[0], files.checked, run.objective, confidence=0.95, resamples=4000, seed=1
        )
        assert ours.mean == pytest.approx(theirs.mean, abs=1e-12)
        assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.15)


def test_the_law_is_drawn_as_it_was_fitted(full: Storage) -> None:
    for files in gather(full).decisions:
        check = check_law(files)
        assert check is not None
        assert check.eps is not None
        assert check.steeper is not None
        assert check.steeper > 1
        for place, name in enumerate(check.sets):
            observed, predicted = check.observed[:, place], check.predicted[:, place]
            rest = ((observed - predicted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum()
            assert 1 - rest == pytest.approx(files.decision["law"][name]["r2"], abs=1e-6)


def test_shares_are_planned_by_steps_and_sum_to_one(full: Storage) -> None:
    rows = delivery(gather(full))
    assert sum(row.planned for row in rows) == pytest.approx(1)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert max(abs(row.share - row.planned) for row in rows) < 0.005
    result = full.read_json("result.json")["delivered"]
    assert [row.tokens for row in rows] == [result[row.domain]["tokens"] for row in rows]


def test_best_so_far_never_rises(full: Storage) -> None:
    run = gather(full)
    panel = candidates(run.decisions[0], run.objective)
    assert panel is not None
    best = next(mark for mark in panel.marks if isinstance(mark, Line))
    assert (np.diff(best.y) <= 0).all()


def test_more_probes_than_colours_are_told_apart_by_what_matters(full: Storage) -> None:
    files = gather(full).decisions[0]
    few = probes(files)
    assert few is not None
    assert len(few.entries()) == 7
    files.details["probes"].update({f"more{i}": {"losses": [3.0, 2.0]} for i in range(9)})
    many = probes(files)
    assert many is not None
    assert {entry.label for entry in many.entries()} == {"old", "one domain each"}


def test_rates_of_wrong_answers_have_no_perplexity(tmp_path: Path) -> None:
    storage = make_run(tmp_path, decisions=0)
    said = str(summary(gather(storage)))
    assert f"the weighted mean loss over {len(PLAIN)} held-out sets" in said
    assert "in perplexity)" in said
    rows = [json.loads(line) for line in storage.read_text(METRICS).splitlines()]
    for row in rows:
        if row["kind"] == "evaluation":
            del row["perplexity"]["code"]  # as of a set of questions
    storage.write_text(METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    said = str(summary(gather(storage)))
    assert f"the weighted mean of losses and rates of wrong answers over {len(PLAIN)} held-out sets" in said
    assert "in perplexity" not in said
    assert "nats" not in said.partition("between step")[0]
