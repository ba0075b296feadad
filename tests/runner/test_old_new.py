"""What `old` is trained on in an `old_new` decision is decided once, whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray import make_task, run
from opmix_ray.config.run import RunConfig
from opmix_ray.runner.validate import spaces
from tests.support import DOMAINS, TinyRun, read_json

STARTS: dict[str, Any] = {
    name: name for name in ("uniform", "proportional", "carry", "join")
} | {"shares": {"code": 0.2, "german": 0.3, "mathematics": 0.5}}  # fmt: skip


def configured(tiny: TinyRun, start: Any) -> RunConfig:
    """A stage that decides at once about one domain that the old mixture has not."""
    tiny.tree["base"] = {"mixture": {"code": 0.9, "german": 0.1}}
    tiny.tree["stages"] = [{"name": "more", "steps": 2, "start": start, "decide_at": [0]}]
    tiny.tree["probe"] |= {"steps": 1}
    tiny.tree["search"] |= {"space": "old_new", "trials": 4, "evaluators": 1}
    return tiny.load()


def decided(config: RunConfig) -> tuple[np.ndarray, dict[str, float]]:
    """What the components of a run's decision saw, and what the probe of its check saw."""
    run(config)
    place = Path(config.output_uri()) / "decisions" / "000"
    seen = read_json(place / "decision.json")["details"]["components"]
    assert list(seen) == ["old", "mathematics"]
    data = [[shares.get(domain, 0.0) for domain in DOMAINS] for shares in seen.values()]
    return np.array(data), read_json(place / "check.json")["data"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "start",
    [pytest.param(name, marks=pytest.mark.promise) if name == "uniform" else name for name in STARTS],
)
def test_a_run_a_script_and_the_checks_before_a_run_train_old_on_the_same(
    tiny: TinyRun, ray_session: None, start: str
) -> None:
    config = configured(tiny, STARTS[start])
    (space,) = spaces(config)
    data, check = decided(config)
    assert space.components.names == ("old", "mathematics")
    if start != "proportional":  # tokens are counted later
        assert space.components.data == pytest.approx(data)
    assert make_task(config).components.data == pytest.approx(data)
    assert data[0, 2] == 0, "old is trained on nothing new"
    assert check["mathematics"] > 0.1, "the check's probe is trained on all domains"
    assert sum(check.values()) == pytest.approx(1)
