"""What the page says, and that it is a sound, self-contained page."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from importlib.resources import files as shipped
from pathlib import Path

import pytest

from opmix_ray.draw import numbers as n
from opmix_ray.errors import UserError
from opmix_ray.report import write_report
from opmix_ray.report.gather import gather
from opmix_ray.report.run_sections import ended_at
from opmix_ray.storage import Storage
from tests.report.reading import Page, fetched_by_style
from tests.report.synthetic import HOSTILE, PLAIN, make_run


def said(text: str) -> str:
    return " ".join(text.split())


def report(storage: Storage) -> Page:
    page = Page(Path(write_report(storage)).read_text(encoding="utf-8"))
    assert page.errors == []
    return page


def test_tags_balance(page: str) -> None:
    assert Page(page).errors == []


def test_nothing_is_fetched_and_nothing_is_run(page: str) -> None:
    parsed = Page(page)
    ids = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    assert all(target.startswith("#") and target[1:] in ids for target in parsed.references())
    assert not parsed.names() & {"link", "iframe", "img", "object", "embed", "form"}
    assert not [key for _, attrs in parsed.tags for key in attrs if key.startswith("on")]
    assert fetched_by_style(page) == []
    assert "http:" not in page
    assert "https:" not in page


def test_the_one_script_is_ours_and_the_browser_is_told_so(page: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert script == shipped("opmix_ray.draw").joinpath("sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (attrs["content"] for _, attrs in Page(page).tags if "http-equiv" in attrs)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_five_decisions_with_twenty_candidates_stay_below_a_megabyte(page: str) -> None:
    assert len(page.encode()) < 1_000_000


@pytest.mark.seconds
def test_ids_are_unique(page: str) -> None:
    ids = [attrs["id"] for _, attrs in Page(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 5


def test_drawings_are_described_and_tables_have_headings(page: str) -> None:
    tags = Page(page).tags
    drawings = [attrs for tag, attrs in tags if tag == "svg"]
    assert drawings
    assert all(attrs.get("aria-label") for attrs in drawings)
    assert sum(tag == "desc" for tag, _ in tags) == len(drawings)
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in tags if tag == "th")


def test_every_number_of_the_result_is_on_the_page(full: Storage, page: str) -> None:
    text, result = Page(page).text, full.read_json("result.json")
    expected = [n.count(result["steps"]), n.percent(result["ledger"]["overhead"])]
    for row in (result["evaluations"][0], result["evaluations"][-1]):
        expected += [n.loss(value) for value in row["losses"].values()]
        expected += [n.loss(row["objective"]), n.loss(row["mean_loss"])]
    last = result["evaluations"][-1]
    expected += [n.fixed(value, 2) for value in [*last["perplexity"].values(), last["mean_perplexity"]]]
    expected += [n.fixed(value, 4) for value in last["bits_per_byte"].values()]
    for entry in result["mixtures"]:
        expected += [n.share(value) for value in entry["mixture"].values()]
    for decision in result["decisions"]:
        expected += [n.share(value) for value in decision["proposal"].values()]
        expected += [n.loss(decision["gain"][key], sign=True) for key in ("mean", "low", "high")]
        for score in decision["law"].values():
            expected += [n.fixed(score[key], 3) for key in ("r2", "spearman_cv", "r2_cv")]
    for purpose in ("main", "probes", "search", "evaluation"):
        units = result["ledger"][purpose]
        expected += [n.count(units["tokens"]), n.power(units["flops"]), n.seconds(units["seconds"])]
    expected += [n.count(values["tokens"]) for values in result["delivered"].values()]
    expected += [n.fixed(values["epochs"], 3) for values in result["delivered"].values()]
    assert [value for value in expected if said(value) not in text] == []


def test_the_first_paragraph_says_what_was_done_decided_and_paid(full: Storage, page: str) -> None:
    (first,) = re.findall(r'<p class="lead">.*?</p>', page, flags=re.DOTALL)
    text = Page(first).text
    result = full.read_json("result.json")
    assert "A llama model with fresh weights was trained for 600 steps" in text
    assert "There were 5 decisions; the mixture changed" in text
    taken = next(decision for decision in result["decisions"] if decision["kept"] == "proposal")
    assert said(f"At step {taken['step']} it was changed") in text
    assert said(taken["reason"]) in text
    assert said(f"Deciding cost {n.percent(result['ledger']['overhead'])} of the FLOPs of training") in text


def test_the_second_paragraph_says_how_the_loss_moved(full: Storage, page: str) -> None:
    text, result = Page(page).text, full.read_json("result.json")
    assert (
        f"{n.loss(result['evaluations'][0]['objective'])} to {n.loss(result['evaluations'][-1]['objective'])}"
        in text
    )
    assert "documents that were not trained on" in text


def test_every_decision_gives_its_reason_and_what_binds(full: Storage, page: str) -> None:
    text = Page(page).text
    for index in range(5):
        decision = full.read_json(f"decisions/{index:03d}/decision.json")
        assert decision["reason"][1:] in text
        for line in decision["details"]["binding"]:
            assert said(line.replace("`", "")) in text


def test_what_the_law_expects_has_an_interval_and_how_it_was_read(full: Storage, page: str) -> None:
    text = Page(page).text
    for index in range(5):
        details = full.read_json(f"decisions/{index:03d}/decision.json")["details"]
        gain, half = details["predicted_gain"], 1.96 * details["predicted_std"]
        assert half > 0
        assert said(
            f"lower the objective by {n.loss(gain)} nats per token (95 % interval "
            f"{n.loss(gain - half, sign=True)} to {n.loss(gain + half, sign=True)})"
        ) in said(text)
    assert "times as steep" in text


@pytest.mark.seconds
def test_candidates_without_a_finite_loss_are_marked(page: str) -> None:
    rows = [attrs for tag, attrs in Page(page).tags if tag == "tr" and attrs.get("class") == "bad"]
    assert len(rows) >= 10  # one nan and one failed in each of five decisions
    assert "nan" not in "".join(attrs.get("d") or "" for tag, attrs in Page(page).tags if tag == "path")


def test_no_coordinate_is_not_a_number(page: str) -> None:
    for tag, attrs in Page(page).tags:
        if tag in ("circle", "rect", "text"):
            places = [attrs[key] for key in ("x", "y", "cx", "cy", "width", "height") if key in attrs]
            assert all(math.isfinite(float(str(place))) for place in places)


def test_names_are_shown_and_never_run(hostile: Storage) -> None:
    parsed = report(hostile)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1, "ours, and none of a name"
    assert sum(tag == "title" and not attrs for tag, attrs in parsed.tags) >= 1
    for name in HOSTILE:
        assert said(name) in parsed.text


@pytest.mark.seconds
def test_the_report_can_be_written_twice(full: Storage, page: str) -> None:
    assert Path(write_report(full)).read_text(encoding="utf-8") == page


@pytest.mark.seconds
def test_many_epochs_are_warned_of(copy: Storage) -> None:
    result = copy.read_json("result.json")
    result["delivered"]["code"]["epochs"] = 7.5
    copy.write_json("result.json", result)
    assert "code was seen 7.5 times" in report(copy).text


def test_few_epochs_are_not(page: str) -> None:
    assert "was seen" not in Page(page).text


@pytest.mark.seconds
def test_small_domains_of_many_share_a_band(tmp_path: Path) -> None:
    domains = tuple(f"domain{i}" for i in range(12))
    parsed = report(make_run(tmp_path, domains=domains, decisions=1, trials=6, steps=60))
    assert "5 other domains" in parsed.text


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report(Storage(str(tmp_path)))


def test_what_came_is_measured_on_the_sets_that_the_decision_looked_at(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", decisions=1, trials=6, domains=PLAIN[:3], steps=60)
    (name,) = run.names("decisions")
    file = f"decisions/{name}/decision.json"
    decision = run.read_json(file)
    decision["details"]["objective"] = {PLAIN[0]: 1.0, PLAIN[1]: 0.0, PLAIN[2]: 0.0}
    run.write_json(file, decision)
    files = gather(run)
    assert ended_at(files, files.decisions[0])[1] == files.evaluations[-1]["losses"][PLAIN[0]]
