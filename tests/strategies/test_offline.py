"""Strategies that learn from separate models: the property that defines each, on models that are really trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

import opmix_ray
from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import search_sets
from opmix_ray.data.prepare import Prepared
from opmix_ray.exchange.csv_table import read_csv
from opmix_ray.fit.sweep import read_mixtures
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import load_base, save_base
from opmix_ray.model.loss import evaluate_sets
from opmix_ray.storage import split_file
from opmix_ray.strategies.design import designed, sample_mixtures
from opmix_ray.strategies.making import Making
from opmix_ray.strategies.proxies import train_proxy
from opmix_ray.strategies.separate import Merger, next_weights, score_merges, train_dro
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.object_store import object_store

Making = Callable[..., Making]


@pytest.fixture(scope="module")
def sets(prepared: Prepared) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return search_sets(prepared, 8, 6)


def test_a_swarm_samples_around_the_prior() -> None:
    prior = Mixture({"a": 0.7, "b": 0.2, "c": 0.1})
    near = np.array([m.array() for m in sample_mixtures(prior, 400, (50.0, 100.0), seed=1)])
    wide = np.array([m.array() for m in sample_mixtures(prior, 400, (0.1, 0.5), seed=1)])
    assert near.mean(axis=0) == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert wide.std(axis=0).mean() > 3 * near.std(axis=0).mean()
    assert sample_mixtures(prior, 3, (0.5, 5.0), 1) == sample_mixtures(prior, 3, (0.5, 5.0), 1)


NAMES = ("a", "b", "c", "d")


def test_a_design_lies_within_bounds_and_begins_with_its_centre() -> None:
    centre = Mixture({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})
    lower, upper = {"a": 0.1}, {"b": 0.35, "c": 0.5}
    rows = np.array([m.array() for m in designed(20, centre, lower=lower, upper=upper)])
    assert rows[0] == pytest.approx(centre.array())
    assert rows.sum(axis=1) == pytest.approx(1)
    assert (rows >= np.array([0.1, 0, 0, 0]) - 1e-9).all()
    assert (rows <= np.array([1, 0.35, 0.5, 1]) + 1e-9).all()
    assert len(np.unique(rows.round(6), axis=0)) == 20
    assert rows[:, 1].max() > 0.3
    assert rows[:, 0].min() < 0.15


def test_rows_of_a_design_can_be_had_later() -> None:
    centre = Mixture.uniform(NAMES)
    assert designed(24, centre, seed=3)[:16] == designed(16, centre, seed=3)
    assert designed(16, centre, seed=4) != designed(16, centre, seed=3)
    before = designed(6, centre, seed=3)
    assert designed(10, centre, seed=3, earlier=before) == designed(16, centre, seed=3)[6:]


def test_a_design_leaves_no_two_mixtures_as_alike_as_random_ones_are() -> None:
    def least(rows: list[Mixture]) -> float:
        points = np.log(np.array([m.array() for m in rows]) + 0.01)
        return float(pdist(points).min())

    centre = Mixture.uniform(NAMES)
    drawn = [least(sample_mixtures(centre, 12, (0.5, 5.0), seed)) for seed in range(20)]
    assert least(designed(12, centre)) > 1.5 * max(drawn)


def test_a_design_near_a_mixture_stays_near_it() -> None:
    best = Mixture({"a": 0.7, "b": 0.2, "c": 0.1, "d": 0.0})
    near = np.mean([m.distance(best) for m in designed(12, best, near=True)])
    wide = np.mean([m.distance(best) for m in designed(12, best)])
    assert near < 0.6 * wide


def test_design_from_python_refuses_what_the_command_does() -> None:
    rows = opmix_ray.design(NAMES, 8, tokens={"a": 4, "b": 3, "c": 2, "d": 1}, upper={"d": 0.2})
    assert rows[0].shares == pytest.approx({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})
    assert max(row["d"] for row in rows) <= 0.2 + 1e-9
    for wrong, said in (
        ({"domains": ["a"]}, "is one domain"),
        ({"runs": 1}, "at least 3 runs"),
        ({"upper": {"e": 0.1}}, "upper = e: no such domain"),
        ({"upper": dict.fromkeys(NAMES, 0.2)}, "the greatest shares sum to 0.8"),
        ({"near": {"a": 1.0}, "upper": {"a": 0.5}}, "outside of its bounds"),
    ):
        with pytest.raises(opmix_ray.UserError, match=said):
            opmix_ray.design(**({"domains": NAMES, "runs": 8} | wrong))


def test_design_writes_a_file_that_fit_reads(opmix: Opmix, tmp_path: Path) -> None:
    caps = tmp_path / "caps.yaml"
    caps.write_text(
        "stage_tokens: 1000\ndomains: {a: {tokens: 200, max_epochs: 1}, b: 300, c: 300, d: 200}\n"
    )
    first = tmp_path / "first.csv"
    ended = opmix("design", "--domains", "a,b,c,d", "--runs", 12, "--caps", caps, "-o", first, "--json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["runs"]
    assert rows[0] == {"run": "run-000", "a": 0.2, "b": 0.3, "c": 0.3, "d": 0.2}  # proportional to the tokens
    sweep = read_mixtures(read_csv(first))
    assert sweep.domains == list(NAMES)
    assert len(sweep.rows) == 12
    assert sweep.shares[:, 0].max() <= 0.2 + 1e-6
    near = tmp_path / "mixture.json"
    near.write_text(json.dumps({"mixture": {"a": 0.1, "b": 0.5, "c": 0.2, "d": 0.2}}))
    more = tmp_path / "more.csv"
    ended = opmix(
        "design", "--domains", "a,b", "--domains", "c,d", "--runs", 4, "--caps", caps, "--near", near,
        "--earlier", first, "-o", more,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "note: " not in ended.out
    assert [line.partition(",")[0] for line in more.read_text().splitlines()[1:]] == [
        f"run-{number:03d}" for number in range(12, 16)
    ]


def test_fewer_runs_than_domains_are_designed_with_a_note(opmix: Opmix, tmp_path: Path) -> None:
    ended = opmix("design", "--domains", "a,b,c,d", "--runs", 3, "-o", tmp_path / "few.csv")
    assert ended.code == 0, ended.err
    assert "note: 3 runs for 4 domains" in ended.out


def test_a_domain_that_near_gives_nothing_is_told(opmix: Opmix, tmp_path: Path) -> None:
    near = tmp_path / "near.yaml"
    near.write_text("{a: 0.5, b: 0.3, c: 0.2}")
    ended = opmix(
        "design", "--domains", "a,b,c,new", "--runs", 8, "--near", near, "-o", tmp_path / "d.csv", "--json"
    )
    assert json.loads(ended.out)["notes"] == [f"{near} gives `new` nothing, so hardly any run has some of it"]


def test_a_design_is_written_to_an_object_store(
    opmix: Opmix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        uri = server.uri("sweep/design.csv")
        ended = opmix("design", "--domains", "a,b,c", "--runs", 8, "-o", uri, "--json")
        assert json.loads(ended.out)["output"] == uri
        assert len(split_file(uri)[0].read_text("design.csv").splitlines()) == 9
        assert "is there already" in opmix("design", "--domains", "a,b", "--runs", 8, "-o", uri).only_error()


WRONG = {
    "one domain": ("a", 8, {}, "--domains = a: is one domain"),
    "twice": ("a,b,a", 8, {}, "--domains = a,b,a: names `a` twice"),
    "nameless": ("a,,b", 8, {}, "--domains = a,,b: holds an empty name"),
    "run": ("a,run", 8, {}, "--domains = a,run: `run` names the runs of a sweep"),
    "no runs": ("a,b", 0, {}, "--runs = 0: a law needs at least 3 runs"),
    "many runs": ("a,b", 5000, {}, "more than 1,000 are not chosen one by one"),
    "two runs": ("a,b", 2, {}, "--runs = 2: a law needs at least 3 runs"),
    "contradicting bounds": ("a,b", 8, {"bounds": "a: [0.5, 0.4]"}, "bounds.yaml: a = [0.5, 0.4]: needs 0 <="),
    "bounds above caps": ("a,b", 8, {"bounds": "a: [0.5, 0.9]", "caps": "a: 0.4"}, "bounds.yaml: a: the least share"),
    "bounds above one": ("a,b", 8, {"bounds": "{a: [0.6, 1], b: [0.6, 1]}"}, "bounds.yaml: --bounds: the least shares"),
    "caps below one": ("a,b", 8, {"caps": "{a: 0.4, b: 0.5}"}, "caps.yaml: --caps: the greatest shares sum to 0.9"),
    "bounds below one": ("a,b", 8, {"bounds": "{a: [0, 0.4], b: [0, 0.5]}"}, "bounds.yaml: --bounds: the greatest"),
    "unknown in bounds": ("a,b", 8, {"bounds": "c: [0, 1]"}, "bounds.yaml: c: no such domain; "),
    "unknown in caps": ("a,b", 8, {"caps": "c: 0.5"}, "caps.yaml: c: no such domain; "),
    "unknown in near": ("a,b", 8, {"near": "{a: 0.5, c: 0.5}"}, "near.yaml: c: no such domain; "),
    "near nothing": ("a,b", 8, {"near": None}, "--near = gone: is neither `uniform`, `proportional` nor a file"),
    "near outside": ("a,b", 8, {"near": "{a: 0.9, b: 0.1}", "caps": "a: 0.4"}, "near.yaml: gives `a` 0.9, outside"),
    "unknown earlier": ("a,b", 8, {"earlier": "run,a,c\n1,0.5,0.5\n"}, "earlier.yaml: c: is no domain"),
    "earlier is none": ("a,b", 8, {"earlier": "run,a,b\n1,0.5,0.9\n"}, "earlier.yaml: "),
    "is there": ("a,b", 8, {"output": "x"}, "output.yaml: is there already"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_design_is_one_line_and_writes_nothing(case: str, opmix: Opmix, tmp_path: Path) -> None:
    domains, runs, files, said = WRONG[case]
    given: list[object] = []
    for name, text in files.items():
        file = tmp_path / f"{name}.yaml"
        if text is not None:
            file.write_text(text)
        given += [f"--{name}", "gone" if text is None else file]
    output = [] if "output" in files else ["--output", tmp_path / "out.csv"]
    before = set(tmp_path.iterdir())
    assert said in opmix("design", "--domains", domains, "--runs", runs, *output, *given).only_error()
    assert set(tmp_path.iterdir()) == before


def test_a_swarm_stays_within_the_caps_and_least_shares_of_its_run(making: Making) -> None:
    search = making("swarm", "data.domains.german.min_share=0.3")
    rows = designed(8, Mixture.proportional(search.tokens), lower=search.lower, upper=search.caps)
    assert min(row["german"] for row in rows) >= 0.3 - 1e-9
    assert all(row[name] <= search.caps[name] + 1e-9 for row in rows for name in search.domains)


def test_the_law_of_a_swarm_leads_to_the_best_mixture(making: Making) -> None:
    """Losses made from shares: `german` is worth more than the others."""
    search = making("swarm")
    mixtures = sample_mixtures(Mixture.uniform(search.domains), 24, (0.5, 5.0), seed=2)
    worth = {"code": 0.5, "german": 2.0, "mathematics": 0.5}
    rows = [
        search.row(f"{i:03d}", m.shares, {d: 1 + worth[d] * np.exp(-4 * m[d]) for d in search.domains})
        for i, m in enumerate(mixtures)
    ]
    decision = search.by_law(rows, "proportional", "proxy models")
    assert decision.kept == "proposal"
    assert max(decision.mixture, key=decision.mixture.__getitem__) == "german"
    assert decision.law["objective"]["spearman_cv"] > 0.8
    assert decision.details["cost"]["fit"]["seconds"] > 0


def test_too_few_finite_losses_keep_the_mixture(making: Making) -> None:
    search = making("swarm")
    shares = Mixture.uniform(search.domains).shares
    rows = [search.row(f"{i}", shares, dict.fromkeys(search.domains, float("nan"))) for i in range(5)]
    decision = search.by_law(rows, "proportional", "proxy models")
    assert decision.kept == "old"
    assert "0 of 5 proxy models" in decision.reason


def test_a_proxy_learns_its_mixture_and_is_smaller_where_asked(making: Making, sets: dict) -> None:
    search = making("swarm")
    settings = ProxyConfig(steps=25, model={"hidden_size": 16})
    one = train_proxy(
        search.proxy("a", Mixture({"german": 1.0}), settings, evaluate=True, keep=True), None, sets
    )
    other = train_proxy(search.proxy("b", Mixture({"code": 1.0}), settings, evaluate=True), None, sets)
    assert one.losses["german"] < other.losses["german"]
    assert other.losses["code"] < one.losses["code"]
    assert one.model is not None
    assert one.model.weights["model.embed_tokens.weight"].shape[1] == 16
    assert one.tokens == 25 * 4 * 32 + sum(ids.size for ids, _ in sets.values())
    assert one.flops > 0


def test_dro_raises_the_weight_of_domains_that_lag_behind_the_reference(making: Making, sets: dict) -> None:
    """A reference that has seen `german` alone is ahead there and nowhere else."""
    search = making("doremi")
    settings = ProxyConfig(steps=6, learning_rate_ratio=3.0)
    reference = train_proxy(
        replace(search.proxy("reference", Mixture({"german": 1.0}), settings, keep=True), steps=40),
        None,
        sets,
    ).model
    assert reference is not None
    task = search.proxy("proxy", Mixture.uniform(search.domains), settings)
    found = train_dro(task, None, sets, reference, 1.0).found["mixture"]
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=found.__getitem__) == "german"


def test_domain_weights_follow_the_paper() -> None:
    alpha = next_weights(np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), eta=1.0)
    grown = np.array([0.5, 0.3 * np.e, 0.2 * np.e**2])
    assert alpha == pytest.approx(0.999 * grown / grown.sum() + 0.001 / 3)
    assert next_weights(alpha, np.array([0.0, 0.0, 99.0]), eta=1.0)[0] == pytest.approx(0.001 / 3)


def test_merging_is_linear_and_hits_base_and_experts(making: Making, sets: dict, tmp_path: Path) -> None:
    search = making("mergemix")
    proxy = ProxyConfig(steps=5)
    experts = []
    for name in ("german", "code"):
        task = search.proxy(name, Mixture({name: 1.0}), proxy, keep=True)
        experts.append(train_proxy(task, search.base, sets).model)
    save_base(experts[0], tmp_path)
    experts[0] = load_base(tmp_path)
    before = {name: array.copy() for name, array in search.base.weights.items()}
    merger = Merger(search.base, experts)
    corners = {"base": [0.0, 0.0], "german": [1.0, 0.0], "code": [0.0, 1.0]}
    expected = {"base": search.base, "german": experts[0], "code": experts[1]}
    for name, weights in corners.items():
        merger.set(np.array(weights))
        for key, parameter in merger.model.named_parameters():
            assert np.allclose(parameter.detach().numpy(), expected[name].weights[key], atol=1e-6)
    merger.set(np.array([0.3, 0.7]))
    for key, parameter in merger.model.named_parameters():
        base = before[key]
        mixed = base + 0.3 * (experts[0].weights[key] - base) + 0.7 * (experts[1].weights[key] - base)
        assert np.allclose(parameter.detach().numpy(), mixed, atol=1e-6)
        assert (search.base.weights[key] == before[key]).all()


def test_merged_models_score_like_the_experts_they_are(making: Making, sets: dict) -> None:
    search = making("mergemix")
    task = search.proxy("german", Mixture({"german": 1.0}), ProxyConfig(steps=15), keep=True, evaluate=True)
    expert = train_proxy(task, search.base, sets)
    config = search.config
    scores = score_merges(
        [np.array([0.0]), np.array([1.0])],
        sets,
        16,
        32,
        config.model,
        config.probe,
        search.base,
        expert.model,
    )
    assert scores[1].losses == pytest.approx(expert.losses, abs=1e-4)
    assert scores[1].losses["german"] < scores[0].losses["german"]
    with torch.no_grad():
        fresh = evaluate_sets(Merger(search.base, []).model, sets, 16, autocast=False)
    assert scores[0].losses == pytest.approx({name: loss.mean for name, loss in fresh.items()}, abs=1e-5)
