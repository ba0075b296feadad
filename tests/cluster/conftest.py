"""Clusters are started by the tests that need them; no test shares the session's Ray."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.cluster.machines import Machines
from tests.cluster.runs import Running

TRAINER, SIDE = {"trainer": 1.0}, {"side": 1.0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Statistics, jobs and the fake provider need what `ray[default]` brings."""
    if importlib.util.find_spec("grpc") is None:
        missing = pytest.mark.skip(reason="needs ray[default]: pip install 'opmix_ray[cluster]'")
        for item in items:
            if item.get_closest_marker("cluster") is not None and "tests/cluster" in str(item.path):
                item.add_marker(missing)


@pytest.fixture(scope="module", autouse=True)
def machines_are_watched() -> Iterator[None]:
    """Here machines are taken away, which the session's own Ray is not looked at for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
        yield


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    """A test's runs end with it."""
    yield
    Running.end_all()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two machines for the main run, two for probes and trials, and a head without room."""
    machines = Machines([TRAINER, TRAINER, SIDE, SIDE])
    yield machines
    machines.close()
