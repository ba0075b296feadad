"""Runs to report on, written once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from opmix_ray.report import write_report
from opmix_ray.storage import Storage
from tests.report.synthetic import HOSTILE, PLAIN, make_run


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Five decisions with twenty candidates each, bad ones among them; not to be changed."""
    return make_run(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="session")
def page(full: Storage) -> str:
    """The report of `full`."""
    return Path(write_report(full)).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """One decision over domains with names that break HTML, formulas and layouts."""
    return make_run(tmp_path_factory.mktemp("hostile"), domains=HOSTILE, decisions=1, trials=14)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two decisions with ten candidates each; not to be changed."""
    return make_run(tmp_path_factory.mktemp("small"), decisions=2, trials=10, domains=PLAIN[:4], steps=300)


@pytest.fixture
def copy(small: Storage, tmp_path: Path) -> Storage:
    """A copy of `small` to break."""
    shutil.copytree(small.uri, tmp_path / "run")
    return Storage(str(tmp_path / "run"))
