"""Run one decision's search with Ray Tune; finished trials are kept, missing ones made."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.search import Searcher

from opmix_ray.config import SearchConfig
from opmix_ray.node import Holder, here
from opmix_ray.trials.rows import RowLog, TrialRow
from opmix_ray.trials.searcher import PROPOSAL, MixtureSearch
from opmix_ray.trials.space import Space
from opmix_ray.trials.trial import MixtureTrial, SearchTask

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no file per trial: rows are kept by us
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # Tune's own snapshots are for Tuner.restore
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_search(
    task: SearchTask,
    space: Space,
    config: SearchConfig,
    log: RowLog,
    *,
    seed: int,
    start: Sequence[np.ndarray],
    propose: Callable[[list[TrialRow]], np.ndarray | None],
    on_row: Callable[[TrialRow], None],
    slopes: bool = False,
    retries: int = 0,
) -> tuple[list[TrialRow], TrialRow | None]:
    """Score `config.trials` candidates, then the proposal.

    Args:
        task: base, factors and held-out sequences in the object store.
        space: candidates are drawn from it.
        config: sampler, numbers, resources.
        log: rows already known and place for new ones.
        seed: of the sampler.
        start: weights (C,) of the warm starts, the mixture in force first.
        propose: from the rows to the proposal's weights, or None.
        on_row: called with every new row, after it is on disk.
        slopes: whether each candidate brings its losses' derivatives (see `opmix_ray.decision.slopes`).
        retries: how often a candidate is tried again when its evaluator fails or goes away.

    Returns:
        The candidates' rows in order, and the proposal's row, if one was made.
    """

    def keep(row: TrialRow) -> None:
        log.add(row)
        on_row(row)

    search = MixtureSearch(
        space,
        sampler=config.sampler,
        seed=seed,
        trials=config.trials,
        round_size=config.round_size,
        start=start,
        recorded={row.run: row for row in log.rows},
        on_row=keep,
        propose=propose,
        evaluators=config.evaluators,
        slopes=slopes,
        retries=retries,
    )
    if search.suggest("first") != Searcher.FINISHED:  # something is missing
        search.hand_back("first")
        _tune(task, config, search)
    return search.ordered(), search.rows.get(PROPOSAL)


def _tune(task: SearchTask, config: SearchConfig, search: MixtureSearch) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It lists trials that failed; rows tell more.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    resources: dict[str, Any] = {"cpu": config.cpus, **config.resources}
    if config.gpus:
        resources["gpu"] = config.gpus
    holder = _hold_arrays([task.base, task.factors, task.sets])
    bare = replace(task, base=None, factors=None, sets=None)
    trainable = tune.with_resources(tune.with_parameters(MixtureTrial, task=bare, holder=holder), resources)
    directory = tempfile.mkdtemp(prefix="opmix-tune-")  # Tune's own notes; nothing in it is needed later
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="objective",
                mode="min",
                search_alg=search,
                num_samples=-1,  # the searcher says when it is over
                max_concurrent_trials=config.evaluators,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=directory,
                verbose=0,
                progress_reporter=_Silent(),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher tries again
            ),
        ).fit()
    finally:
        ray.kill(holder)
        shutil.rmtree(directory, ignore_errors=True)


class _Silent(tune.ProgressReporter):
    """Tune's own for notebooks clears the cell's output, which is where our bars are, even where it says nothing."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        """Nothing."""


def _hold_arrays(references: Sequence[Any]) -> Any:
    """A handle of a holder of object references, on the driver's machine; it is cleared by `ray.kill`."""
    return Holder.options(scheduling_strategy=here()).remote(references)  # type: ignore[attr-defined]
