"""A real search with Ray Tune over probes that were really trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from opmix_ray.config import RunConfig
from opmix_ray.model.base import join_base
from opmix_ray.runner.search import make_task
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import RowLog, TrialRow
from opmix_ray.trials.space import Simplex, mixture_space
from opmix_ray.trials.trial import CandidateScorer, MixtureTrial, SearchTask
from opmix_ray.trials.tuner import searching
from tests.support import TinyRun

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass
class Ready:
    config: RunConfig
    task: SearchTask


@pytest.fixture(scope="module")
def ready(ray_session: None, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    config = TinyRun(tiny_data, tmp_path_factory.mktemp("task")).load()
    return Ready(config, make_task(config))


def search(
    ready: Ready, directory: Path, *, task: SearchTask | None = None, slopes: bool = False, **settings: Any
) -> tuple[list[TrialRow], TrialRow, list[TrialRow]]:
    made: list[TrialRow] = []
    task = task or ready.task
    components = task.components
    log = RowLog(Storage(str(directory)), components.domains, list(ready.config.objective()))
    with searching(
        task,
        Simplex(components),
        ready.config.search.but(**settings),
        log,
        seed=1,
        start=[np.full(3, 1 / 3)],
        on_row=made.append,
        slopes=slopes,
    ) as found:
        rows = found.candidates()
        checked = found.check(np.array([0.5, 0.5, 0]))
    return rows, checked, made


def digest(task: SearchTask) -> str:
    base, factors = ray.get([task.base, task.factors])
    hashed = hashlib.blake2b()
    for part in (base.weights, factors.A, factors.B):
        for name in sorted(part):
            hashed.update(part[name].tobytes())
    return hashed.hexdigest()


def test_a_search_scores_every_candidate_and_changes_no_stored_byte(ready: Ready, tmp_path: Path) -> None:
    before = digest(ready.task)
    rows, checked, made = search(ready, tmp_path)
    assert digest(ready.task) == before
    assert [row.run for row in rows] == [f"{i:03d}" for i in range(6)]
    assert checked.status == "ok"
    assert len(made) == 7
    # What Tune's actors measured is what the plain scorer measures.
    base, factors, sets = ray.get([ready.task.base, ready.task.factors, ready.task.sets])
    scorer = CandidateScorer(join_base(factors, base), sets, ready.task.objective, autocast=False)
    for row in [rows[0], rows[4], checked]:
        score = scorer.score(np.array(list(row.weights.values())))
        assert score.objective == pytest.approx(row.objective, abs=1e-6)
        assert score.tokens == row.tokens == 3 * 6 * 32

    # One evaluator instead of two, cut off after three rows: the same candidates, only the missing ones made.
    other = tmp_path / "other"
    log = RowLog(Storage(str(other)), ready.task.components.domains, list(ready.config.objective()))
    for row in rows[:3]:
        log.add(row)
    again, _, new = search(ready, other, evaluators=1)
    assert [row.weights for row in again] == [row.weights for row in rows]
    assert [row.objective for row in again] == pytest.approx([row.objective for row in rows], abs=1e-6)
    assert sorted(row.run for row in new) == ["003", "004", "005", "proposal"]


@pytest.mark.slow
def test_every_candidate_brings_its_slopes_where_asked_for(ready: Ready, tmp_path: Path) -> None:
    plain, _, _ = search(ready, tmp_path / "plain", trials=4, sampler="random")
    rows, checked, _ = search(ready, tmp_path / "slopes", trials=4, sampler="random", slopes=True)
    assert [row.weights for row in rows] == [row.weights for row in plain]
    assert [row.objective for row in rows] == pytest.approx([row.objective for row in plain], abs=1e-5)
    for row in [*rows, checked]:
        assert {name: len(values) for name, values in row.slopes.items()} == dict.fromkeys(row.losses, 3)
        assert row.flops == pytest.approx(3 * plain[0].flops)
    kept = RowLog(Storage(str(tmp_path / "slopes")), ready.task.components.domains, list(row.losses))
    assert {row.run: dict(row.slopes) for row in kept.rows} == {
        r.run: dict(r.slopes) for r in [*rows, checked]
    }


def test_a_probe_that_blew_up_is_flagged_and_never_wins(ready: Ready, tmp_path: Path) -> None:
    factors = ray.get(ready.task.factors)
    spoiled = {name: array.copy() for name, array in factors.B.items()}
    for array in spoiled.values():
        array[2] = np.nan  # the third domain's probe
    task = replace(ready.task, factors=ray.put(replace(factors, B=spoiled)))
    rows, checked, _ = search(ready, tmp_path, task=task, evaluators=1)
    assert {row.status for row in rows} == {"nan"}
    assert checked.status == "ok"  # the last probe is the only one that it gives no weight


def test_tune_run_with_optuna_search(ready: Ready) -> None:
    names = ready.task.components.names
    analysis = tune.run(
        tune.with_parameters(MixtureTrial, task=ready.task),
        search_alg=OptunaSearch(space=mixture_space(names), metric="objective", mode="min", seed=0),
        num_samples=4,
        resources_per_trial={"cpu": 1},
        reuse_actors=True,
        max_concurrent_trials=1,  # so that the one actor has to take the next candidate
        verbose=0,
    )
    assert len(analysis.trials) == 4
    for trial in analysis.trials:
        assert trial.status == "TERMINATED"
        result = trial.last_result
        assert sum(result["weights"]) == pytest.approx(1)
        assert result["objective"] == pytest.approx(np.mean([result[f"eval_{n}_loss"] for n in names]))
