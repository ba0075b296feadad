"""`opmix fit` and `opmix predict` from files to files."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.fit import fit_command, predict_command
from opmix_ray.fit.page import effects, short
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture

DOMAINS = ["web_code", "web_prose", "web_maths"]
METRICS = ["eval/code_loss", "eval/prose_loss"]


def losses(ratios: np.ndarray) -> np.ndarray:
    code, prose, maths = ratios.T
    return np.column_stack([1 + (code + 0.3 * maths + 0.05) ** -0.3, 2 + 0.8 * (prose + 0.05) ** -0.4])


def write_sweep(place: Path, rows: int = 24, zero: bool = False) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), rows)
    if zero:
        ratios[:, 2] = 0
        ratios /= ratios.sum(axis=1, keepdims=True)
    metrics = losses(ratios) + 0.003 * rng.standard_normal((rows, 2))
    for name, header, values in (("ratios", DOMAINS, ratios), ("metrics", METRICS, metrics)):
        lines = [",".join(["run", *header])]
        lines += [",".join([f"r{i}", *map(repr, row.tolist())]) for i, row in enumerate(values)]
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return place / "ratios.csv", place / "metrics.csv"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("fit")
    ratios, metrics = write_sweep(place)
    with ratios.open("a") as file:
        file.write("lost,0.5,0.5,0\nbroken,0.5,<b>,0.5\n")
    return place, fit_command(ratios, metrics, place / "out", law="power", prior="uniform", bootstrap=10)


def test_four_files_that_agree(fitted: tuple[Path, dict[str, Any]]) -> None:
    place, summary = fitted
    found = {
        name: json.loads((place / "out" / name).read_text())
        for name in ("law.json", "mixture.json", "fit.json")
    }
    assert summary["mixture"] == found["mixture.json"]["mixture"] == found["fit.json"]["proposal"]["mixture"]
    assert sum(summary["mixture"].values()) == pytest.approx(1)
    assert json.loads(json.dumps(summary))["rows"] == 24
    law = FittedLaw.from_dict(found["law.json"])
    at = Mixture(summary["mixture"]).array(DOMAINS)
    assert float(law.objective(at)[0]) == pytest.approx(summary["objective"])
    assert summary["gain"] == pytest.approx(summary["baseline_objective"] - summary["objective"])
    assert found["fit.json"]["quality"]["objective"] == summary["quality"]
    assert summary["quality"]["spearman_cv"] > 0.9
    assert set(found["fit.json"]["quality"]) == {*METRICS, "objective"}


def test_what_was_left_out_is_told(fitted: tuple[Path, dict[str, Any]]) -> None:
    place, summary = fitted
    left_out = json.loads((place / "out" / "fit.json").read_text())["left_out"]
    assert summary["left_out"] == 2
    assert {item["run"]: item["reason"] for item in left_out} == {
        "lost": "not in metrics.csv",
        "broken": "`web_prose` is not a number: <b>",
    }


class Page(HTMLParser):
    """Collects what a page refers to, its headings and its text, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br", "wbr", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        self.text.append(data)


def test_the_page_is_whole_and_alone(fitted: tuple[Path, dict[str, Any]]) -> None:
    text = (fitted[0] / "out" / "fit.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert not page.addresses
    assert not re.search(r"url\(|@import|<script[^>]", text)
    assert page.headings == [
        "Mixture from 24 runs", "The mixture", "What binds", "How well the law predicts", "What helps what", "Rows",
        "Settings",
    ]  # fmt: skip
    words = " ".join(page.text)
    assert "90 % interval" in words
    assert "is not a number: <b>" in words  # as text, not as a tag
    assert re.search(r"prefers-color-scheme: ?dark", text)
    assert 'name="viewport"' in text


def test_the_page_draws_every_run(fitted: tuple[Path, dict[str, Any]]) -> None:
    text = (fitted[0] / "out" / "fit.html").read_text()
    assert text.count("<circle") >= 24 * (len(METRICS) + 1)


def test_predictions_under_the_same_names(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    place, _ = fitted
    new = tmp_path / "new.csv"
    new.write_text("run,web_maths,web_code,web_prose\nx,0.2,0.3,0.5\ny,0,1,0\nz,0.2,0.2,0.2\n")
    summary = predict_command(place / "out", new, tmp_path / "deep" / "predicted.csv")
    with (tmp_path / "deep" / "predicted.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", *METRICS, "objective", "objective_std"]
    assert [row["run"] for row in rows] == ["x", "y"]
    truth = losses(np.array([[0.3, 0.5, 0.2]]))[0]
    assert float(rows[0][METRICS[0]]) == pytest.approx(truth[0], abs=0.05)
    assert float(rows[0]["objective"]) == pytest.approx(truth.mean(), abs=0.05)
    assert 0 < float(rows[0]["objective_std"]) < 0.1
    assert summary["rows"] == 2
    assert summary["best"]["run"] == "x"
    assert [item["run"] for item in summary["left_out"]] == ["z"]


def test_predictions_need_the_domains_of_the_fit(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = fitted[0] / "out"
    new = tmp_path / "new.csv"
    for text, word in (
        ("run,web_code,web_prose\nx,0.5,0.5\n", "web_maths: this domain has no column"),
        ("run,web_code,web_prose,web_maths,extra\nx,0.5,0.5,0,0\n", "extra: the law knows no such domain"),
        (
            "run,web_code,web_prose,web_maths,extra\nx,0.5,0.3,0.1,0.1\n",
            "extra: the law knows no such domain",
        ),
        ("run,web_code,web_prose,web_maths\nx,0.5,0.1,0.1\n", "no line holds a mixture"),
        ("run,web_code,web_prose,web_maths\nx,0.5,0.5,much\n", "web_maths: holds words; give shares"),
    ):
        new.write_text(text)
        with pytest.raises(UserError, match=word):
            predict_command(out, new, tmp_path / "p.csv")
        assert not (tmp_path / "p.csv").exists()
    with pytest.raises(UserError, match="holds no law"):
        predict_command(tmp_path, new, tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("of before")
    with pytest.raises(UserError, match="no such file"):
        predict_command(out, tmp_path / "missing.csv", tmp_path / "p.csv")
    with pytest.raises(UserError, match="is the file of mixtures"):
        predict_command(out, new, new)
    (tmp_path / "law.json").write_text("{}")
    with pytest.raises(UserError, match=r"law\.json: not a law of format"):
        predict_command(tmp_path, new, tmp_path / "p.csv")


def test_predictions_take_tokens_as_well(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Columns are the law's own, whether or not their numbers look like shares; a total is none of them."""
    out, seen = fitted[0] / "out", []
    for name, text in (
        ("shares", "run,web_maths,web_code,web_prose\nx,0.2,0.3,0.5\n"),
        ("tokens", "run,total,web_maths,web_code,web_prose\nx,1000,200,300,500\n"),
    ):
        (tmp_path / f"{name}.csv").write_text(text)
        summary = predict_command(out, tmp_path / f"{name}.csv", tmp_path / f"{name}.p.csv")
        seen.append((tmp_path / f"{name}.p.csv").read_text())
    assert seen[0] == seen[1]
    assert "taken as tokens" in summary["notes"][0]


@pytest.mark.seconds
def test_limits_hold(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "bounds.yaml").write_text("web_maths: [0.3, 1.0]\n")
    (tmp_path / "caps.yaml").write_text(
        "stage_tokens: 1e9\ndomains: {web_code: {tokens: 5e7, max_epochs: 4}, web_prose: {tokens: 1e9}, "
        "web_maths: {tokens: 1e9}}\n"
    )
    summary = fit_command(
        ratios, metrics, tmp_path / "out", law="power", caps=tmp_path / "caps.yaml",
        bounds=tmp_path / "bounds.yaml", bootstrap=0,
    )  # fmt: skip
    assert summary["mixture"]["web_code"] == pytest.approx(0.2, abs=1e-6)
    assert summary["mixture"]["web_maths"] >= 0.3 - 1e-9
    prior = json.loads((tmp_path / "out" / "fit.json").read_text())["prior"]
    assert prior["web_code"] == pytest.approx(0.05 / 2.05)  # proportional, as the caps file has tokens
    assert any("`web_code` is at its greatest share" in said for said in summary["binding"])
    assert summary["gain_interval"] is None


@pytest.mark.seconds
def test_the_objective_decides(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "objective.yaml").write_text('"eval/prose_loss": 1\n')
    one = fit_command(
        ratios,
        metrics,
        tmp_path / "a",
        law="power",
        objective=tmp_path / "objective.yaml",
        bootstrap=0,
        kl=0.0,
    )
    assert one["mixture"]["web_prose"] > 0.95
    (tmp_path / "objective.yaml").write_text(
        'weights: {"eval/prose_loss": 1}\ncurrent: {web_code: 0.6, web_prose: 0.4}\n'
        'no_worse_than: {"eval/code_loss": 0.02}\n'
    )
    held = fit_command(
        ratios,
        metrics,
        tmp_path / "b",
        law="power",
        objective=tmp_path / "objective.yaml",
        bootstrap=0,
        kl=0.0,
    )
    assert held["mixture"]["web_prose"] < 0.7
    assert any("eval/code_loss" in said for said in held["binding"])


@pytest.mark.seconds
def test_a_domain_that_no_run_has_stays_out(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path, zero=True)
    summary = fit_command(ratios, metrics, tmp_path / "out", law="log-share", bootstrap=0)
    assert summary["mixture"]["web_maths"] == pytest.approx(0, abs=1e-9)
    assert any("`web_maths` is 0 in every run" in note for note in summary["notes"])
    (tmp_path / "bounds.yaml").write_text("web_maths: [0.1, 1]\n")
    with pytest.raises(UserError, match="no run has tried this domain"):
        fit_command(ratios, metrics, tmp_path / "out", bounds=tmp_path / "bounds.yaml")


def test_limits_that_exclude_each_other(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "bounds.yaml").write_text("web_code: [0.3, 1.0]\n")
    (tmp_path / "caps.yaml").write_text("web_code: 0.2\n")
    with pytest.raises(UserError, match="above the greatest that the caps allow"):
        fit_command(
            ratios, metrics, tmp_path / "out", caps=tmp_path / "caps.yaml", bounds=tmp_path / "bounds.yaml"
        )


@pytest.mark.parametrize(
    ("options", "word"), [({"law": "log-lniear"}, "did you mean `log-linear`"), ({"kl": -1.0}, "kl")]
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    ratios, metrics = write_sweep(tmp_path, rows=12)
    with pytest.raises(UserError, match=word):
        fit_command(ratios, metrics, tmp_path / "out", **{"law": "linear", "bootstrap": 0, **options})


@pytest.mark.seconds
def test_auto_from_files_to_files(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path, rows=12)
    first = fit_command(ratios, metrics, tmp_path / "a", bootstrap=10)
    second = fit_command(ratios, metrics, tmp_path / "b", bootstrap=10)
    assert first["law"] == "auto"
    assert first["mixture"] == second["mixture"]
    weights = json.loads((tmp_path / "a" / "fit.json").read_text())["details"]["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert "weighted mean of" in (tmp_path / "a" / "fit.html").read_text()


def test_short_names() -> None:
    assert short(["train_the_pile_arxiv", "train_the_pile_github"]) == ["arxiv", "github"]
    assert short(["metric/a_val_loss", "metric/b_val_loss"]) == ["a", "b"]
    assert short(["code", "core"]) == ["code", "core"]
    assert short(["a_b", "a_b_c"]) == ["b", "b_c"]
    assert short(["one"]) == ["one"]


def test_effects_are_taken_from_the_others_in_proportion() -> None:
    mixture = np.array([0.5, 0.3, 0.2])
    effect = effects(lambda shares: np.atleast_2d(shares), mixture, 0.01)
    np.testing.assert_allclose(np.diag(effect), 0.01)
    np.testing.assert_allclose(effect.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(effect[0], [0.01, -0.006, -0.004])
