"""Run a comparison: one configuration per strategy and seed; what is finished is found, what was cut off goes on.

Runs side by side are commands of their own, all on one cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from opmix_ray.cluster.connect import connected
from opmix_ray.compare.page import render
from opmix_ray.compare.summary import Row, row_of, summarise, to_csv, to_markdown
from opmix_ray.config import RunConfig, StageConfig, dump_config
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.progress import Progress
from opmix_ray.errors import UserError
from opmix_ray.output.lock import locked, raise_fence
from opmix_ray.output.state import FENCE, LOCK, RESULT
from opmix_ray.runner.base import beginning, resolved
from opmix_ray.runner.forecast import Forecast
from opmix_ray.runner.plan import stage_domains, with_strategy
from opmix_ray.runner.runner import run
from opmix_ray.runner.validate import validate
from opmix_ray.storage import Storage
from opmix_ray.strategies.base import check_strategy, strategy_names, strategy_of

RUNS = "runs"  # directory of the runs inside a comparison's output


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Args:
        strategy: its name.
        seed: of everything random in the run.
        place: its directory inside the comparison's output.
        config: what it does; its output is that directory.
    """

    strategy: str
    seed: int
    place: str
    config: RunConfig


def check_strategies(strategies: Sequence[str]) -> list[str]:
    """The names, each once.

    Raises:
        UserError: none is named, or one is unknown.
    """
    found = list(dict.fromkeys(name.strip() for name in strategies if name.strip()))
    if not found:
        known = ", ".join(strategy_names())
        raise UserError("no strategy is named", key="--strategies", remedy=f"known: {known}")
    for name in found:
        check_strategy(name, "--strategies")
    return found


def entries(
    config: RunConfig,
    strategies: Sequence[str],
    seeds: int,
    output: str,
    scale: Mapping[str, float] | None = None,
    cyclic: bool = False,
) -> list[ComparedRun]:
    """Every run, seed by seed, so that a comparison that is cut off has whole rows.

    Args:
        config: the run that all are made from.
        strategies: names.
        seeds: how many; they count up from the configuration's own.
        output: directory or URI of the comparison.
        scale: factor on the steps of a strategy's stages; none: 1.
        cyclic: every seed begins with another stage's domains.

    Raises:
        UserError: the stages have no other order.
    """
    found = []
    for number, seed in enumerate(range(config.seed, config.seed + seeds)):
        stages = rotated(config, number) if cyclic else config.stages
        for name in strategies:
            place = f"{RUNS}/{name}/seed-{seed}"
            factor = (scale or {}).get(name, 1.0)
            found.append(
                ComparedRun(
                    name, seed, place,
                    with_strategy(
                        config, name, factor, seed=seed, name=f"{config.name}-{name}-{seed}",
                        output=f"{output.rstrip('/')}/{place}", stages=stages,
                    ),
                )
            )  # fmt: skip
    return found


def rotated(config: RunConfig, by: int) -> list[StageConfig]:
    """The stages with what each one adds moved on: the first begins with the domains that came in stage `by`.

    Names go with the domains; steps, start and decisions stay with the place.

    Args:
        config: stages of which each keeps the domains before it and adds some.
        by: how many places, modulo the number of stages.

    Raises:
        UserError: a stage adds nothing, or leaves out what came before.
    """
    had: set[str] = set()
    adds: list[list[str]] = []
    for stage in config.stages:
        domains = stage_domains(config, stage)
        new = [name for name in domains if name not in had]
        if not new or not had <= set(domains):
            raise UserError(
                "has no cyclic orders: each stage must keep the domains before it and add some",
                key="stages",
                value=stage.name,
                remedy="leave --cyclic out",
            )
        adds.append(new)
        had |= set(new)
    by %= len(adds)
    adds = adds[by:] + adds[:by]
    names = [stage.name for stage in config.stages]
    names = names[by:] + names[:by]
    return [
        stage.but(name=name, domains=[d for new in adds[: place + 1] for d in new])
        for place, (stage, name) in enumerate(zip(config.stages, names, strict=True))
    ]


def factors(config: RunConfig, prepared: Prepared, strategies: Sequence[str]) -> dict[str, float]:
    """A factor on each strategy's steps. With it, every run costs what the configured run costs without a search.

    Raises:
        UserError: searching alone costs more.
    """
    forecast = Forecast(config, prepared)
    budget = forecast.training("uniform")
    return {name: forecast.scale(name, budget) for name in strategies}


class ParallelRuns:
    """Commands that join the cluster this process is connected to; whoever leaves the `with` early ends them.

    A command that is ended writes a checkpoint first, and goes on from there when the comparison is begun again.

    Args:
        storage: of the comparison.
        most: commands at a time.
    """

    def __init__(self, storage: Storage, most: int) -> None:
        self._storage = storage
        self._environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock, self._over = threading.Lock(), False
        self.pool = ThreadPoolExecutor(most)

    def __enter__(self) -> ParallelRuns:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            for process in self._alive:
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    def run(self, entry: ComparedRun) -> dict[str, Any]:
        """One run to its end; the content of its result.json.

        Raises:
            UserError: it failed; with the last line that it said.
        """
        storage, file = self._storage.child(entry.place), f"{entry.place}.yaml"
        self._storage.write_text(file, dump_config(entry.config))
        with _with_secrets(entry, self._storage.path(file)) as readable:
            return self._run(entry, storage, ["run", readable, "--output", storage.uri, "--json"])

    def _run(self, entry: ComparedRun, storage: Storage, words: list[str]) -> dict[str, Any]:
        with self._lock:
            if self._over:
                raise UserError("was not begun", key=f"{entry.strategy}, seed {entry.seed}")
            process = subprocess.Popen(
                [sys.executable, "-m", "opmix_ray", *words], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._alive.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._alive.discard(process)
        if process.returncode:
            last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise UserError(f"failed: {last}", key=f"{entry.strategy}, seed {entry.seed}")
        found: dict[str, Any] = storage.read_json(RESULT)
        return found


@contextmanager
def _with_secrets(entry: ComparedRun, written: str) -> Iterator[str]:
    """A file with the whole configuration: the one that was written or, where secrets were left out of that, one that
    its owner alone may read and that goes with the end of the run."""
    whole = dump_config(entry.config, secrets=True)
    if whole == dump_config(entry.config):
        yield written
        return
    with tempfile.NamedTemporaryFile("w", prefix="opmix-", suffix=".yaml", encoding="utf-8") as file:
        file.write(whole)
        file.flush()
        yield file.name


COMPARE, ROWS, TABLE, PAGE, TIMES = "compare.json", "compare.csv", "compare.md", "compare.html", "times.json"
_OURS = {COMPARE, ROWS, TABLE, PAGE, TIMES, RUNS, LOCK, FENCE}


def compare(
    config: RunConfig,
    strategies: Sequence[str],
    *,
    seeds: int = 3,
    output: str,
    resume: bool = False,
    overwrite: bool = False,
    equal_compute: bool = False,
    cyclic: bool = False,
    parallel: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every strategy with every seed and put the results side by side.

    Args:
        config: the run that all are made from; its `strategy` is not looked at.
        strategies: names; the first one is the baseline of the table.
        seeds: runs of each strategy; seeds count up from the configuration's.
        output: directory or URI.
        resume: the output must hold a comparison; without it one that is there goes on as well.
        overwrite: remove what is there first.
        equal_compute: shorten the runs of strategies that search, so that all cost the same FLOPs, search included.
        cyclic: every seed begins with the domains of another stage, so that no order of arrival decides.
        parallel: runs at a time; more than one: each in a process of its own, all on one cluster.
        progress: what a person sees.

    Returns:
        The content of compare.json.

    Raises:
        UserError: something in the input is wrong, or the output holds something else.
    """
    progress = progress or Progress()
    names = check_strategies(strategies)
    if seeds < 1:
        raise UserError("needs at least one seed", key="--seeds", value=seeds, remedy="3 give an interval")
    storage = Storage(output)
    with locked(storage):
        _open(storage, resume, overwrite)
        raise_fence(storage)
        with resolved(config) as based:
            prepared = validate(based.config, None, progress.preparing)
            scale = factors(based.config, prepared, names) if equal_compute else None
        planned_runs = entries(config, names, seeds, storage.uri, scale, cyclic)
        table = _Table(config, names, seeds, {"equal_compute": equal_compute, "cyclic": cyclic}, storage)
        with connected(config):
            table.run(planned_runs, parallel, progress)
        return table.write()


class _Table:
    """Rows as they come in, and the files that show them."""

    def __init__(
        self, config: RunConfig, names: list[str], seeds: int, how: dict[str, bool], storage: Storage
    ) -> None:
        self._config, self._names, self._seeds = config, names, seeds
        self._how, self._storage = how, storage
        self._times: dict[str, float] = storage.read_json(TIMES) if storage.exists(TIMES) else {}
        self._lock = threading.Lock()
        self._rows: dict[tuple[int, int], Row] = {}

    def run(self, runs: list[ComparedRun], parallel: int, progress: Progress) -> None:
        """Run what is not finished, and read the rest."""

        def here(entry: ComparedRun) -> dict[str, Any]:
            return run(entry.config, progress=progress)

        left = [entry for entry in runs if not self._finished(entry)]
        for entry in runs:
            if self._finished(entry):
                self._add(entry, here(entry), progress)  # or it refuses another configuration's
        if parallel == 1:
            for entry in left:  # in this thread, where signals arrive
                self._add(entry, self._timed(entry, here, progress), progress)
            return
        with ParallelRuns(self._storage, parallel) as processes:
            futures = {
                processes.pool.submit(self._timed, entry, processes.run, progress): entry for entry in left
            }
            for future in as_completed(futures):
                self._add(futures[future], future.result(), progress)

    def write(self) -> dict[str, Any]:
        """Write compare.json, compare.csv, compare.md and compare.html."""
        rows = [self._rows[key] for key in sorted(self._rows)]
        content = {
            "name": self._config.name,
            "strategies": self._names,
            "seeds": [self._config.seed + number for number in range(self._seeds)],
            **self._how,
            "complete": len(rows) == len(self._names) * self._seeds,
            "summary": summarise(rows, self._names),
            "rows": [row.to_dict() for row in rows],
            "config": dump_config(self._config),
        }
        self._storage.write_json(COMPARE, content)
        self._storage.write_text(ROWS, to_csv(rows))
        self._storage.write_text(TABLE, to_markdown(content))
        self._storage.write_text(PAGE, render(content))
        return content

    def _finished(self, entry: ComparedRun) -> bool:
        return entry.place in self._times and self._storage.exists(f"{entry.place}/{RESULT}")

    def _add(self, entry: ComparedRun, result: dict[str, Any], progress: Progress) -> None:
        wall = self._times.get(entry.place, 0.0)
        row = row_of(entry.strategy, result, wall, learned_at(entry.config))
        self._rows[entry.seed, self._names.index(entry.strategy)] = row
        self.write()
        progress.message(
            f"{entry.strategy}, seed {entry.seed}: objective {row.objective:.4f}, "
            f"{row.flops:.3g} FLOPs, {wall:.0f} s"
        )

    def _timed(
        self, entry: ComparedRun, work: Callable[[ComparedRun], dict[str, Any]], progress: Progress
    ) -> dict[str, Any]:
        progress.message(f"{entry.strategy}, seed {entry.seed}: begins")
        began = time.monotonic()
        try:
            return work(entry)
        finally:
            with self._lock:
                self._times[entry.place] = self._times.get(entry.place, 0.0) + time.monotonic() - began
                self._storage.write_json(TIMES, self._times)


def learned_at(config: RunConfig) -> dict[str, int]:
    """Domain -> step at the end of the first stage that trains on it; 0: the model was trained on it before."""
    config = strategy_of(config).plan(config)
    found = {name: 0 for name, share in beginning(config).mixture.items() if share > 0}
    found = {name: step for name, step in found.items() if name in config.data.domains}
    at = 0
    for stage in config.stages:
        at += stage.steps
        for name in stage_domains(config, stage):
            found.setdefault(name, at)
    return found


def _open(storage: Storage, resume: bool, overwrite: bool) -> None:
    names = set(storage.names()) - {LOCK}
    others = sorted(name for name in names if name not in _OURS and not name.endswith(".part"))
    if others:
        raise UserError(
            f"holds other files, such as {others[0]}", file=storage.uri, key="--output",
            remedy="name an empty directory",
        )  # fmt: skip
    if overwrite:
        for name in names:
            storage.delete(name)
    elif resume and not names:
        raise UserError(
            "holds no comparison", file=storage.uri, key="--resume", remedy="leave --resume out to begin one"
        )
