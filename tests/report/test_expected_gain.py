"""The interval that the report gives for the gain expected of training, against mixtures that were really trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.laws.trained import FILES, read


def errors(file: Path, horizon: int) -> np.ndarray:
    """Gains of all trained mixtures over the one in force, less the expected ones, in standard errors."""
    law, ratios, losses = read(file, horizon)
    true = losses.mean(axis=1)
    others = np.abs(ratios - ratios[0]).max(axis=1) > 1e-6  # the first one is the mixture in force
    expected = law.objective(ratios[:1]) - law.objective(ratios)
    return ((true[0] - true - expected) / law.objective_std(ratios))[others]


@pytest.mark.seconds
def test_it_holds_about_as_many_of_them_as_it_says() -> None:
    found = np.concatenate([errors(file, horizon) for file in FILES for horizon in (150, 500)])
    assert len(found) > 200
    assert 0.85 < (np.abs(found) < 1.96).mean() < 0.99
