"""One decision's search with Ray Tune: its actors start once, score the candidates, and then the proposal.

    with searching(task, space, config, log, seed=0, start=[weights], on_row=print) as search:
        rows = search.candidates()
        checked = search.check(best_of(rows))

Tune runs in a thread of its own; whoever decides takes its time between two calls, and the actors wait.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray import tune

from opmix_ray.config import SearchConfig
from opmix_ray.node import Desk, here
from opmix_ray.signals import Background
from opmix_ray.trials.rows import RowLog, TrialRow
from opmix_ray.trials.searcher import Asked, MixtureSearch, Scored, Turns
from opmix_ray.trials.space import Space
from opmix_ray.trials.trial import Evaluator, SearchTask

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no file per trial: rows are kept by us
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # Tune's own snapshots are for Tuner.restore
    "RAY_AIR_NEW_OUTPUT": "0",
}
_PATIENCE = 10.0  # seconds that evaluators of a search that was stopped have for the candidate they are at


@contextmanager
def searching(
    task: SearchTask,
    space: Space,
    config: SearchConfig,
    log: RowLog,
    *,
    seed: int,
    start: Sequence[np.ndarray],
    on_row: Callable[[TrialRow], None],
    slopes: bool = False,
    retries: int = 0,
) -> Iterator[MixtureSearch]:
    """A search for the time of a `with`; Ray starts nothing before a candidate is missing.

    Args:
        task: base, factors and held-out sequences in the object store.
        space: candidates are drawn from it.
        config: sampler, numbers, resources.
        log: rows already known and place for new ones.
        seed: of the sampler.
        start: weights (C,) of the warm starts, the mixture in force first.
        on_row: called with every new row, after it is on disk.
        slopes: whether each candidate brings its losses' derivatives (see `opmix_ray.decision.old_part`).
        retries: how often a candidate is tried again when its evaluator fails or goes away.
    """

    def keep(row: TrialRow) -> None:
        log.add(row)
        on_row(row)

    evaluators = _Evaluators(task, config, slopes, retries)
    failed = True
    try:
        yield MixtureSearch(
            space,
            evaluators,
            sampler=config.sampler,
            seed=seed,
            trials=config.trials,
            round_size=config.round_size,
            start=start,
            recorded={row.run: row for row in log.rows},
            on_row=keep,
        )
        failed = False
    finally:
        evaluators.close(failed=failed)


class _Evaluators:
    """The evaluators of one search, from its first candidate to `close`."""

    def __init__(self, task: SearchTask, config: SearchConfig, slopes: bool, retries: int) -> None:
        self._task, self._config, self._slopes = task, config, slopes
        self._turns = Turns(self._give, evaluators=config.evaluators, retries=retries)
        self._desk: Any = None
        self._tune: Background[None] | None = None

    def score(self, asked: Sequence[Asked]) -> None:
        """Have candidates scored."""
        if self._tune is None:
            arrays = [self._task.base, self._task.factors, self._task.sets]
            self._desk = Desk.options(scheduling_strategy=here()).remote(arrays)  # type: ignore[attr-defined]
            self._tune = Background(self._run)
        self._turns.score(asked)

    def next(self) -> Scored:
        """The next candidate that is done."""
        return self._turns.next()

    def close(self, *, failed: bool) -> None:
        """Let the evaluators end, and wait for them; only some seconds if the search `failed`."""
        self._turns.close()
        if self._tune is None:
            return
        try:
            if failed:
                self._tune.wait(_PATIENCE)
            else:
                self._tune.result()
        finally:
            ray.kill(self._desk)

    def _give(self, turn: str, batch: list[np.ndarray]) -> None:
        self._desk.give.remote(turn, batch)

    def _run(self) -> None:
        try:
            _tune(replace(self._task, base=None, factors=None, sets=None), self._config, self._turns, {
                "desk": self._desk, "slopes": self._slopes,
            })  # fmt: skip
        except BaseException as error:
            self._turns.done.put(error)
            raise
        self._turns.done.put(RuntimeError("Ray Tune ended before the search was over"))


def _tune(bare: SearchTask, config: SearchConfig, turns: Turns, parameters: dict[str, Any]) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It lists trials that failed; rows tell more.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    resources: dict[str, Any] = {"cpu": config.cpus, **config.resources}
    if config.gpus:
        resources["gpu"] = config.gpus
    trainable = tune.with_resources(tune.with_parameters(Evaluator, task=bare, **parameters), resources)
    directory = tempfile.mkdtemp(prefix="opmix-tune-")  # Tune's own notes; nothing in it is needed later
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=turns,
                num_samples=-1,  # the search says when it is over
                max_concurrent_trials=config.evaluators,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=directory,
                verbose=0,
                progress_reporter=_Silent(),
                callbacks=[_Begins(turns)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),  # turns give candidates out again
            ),
        ).fit()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Begins(tune.Callback):
    """Tells when an actor begins a turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One has begun."""
        self._turns.begin(trial.trial_id)


class _Silent(tune.ProgressReporter):
    """Tune's own for notebooks clears the cell's output, which is where our bars are, even where it says nothing."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        """Nothing."""
