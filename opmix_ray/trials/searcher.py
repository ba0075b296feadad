"""The order of candidates: rounds asked of Optuna, told back in order, and the evaluators that take them in turns.

An evaluator that has nothing to do waits in its turn: Tune would end its actor, and the next candidates would wait for
a new process. It takes several candidates of a round at a time where they are short, so that the way through Tune costs
little against them. A candidate whose evaluator failed is given out again. Tune's own retries do not cover an evaluator
that goes away while it begins its next turn.

Candidates come in rounds of a fixed size. A round is asked for when the results of the round before the last are told,
so that evaluators have the last round to work on meanwhile and do not wait for each other. Nothing else is told to the
sampler: the candidates depend on the seed and the results alone, not on how many evaluators there are or which is
first, and a search that was cut off finds its way again by asking for the rows it already has.
"""

from __future__ import annotations

import logging
import math
import queue
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from opmix_ray.errors import UserError
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.space import Space

Asked = tuple[str, np.ndarray]  # run, weights (C,)
Scored = tuple[
    str, np.ndarray, dict[str, Any] | None
]  # run, weights, what was measured; None: every try failed

_CALL_SECONDS = 2.0  # what one turn should take at least, where candidates are short


class Turns(Searcher):
    """What Tune asks for trials, in a thread of its own, and a search asks for scores.

    Args:
        give: called with a turn and the weights (C,) of its candidates, at most once a turn.
        evaluators: that work at the same time.
        retries: how often a candidate is tried again when its evaluator fails or goes away.
    """

    def __init__(
        self, give: Callable[[str, list[np.ndarray]], None], *, evaluators: int = 1, retries: int = 0
    ) -> None:
        super().__init__()
        self._give, self._evaluators, self._retries = give, evaluators, retries
        self._lock = Lock()
        self._queue: deque[Asked] = deque()  # with no evaluator
        self._waiting: deque[str] = deque()  # turns that began, without candidates
        self.working: dict[str, list[Asked]] = {}  # by turn
        self.failures = Counter[str]()  # by run
        self.done: queue.SimpleQueue[Scored | BaseException] = queue.SimpleQueue()
        self._seconds: float | None = None  # that a candidate took
        self._over = False

    def score(self, asked: Sequence[Asked]) -> None:
        """Take candidates on, in this order."""
        with self._lock:
            self._queue.extend(asked)
            self._deal()

    def next(self) -> Scored:
        """The next candidate that is done, whichever it is; waits for it."""
        found = self.done.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """No more candidates: evaluators go home."""
        with self._lock:
            self._over = True
            self._queue.clear()
            for turn in self._waiting:
                self._give(turn, [])
            self._waiting.clear()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """One more turn. It gets no candidates before it begins: its evaluator may be long in coming."""
        return Searcher.FINISHED if self._over else {"turn": trial_id}

    def begin(self, turn: str) -> None:
        """An evaluator begins a turn."""
        with self._lock:
            if self._over:
                self._give(turn, [])
                return
            self._waiting.append(turn)
            self._deal()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand over what a turn measured; candidates of one that failed are given out again, as far as they may."""
        with self._lock:
            taken = self.working.pop(trial_id, [])
            if trial_id in self._waiting:
                self._waiting.remove(trial_id)
            scored: list[dict[str, Any] | None] = []
            if result is not None and not error:
                scored = list(result["scored"])
                self._seconds = scored[-1]["scoring_seconds"] if scored and scored[-1] else self._seconds
            else:
                taken = self._given_up(taken)
                scored = [None] * len(taken)
            for (run, weights), one in zip(taken, scored, strict=True):
                self.done.put((run, weights, one))
            self._deal()

    def _given_up(self, taken: list[Asked]) -> list[Asked]:
        """Of candidates that failed together, those that are not tried again."""
        self.failures.update(run for run, _ in taken)
        self._queue.extendleft(each for each in reversed(taken) if self.failures[each[0]] <= self._retries)
        return [each for each in taken if self.failures[each[0]] > self._retries]

    def _deal(self) -> None:
        """Give what there is to evaluators that wait."""
        while self._queue and self._waiting:
            turn = self._waiting.popleft()
            self.working[turn] = [self._queue.popleft() for _ in range(self._share())]
            self._give(turn, [weights for _, weights in self.working[turn]])

    def _share(self) -> int:
        """How many candidates an evaluator takes: of what is left of a round no more than its part."""
        if self._seconds is None:
            return 1
        worth = int(_CALL_SECONDS / max(self._seconds, 1e-3))
        return max(1, min(worth, math.ceil(len(self._queue) / self._evaluators)))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for `Tuner.restore`, which we do without."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the rows on disk are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


PROPOSAL = "proposal"
_SAME = 1e-9


class Evaluators(Protocol):
    """Who scores candidates; `turns.Turns` is one."""

    def score(self, asked: Sequence[Asked]) -> None:
        """Take candidates on."""

    def next(self) -> Scored:
        """The next candidate that is done, whichever it is."""


class MixtureSearch:
    """The candidates of one decision, and then its proposal.

    Args:
        space: what Optuna draws from.
        evaluators: score candidates.
        sampler: name of the Optuna sampler.
        seed: of the sampler.
        trials: candidates at most, warm starts included.
        round_size: candidates asked for together.
        start: interpolation weights (C,) of the warm starts; the first is the mixture in force.
        recorded: rows already known, by run; they are not made again.
        on_row: called with every new row.
    """

    def __init__(
        self,
        space: Space,
        evaluators: Evaluators,
        *,
        sampler: str,
        seed: int,
        trials: int,
        round_size: int,
        start: Sequence[np.ndarray],
        recorded: Mapping[str, TrialRow],
        on_row: Callable[[TrialRow], None],
    ) -> None:
        self._space, self._evaluators = space, evaluators
        self._trials, self._round = trials, round_size
        self._on_row = on_row
        self._recorded = dict(recorded)
        self.rows: dict[str, TrialRow] = {}
        self._exact: dict[int, np.ndarray] = {}
        self._untold: set[int] = set()
        points = []
        for index, weights in enumerate(start[:trials]):
            if index == 0 and not space.contains(weights):
                self._untold.add(0)
            else:
                points.append(space.params(weights))
            self._exact[index] = weights
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.WARNING)
        self._optuna = OptunaSearch(
            space=space.distributions(),
            metric="objective",
            mode="min",
            points_to_evaluate=points or None,
            sampler=_sampler(sampler, seed, startup=max(round_size, min(10, trials // 2))),
        )
        self._asked = 0  # candidates
        self._told = 0

    @property
    def study(self) -> optuna.Study:
        """The Optuna study behind the search."""
        study = self._optuna._ot_study
        assert study is not None
        return study

    def candidates(self) -> list[TrialRow]:
        """Score all candidates; their rows in the order they were asked for."""
        while self._asked < self._trials:
            if self._known(self._asked - self._round):
                self._ask_round()
            else:
                self._take()
        while not self._known(self._asked):
            self._take()
        self._tell(self._asked)
        return [self.rows[f"{i:03d}"] for i in range(self._asked)]

    def check(self, weights: np.ndarray) -> TrialRow:
        """Score the proposal, interpolation weights (C,), as one more candidate."""
        self._score([(PROPOSAL, weights)])
        while PROPOSAL not in self.rows:
            self._take()
        return self.rows[PROPOSAL]

    def _known(self, count: int) -> bool:
        """Whether the first candidates' rows are all there."""
        return all(f"{i:03d}" in self.rows for i in range(count))

    def _take(self) -> None:
        """Wait for the next candidate that is done, and keep its row."""
        run, weights, result = self._evaluators.next()
        self.rows[run] = self._row(run, weights, result)
        self._on_row(self.rows[run])

    def _ask_round(self) -> None:
        """Tell all but the last round, then ask for the next one."""
        self._tell(self._asked - self._round)
        indices = range(self._asked, min(self._asked + self._round, self._trials))
        self._score([(f"{index:03d}", self._ask(index)) for index in indices])
        self._asked = indices.stop

    def _score(self, asked: Sequence[Asked]) -> None:
        """Have candidates scored, but those that are known."""
        new = []
        for run, weights in asked:
            known = self._recorded.get(run)
            if known is not None and np.abs(self._weights_of(known) - weights).max() < _SAME:
                self.rows[run] = known
            else:
                new.append((run, weights))
        if new:
            self._evaluators.score(new)

    def _ask(self, index: int) -> np.ndarray:
        if index in self._untold:
            return self._exact[index]
        params = self._optuna.suggest(str(index))
        assert isinstance(params, dict)
        exact = self._exact.get(index)
        if exact is not None and self._space.contains(exact):
            return exact
        return self._space.weights(params)

    def _tell(self, end: int) -> None:
        """Tell Optuna the candidates before `end`, in order."""
        if end <= self._told:
            return
        values = self._values([self.rows[f"{i:03d}"] for i in range(end)])
        for index in range(self._told, end):
            if index not in self._untold:
                self._optuna.on_trial_complete(str(index), {"objective": values[index]})
        self._told = end

    def _values(self, rows: Sequence[TrialRow]) -> list[float]:
        """Objectives. One that is not finite counts as a little worse than the others, which keeps the scale."""
        usable = [row for row in rows if row.usable and math.isfinite(row.objective)]
        found = [row.objective for row in usable]
        values = dict(zip([row.run for row in usable], found, strict=True))
        worst = max(found) + max(0.5 * np.ptp(found), 1e-3) if usable else 0.0
        return [values.get(row.run, float(worst)) for row in rows]

    def _weights_of(self, row: TrialRow) -> np.ndarray:
        return np.array([row.weights.get(name, 0.0) for name in self._space.components.names])

    def _row(self, run: str, weights: np.ndarray, result: dict[str, Any] | None) -> TrialRow:
        components = self._space.components
        named = dict(zip(components.names, weights.tolist(), strict=True))
        ratios = dict(zip(components.domains, components.ratios(weights).tolist(), strict=True))
        if result is None:
            return TrialRow(run, named, ratios, status="failed")
        nats, targets = result["nats"], result["targets"]
        losses = {name: sum(nats[name]) / max(1, sum(targets[name])) for name in nats}
        finite = bool(result["finite"]) and all(math.isfinite(loss) for loss in losses.values())
        return TrialRow(
            run=run,
            weights=named,
            ratios=ratios,
            losses=losses,
            objective=result["objective"] if finite else math.nan,
            status="ok" if finite else "nan",
            nats=nats,
            targets=targets,
            tokens=int(result["tokens"]),
            flops=float(result["flops"]),
            seconds=float(result["scoring_seconds"]),
            slopes=result.get("slopes", {}) if finite else {},
        )


def _sampler(name: str, seed: int, startup: int) -> BaseSampler:
    """An Optuna sampler by name, seeded.

    Args:
        name: `tpe`, `gp` (Gaussian process, log expected improvement), `qmc` (scrambled Sobol), `cmaes`, `random`.
        seed: of everything it draws.
        startup: candidates drawn at random before `gp` and `tpe` begin to model.

    Raises:
        UserError: an unknown name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=startup, deterministic_objective=True
            )
        if name == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
            )
        if name == "qmc":
            return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
    raise UserError(
        "no such sampler", key="search.sampler", value=name, remedy="use gp, tpe, qmc, cmaes or random"
    )
