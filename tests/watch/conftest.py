"""A run to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.storage import Storage
from tests.report.synthetic import PLAIN, make_run


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """A finished run with two decisions over three domains."""
    return make_run(tmp_path / "run", decisions=2, trials=6, domains=PLAIN[:3], steps=60)
