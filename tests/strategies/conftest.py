"""Prepared data for strategies, once per session, and decisions in the making without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.decision.make import Situation
from opmix_ray.decision.progress import Progress
from opmix_ray.mixture import Mixture
from opmix_ray.storage import Storage
from opmix_ray.strategies.making import Making
from tests.support import TinyRun, one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def prepared(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The tiny domains as tokens."""
    return prepare(TinyRun(tiny_data, tmp_path_factory.mktemp("strategies")).load())


@pytest.fixture
def making(tiny: TinyRun, prepared: Prepared) -> Callable[..., Making]:
    """`making("swarm", "key=value", ...)`: a decision at step 0, nothing of it made yet."""

    def make(strategy: str, *settings: str) -> Making:
        config: RunConfig = tiny.load(f"strategy={strategy}", *settings)
        situation = Situation(
            index=0, step=0, stage="only", space="simplex", current=Mixture.uniform(prepared.domains), model=None,
            tokens_left=12 * 4 * 32, tokens_used={},
        )  # fmt: skip
        return Making(config, prepared, Storage(str(tiny.directory / "decision")), situation, Progress())

    return make
