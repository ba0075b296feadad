"""Mixtures that were really trained, and a decision's law about them: what benchmarks/fidelity.py reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.decision.rule import EPS_STEPS, SLOPE_GROWTH, SLOPE_TRUST, TRANSFER_TRUST
from opmix_ray.laws import Extrapolation, FittedLaw, fit_law
from opmix_ray.laws.extrapolate import stage_growth
from tests.support import ROOT

FILES = sorted((ROOT / "benchmarks" / "results" / "fidelity").glob("*.json.gz"))


def read(file: Path, horizon: int) -> tuple[FittedLaw, np.ndarray, np.ndarray]:
    """The default law from 12 candidates on probes of 25 steps; trained mixtures (n, D) and their losses (n, M).

    Args:
        file: one of `FILES`.
        horizon: steps that the mixtures were trained for.
    """
    kept: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    names = kept["domains"]
    block = next(block for block in kept["probes"] if block["steps"] == 25)
    data = np.array([[probe.get(name, 0.0) for name in names] for probe in block["data"]])
    rows = block["rows"][:12]
    law = fit_law(
        np.array([row["weights"] for row in rows]) @ data,
        np.array([[row["losses"][name] for name in names] for row in rows]),
        domains=names, metric_names=names,
        extrapolate=Extrapolation(
            eps=EPS_STEPS / horizon,
            growth=stage_growth(SLOPE_GROWTH, EPS_STEPS, horizon, 25),
            slope_trust=SLOPE_TRUST, transfer_trust=TRANSFER_TRUST,
            anchor=[kept["old"][name] for name in names],
        ),
    )  # fmt: skip
    trained = [row for row in kept["truth"] if str(horizon) in row["losses"]]
    ratios = np.array([[row["mixture"].get(name, 0.0) for name in names] for row in trained])
    losses = np.array([[row["losses"][str(horizon)][name] for name in names] for row in trained])
    return law, ratios, losses
