"""Derivatives of candidates' losses: right, asked for where they pay, and worth many candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.config import RunConfig
from opmix_ray.config.run import candidates, with_slopes
from opmix_ray.decision.old_part import OldPart, slopes_of
from opmix_ray.decision.rule import fit_decision
from opmix_ray.errors import UserError
from opmix_ray.laws import Slopes, fit_law
from opmix_ray.laws.fit import check_table
from opmix_ray.mixture import Mixture
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.strategies.opmix import Published
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.trial import CandidateScorer
from tests.decision.test_decide import DOMAINS, NEED, PARTS, question, row
from tests.model.tiny_models import made_probes, tiny, tokens
from tests.support import TinyRun, opmix, read_json

MANY = 20


def truth(ratios: np.ndarray, need: np.ndarray) -> np.ndarray:
    """Losses (n, D) that fall with each set's own share, and a little with its neighbour's."""
    return 3 - need * np.log(ratios + 0.3) - 0.1 * np.roll(ratios, 1, axis=1)


def exact_slopes(ratios: np.ndarray, need: np.ndarray) -> Slopes:
    """Towards every domain."""
    domains = ratios.shape[1]
    own = np.einsum("nd,dk->ndk", -need / (ratios + 0.3), np.eye(domains))
    gradient = own - 0.1 * np.roll(np.eye(domains), 1, axis=0)[None]
    values = gradient - np.einsum("nmd,nd->nm", gradient, ratios)[:, :, None]
    return Slopes(np.eye(domains)[None] - ratios[:, None], values)


def law_error(rows: int, slopes: bool, law: str) -> float:
    rng = np.random.default_rng(0)
    need = rng.uniform(0.05, 0.5, MANY)
    ratios, unseen = rng.dirichlet(np.ones(MANY), rows), rng.dirichlet(np.full(MANY, 0.5), 50)
    names = [f"d{i}" for i in range(MANY)]
    fitted = fit_law(
        ratios, truth(ratios, need), domains=names, metric_names=names, law=law,
        slopes=exact_slopes(ratios, need) if slopes else None,
    )  # fmt: skip
    return float(np.abs(fitted.predict(unseen) - truth(unseen, need)).mean())


@pytest.mark.parametrize("law", ["own-share", "log-share"])
@pytest.mark.seconds
def test_four_rows_with_slopes_say_more_than_twelve_without(law: str) -> None:
    assert law_error(4, True, law) < law_error(12, False, law) / 3


@pytest.mark.seconds
def test_laws_without_a_use_for_slopes_do_without_them() -> None:
    assert law_error(12, True, "linear") == law_error(12, False, "linear")


def test_slopes_that_were_not_measured_change_nothing() -> None:
    rng = np.random.default_rng(1)
    ratios = rng.dirichlet(np.ones(3), 8)
    metrics = truth(ratios, np.array([0.1, 0.2, 0.3]))
    directions = np.eye(3)[None] - ratios[:, None]
    options: dict[str, Any] = {"domains": list("abc"), "metric_names": list("abc"), "law": "own-share"}
    plain = fit_law(ratios, metrics, **options)
    empty = fit_law(ratios, metrics, slopes=Slopes(directions, np.full((8, 3, 3), np.nan)), **options)
    np.testing.assert_array_equal(plain.predict(ratios), empty.predict(ratios))


def test_slopes_of_another_shape_are_refused() -> None:
    ratios = np.full((4, 2), 0.5)
    with pytest.raises(UserError, match="do not fit"):
        check_table(ratios, ratios, "ab", "ab", slopes=Slopes(np.zeros((4, 2, 3)), np.zeros((4, 2, 2))))


def test_slopes_leave_with_the_rows_that_have_no_metric() -> None:
    ratios = np.random.default_rng(0).dirichlet(np.ones(2), 5)
    metrics = ratios.copy()
    metrics[2] = np.nan
    values = np.arange(20.0).reshape(5, 2, 2)
    table = check_table(ratios, metrics, "ab", "ab", slopes=Slopes(np.eye(2)[None] - ratios[:, None], values))
    assert table.slopes is not None
    np.testing.assert_array_equal(table.slopes.values, values[[0, 1, 3, 4]])


@pytest.mark.parametrize("old", [None, OldPart(Mixture({"a": 0.7, "b": 0.3}), DOMAINS)])
def test_slopes_are_finite_differences_towards_the_components(old: OldPart | None) -> None:
    weights, step = np.array([0.4, 0.3, 0.2, 0.1]), 1e-5
    need = np.array([NEED[name] for name in DOMAINS])

    def losses(w: np.ndarray) -> np.ndarray:
        return 3 - need * np.log(PARTS.ratios(w) + 0.3)

    gradient = np.array(
        [(losses(weights + step * e) - losses(weights - step * e)) / (2 * step) for e in np.eye(4)]
    )
    one = replace(row("000", weights), slopes=dict(zip(DOMAINS, gradient.T.tolist(), strict=True)))
    found = slopes_of([one], DOMAINS, PARTS, old)
    assert found is not None
    for c in range(4):
        towards = np.eye(4)[c] - weights
        np.testing.assert_allclose(
            found.values[0, :, c],
            (losses(weights + step * towards) - losses(weights - step * towards)) / (2 * step),
            rtol=1e-4, atol=1e-9,
        )  # fmt: skip
        moved = PARTS.ratios(weights + towards) - PARTS.ratios(weights)
        expected = moved if old is None else old.reduce(moved)[0]
        np.testing.assert_allclose(found.directions[0, c], expected, atol=1e-12)


def test_partwithout_slopes_give_none() -> None:
    assert slopes_of([row("000", np.full(4, 0.25))], DOMAINS, PARTS, None) is None


@pytest.mark.seconds
def test_a_decision_uses_the_slopes_of_its_candidates() -> None:
    need = np.array([NEED[name] for name in DOMAINS])

    def with_gradient(run: str, weights: np.ndarray) -> TrialRow:
        by_share = -need / (PARTS.ratios(weights) + 0.3)  # of each set by its own domain's share
        return replace(
            row(run, weights, noise=0.3),
            slopes={name: (by_share[d] * PARTS.data[:, d]).tolist() for d, name in enumerate(DOMAINS)},
        )

    draws = np.random.default_rng(5).dirichlet(np.ones(4), 4)
    rows = [with_gradient(f"{i:03d}", w) for i, w in enumerate(draws)]
    asked = question(steps=None)
    settings = asked.settings.but(law="own-share")
    asked = replace(asked, settings=settings)
    errors = []
    unseen = np.random.default_rng(6).dirichlet(np.ones(3), 40)
    for part in (rows, [replace(r, slopes={}) for r in rows]):
        law = fit_decision(part, asked).law
        assert law is not None
        guess = law.predict(unseen) - law.predict(unseen).mean(axis=0)
        true = -need * np.log(unseen + 0.3)
        errors.append(np.abs(guess - (true - true.mean(axis=0))).mean())
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.seconds
def test_a_scorer_gives_the_losses_of_its_forward_passes_and_their_derivatives() -> None:
    model = tiny("llama")
    probes = ProbeSet.build(model, made_probes(model, 3), ["d0", "d1", "d2"])
    sets = {"a": tokens(5, 12, seed=1), "b": tokens(3, 12, seed=2)}
    scorer = CandidateScorer(probes, sets, {"a": 0.5, "b": 0.5}, batch_size=4, chunks=2, autocast=False)
    weights, step = np.array([0.2, 0.3, 0.5]), 1e-2
    plain, found = scorer.score(weights), scorer.score_with_slopes(weights)
    assert found.objective == pytest.approx(plain.objective, rel=1e-5)
    assert found.flops == pytest.approx(3 * plain.flops)
    assert found.tokens == plain.tokens
    for name in sets:
        np.testing.assert_allclose(found.losses[name].nats, plain.losses[name].nats, rtol=1e-4)
        for c in range(3):
            ends = [scorer.score(weights + s * step * np.eye(3)[c]).losses[name].mean for s in (1, -1)]
            assert found.slopes[name][c] == pytest.approx(
                (ends[0] - ends[1]) / (2 * step), rel=0.05, abs=1e-4
            )


def test_many_components_ask_for_slopes_and_fewer_candidates(tiny_data: Path, tmp_path: Path) -> None:
    def load(*settings: str) -> RunConfig:
        return TinyRun(tiny_data, tmp_path).load("search.trials=12", "proposal.law=own-share", *settings)

    auto = load()
    assert [with_slopes(auto, count, 12) for count in (3, 15, 16, 64)] == [False, False, True, True]
    assert [candidates(auto, count, 12) for count in (3, 16)] == [12, 4]
    assert candidates(auto, 16, 30) == 10
    assert candidates(auto, 16, 32) == 32  # enough for values alone
    assert candidates(auto, 16, 2) == 2
    assert with_slopes(load("search.gradients=true"), 3, 12)
    assert not with_slopes(load("search.gradients=false"), 64, 12)
    assert not with_slopes(load("proposal.law=linear"), 64, 12)
    assert not with_slopes(load("proposal.law=auto"), 64, 12)  # it counts
    assert not with_slopes(Published().plan(auto), 64, 12)


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
