"""One Ray for the whole session, and a tiny configuration on real text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as on any Ray of our own
os.environ.setdefault("RAY_worker_niceness", "0")  # else workers wait for the other process that tests

import pytest
import ray

from tests.support import TinyRun

# Rooms whose tests start processes, or train: left out by --fast.
WHOLE_RUNS = (
    "cli",
    "cluster",
    "commands",
    "compare",
    "docs",
    "exchange",
    "init",
    "runner",
    "strategies",
    "trackers",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fast`: what one runs while working."""
    parser.addoption(
        "--fast", action="store_true", help="only tests that need neither Ray nor a whole run nor seconds"
    )


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on the session's Ray come last; with `--fast` only those that one process answers for in moments.

    Where a Ray is, commands in the test's process go to it: data are read, and a step is timed, by its workers, each of
    which takes seconds to start. So what needs no Ray comes before there is one.
    """
    if config.getoption("--fast"):
        items[:] = [item for item in items if _is_fast(item)]
    items.sort(key=_needs_ray)
    for item in items:  # processes share out whole files, what needs a Ray apart from the rest
        item.add_marker(pytest.mark.xdist_group(f"{item.path}{'-ray' if _needs_ray(item) else ''}"))


def _is_fast(item: pytest.Item) -> bool:
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    return room not in WHOLE_RUNS and not _needs_ray(item) and item.get_closest_marker("seconds") is None


def _needs_ray(item: pytest.Item) -> bool:
    return "ray_session" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray with two CPUs, whose workers start as those of a run's own Ray do."""
    from opmix_ray.cluster.connect import copied_workers, start_ray

    if ray.is_initialized():
        yield
        return
    with copied_workers() as workers:
        start_ray(num_cpus=2, log_to_driver=False, **workers)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small domains cut from the demo's data, and a cache for prepared tokens."""
    from tests.support import write_tiny_data

    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_data: Path, tmp_path: Path) -> TinyRun:
    """A run of a few seconds; change its tree, then `load()` or `write()` it."""
    return TinyRun(tiny_data, tmp_path)
