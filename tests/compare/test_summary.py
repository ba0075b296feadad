"""Rows, intervals, differences by seed, forgetting, and the files that show them."""

from __future__ import annotations

import csv
import io

import pytest
from scipy import stats

from opmix_ray.compare.page import render
from opmix_ray.compare.summary import estimate, forgetting, row_of, summarise, table_rows, to_csv, to_markdown
from tests.compare.made import content, row
from tests.report.reading import Page


def test_the_interval_is_students() -> None:
    found = estimate([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (found.mean, found.low, found.high) == (
        pytest.approx(7 / 3),
        pytest.approx(low),
        pytest.approx(high),
    )
    assert estimate([5.0]).low is None


def test_differences_are_taken_seed_by_seed() -> None:
    """Seeds differ by 3 nats, strategies by 0.1: only pairs show it."""
    rows = [
        row(s, seed, 3.0 * seed + shift) for seed in range(3) for s, shift in (("base", 0.1), ("new", 0.0))
    ]
    base, new = summarise(rows, ["base", "new"])
    assert base["versus"] is None
    assert new["versus"]["loss"]["mean"] == pytest.approx(-0.1)
    assert new["versus"]["loss"]["high"] < -0.09
    assert new["versus"]["relative_loss"]["mean"] == pytest.approx(-0.1 * (1 / 0.6 + 1 / 3.6 + 1 / 6.6) / 3)
    assert new["versus"]["perplexity"]["mean"] == pytest.approx(2**-0.1 - 1)
    assert new["mean_loss"]["high"] - new["mean_loss"]["low"] > 5


def test_forgetting_is_the_rise_since_the_best_of_what_was_learned() -> None:
    steps = [
        {"step": 0, "losses": {"old": 2.0, "first": 9.0, "last": 9.0}},
        {"step": 10, "losses": {"old": 2.5, "first": 3.0, "last": 8.0}},
        {"step": 20, "losses": {"old": 3.0, "first": 3.2, "last": 4.0}},
    ]
    learned = {"old": 0, "first": 10, "last": 20}
    assert forgetting(steps, learned) == pytest.approx((1.0 + 0.2) / 2)
    assert forgetting(steps, {"last": 20}) is None
    assert forgetting(steps[:1], {"old": 0}) is None


def test_a_row_counts_the_search_and_leaves_reports_out() -> None:
    amounts = {"tokens": 10.0, "flops": 100.0, "seconds": 1.0}
    result = {
        "seed": 3, "steps": 5, "final_mixture": {"a": 1.0},
        "evaluations": [{"step": 5, "losses": {"a": 1.0}, "perplexity": {"a": 2.7}, "mean_loss": 1.0,
                         "mean_perplexity": 2.7, "objective": 1.0}],
        "ledger": {p: amounts for p in ("main", "answers", "teacher", "probes", "search", "fit", "evaluation")},
    }  # fmt: skip
    found = row_of("opmix", result, 9.0, {"a": 5})
    assert (found.flops, found.search_flops, found.tokens, found.worker_seconds) == (600, 300, 60, 6)


def test_the_csv_has_a_line_per_run_and_a_column_per_set() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv([row("a", 0, 1.0), row("b", 0, 2.0)]))))
    assert [line["strategy"] for line in lines] == ["a", "b"]
    assert float(lines[1]["eval_german_loss"]) == 3
    assert lines[0]["forgetting"] == ""


def test_the_table_compares_with_the_first_strategy() -> None:
    rows = [row(s, seed, 1.0 + (s == "b"), search=5e11) for seed in range(2) for s in "ab"]
    first, second = table_rows(content(rows, ["a", "b"]))
    assert first["mean loss"] == "1.5000 ± 0.0000"
    assert second["mean loss"] == "2.5000 ± 0.0000 (+66.67 ± 0.00 %)"
    assert second["mean perplexity"] == "6.0 ± 0.0 (+100.00 ± 0.00 %)"
    assert "mean accuracy" not in second  # nothing was asked
    assert second["of them search"] == "50.0 %"
    assert second["FLOPs"] == "1e+12"  # equal by intention
    lines = to_markdown(content(rows, ["a", "b"])).splitlines()
    assert [line.count("|") for line in lines] == [7, 7, 7, 7, 0, 0]
    assert "against a, seed by seed" in lines[-1]


def test_of_one_seed_there_is_no_interval() -> None:
    rows = [row(s, 0, 1.0 + (s == "b")) for s in "ab"]
    assert table_rows(content(rows, ["a", "b"]))[1]["mean loss"] == "2.5000 (+66.67 %)"


def test_of_one_strategy_there_is_nothing_in_brackets() -> None:
    found = content([row("a", 0, 1.0), row("a", 1, 2.0)], ["a"])
    assert "(" not in to_markdown(found)
    assert "brackets" not in to_markdown(found)


def test_without_equal_compute_the_table_says_how_compute_differs() -> None:
    rows = [row(s, seed, 1.0, flops=1e12 * (1 - 0.34 * (s == "b"))) for seed in range(2) for s in "ab"]
    first, second = table_rows({**content(rows, ["a", "b"]), "equal_compute": False})
    assert (first["FLOPs"], second["FLOPs"]) == ("1e+12", "6.6e+11 (-34.0 %)")
    alone = table_rows({**content(rows[1:2], ["a", "b"]), "equal_compute": False})
    assert alone[0]["FLOPs"] == "6.6e+11"  # the baseline is not there yet


def test_the_page_is_whole_and_shows_every_strategy() -> None:
    rows = [row(s, seed, 1.0 + seed / 10, flops=1e12 * (1 + (s == "b"))) for seed in range(3) for s in "ab"]
    text = render(content(rows, ["a", "b"]))
    assert "made &lt;up&gt;" in text
    page = Page(text)
    assert page.errors == []
    assert page.references() == []
    assert sum(tag == "script" for tag, _ in page.tags) == 1, "the page's own"
    assert text.count("<svg") >= 3
    assert "Not all runs" not in text


def test_the_page_of_a_comparison_that_has_just_begun() -> None:
    text = render(content([row("b", 0, 1.0)], ["a", "b"]))
    assert "Not all runs are finished" in text
    assert "No" in render({**content([], ["a"]), "complete": False})
