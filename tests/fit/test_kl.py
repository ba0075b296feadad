"""`--kl auto` chooses the weight whose proposals lose least on runs that they have not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opmix_ray.decision.propose import propose
from opmix_ray.errors import UserError
from opmix_ray.fit import fit_command
from opmix_ray.fit.kl import KlCurve, choose_kl, read_kl
from opmix_ray.laws import fit_law
from opmix_ray.mixture import Mixture
from tests.fit.test_fit_command import write_sweep

DOMAINS = ["a", "b", "c", "d"]
PRIOR = Mixture.uniform(DOMAINS)


def chosen(noise: float, seed: int = 0) -> KlCurve:
    rng = np.random.default_rng(seed)
    ratios = rng.dirichlet(np.ones(4), 40)
    values = 2 - np.log(ratios + 0.02) @ np.array([0.6, 0.3, 0.08, 0.02])
    values += noise * values.std() * rng.standard_normal(40)
    law = fit_law(ratios, values[:, None], domains=DOMAINS, metric_names=["loss"], law="log-share")
    return choose_kl(law, lambda half, kl: propose(half, prior=PRIOR, kl=kl).mixture, seed=seed)


@pytest.mark.seconds
def test_the_noisier_the_runs_the_nearer_to_the_prior() -> None:
    clear, noisy = chosen(0.01), chosen(3.0)
    assert clear.chosen == clear.weights[int(np.argmin(clear.regrets))]
    assert clear.weights.index(clear.chosen) < noisy.weights.index(noisy.chosen)
    assert clear.regrets[-1] > 10 * max(clear.errors[0], 1e-6)


@pytest.mark.seconds
def test_a_command_says_what_it_chose(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    found = fit_command(ratios, metrics, tmp_path / "out", law="ridge", kl="auto", bootstrap=0)
    kept = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert kept["kl"] == found["kl"] == kept["kl_curve"]["chosen"]
    assert found["kl"] in found["kl_curve"]["weights"]
    assert any("least regret on unseen runs" in note for note in found["notes"])
    assert "Regret on unseen runs" in (tmp_path / "out" / "fit.html").read_text()


@pytest.mark.parametrize("given", ["more", "-1", "nan", -0.5])
def test_a_weight_is_a_number_or_auto(given: str | float) -> None:
    with pytest.raises(UserError, match=r"--kl = .*must be a number of at least 0, or `auto`"):
        read_kl(given)


def test_a_handful_of_runs_and_the_worst_case_choose_nothing(tmp_path: Path) -> None:
    ratios, metrics = write_sweep(tmp_path)
    (tmp_path / "objective.yaml").write_text("worst_case: true\n")
    with pytest.raises(UserError, match="cannot be chosen for the worst case"):
        fit_command(ratios, metrics, tmp_path / "out", kl="auto", objective=tmp_path / "objective.yaml")
    rows = np.random.default_rng(0).dirichlet(np.ones(4), 7)
    law = fit_law(rows, rows[:, :1], domains=DOMAINS, metric_names=["loss"], law="ridge")
    with pytest.raises(UserError, match="cannot be chosen by 7 runs"):
        choose_kl(law, lambda half, kl: PRIOR)
