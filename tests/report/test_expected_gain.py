"""The interval that the report gives for the gain expected of training, against mixtures that were really trained."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.config import ProposalConfig
from opmix_ray.laws import Extrapolation, fit_law
from opmix_ray.laws.extrapolate import stage_growth
from tests.support import ROOT

KEPT = ROOT / "benchmarks" / "results" / "fidelity"


def errors(file: Path, horizon: int) -> np.ndarray:
    """Gains of all trained mixtures over the one in force, less the expected ones, in standard errors."""
    kept: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    names, settings = kept["domains"], ProposalConfig()
    block = next(block for block in kept["probes"] if block["steps"] == 25)
    data = np.array([[probe.get(name, 0.0) for name in names] for probe in block["data"]])
    rows = block["rows"][:12]
    old = np.array([kept["old"][name] for name in names])
    assert settings.eps_steps is not None
    assert settings.slope_growth is not None
    law = fit_law(
        np.array([row["weights"] for row in rows]) @ data,
        np.array([[row["losses"][name] for name in names] for row in rows]),
        domains=names, metric_names=names,
        extrapolate=Extrapolation(
            eps=settings.eps_steps / horizon,
            growth=stage_growth(settings.slope_growth, settings.eps_steps, horizon, 25),
            slope_trust=settings.slope_trust, transfer_trust=settings.transfer_trust, anchor=old.tolist(),
        ),
    )  # fmt: skip
    trained = [row for row in kept["truth"] if str(horizon) in row["losses"]]
    ratios = np.array([[row["mixture"].get(name, 0.0) for name in names] for row in trained])
    true = np.array([np.mean([row["losses"][str(horizon)][name] for name in names]) for row in trained])
    others = np.abs(ratios - ratios[0]).max(axis=1) > 1e-6  # the first one is the mixture in force
    expected = law.objective(ratios[:1]) - law.objective(ratios)
    return ((true[0] - true - expected) / law.objective_std(ratios))[others]


def test_it_holds_about_as_many_of_them_as_it_says() -> None:
    found = np.concatenate(
        [errors(file, horizon) for file in sorted(KEPT.glob("*.gz")) for horizon in (150, 500)]
    )
    assert len(found) > 200
    assert 0.85 < (np.abs(found) < 1.96).mean() < 0.99
