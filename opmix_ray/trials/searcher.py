"""The order of candidates: rounds asked of `OptunaSearch`, told back in order, and the proposal at the end.

Candidates come in rounds of a fixed size. A round is asked for when the results of the round before the last are told,
so that evaluators have the last round to work on meanwhile and do not wait for each other. Nothing else is told to the
sampler: the candidates depend on the seed and the results alone, not on how many evaluators there are or which is
first, and a search that was cut off finds its way again by asking for the rows it already has.

A candidate whose evaluator failed is tried again as another trial. Tune's own retries do not cover an evaluator that
goes away while it is given its next candidate.

An evaluator takes several candidates of a round at a time where they are short (`batch`), so that the way through Tune
costs little beside them. One that has nothing to do is told to `rest`: Tune would end its actor.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from opmix_ray.errors import UserError
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.space import Space

PROPOSAL = "proposal"
_SAME = 1e-9
_CALL_SECONDS = 2.0  # what one call of an evaluator should take at least, where candidates are short
_REST_SECONDS = (0.05, 5.0)  # least and greatest

Asked = tuple[str, np.ndarray]  # run, weights (C,)


class MixtureSearch(Searcher):
    """A Tune searcher for one decision.

    Args:
        space: what Optuna draws from.
        sampler: name of the Optuna sampler.
        seed: of the sampler.
        trials: candidates at most, warm starts included.
        round_size: candidates asked for together.
        start: interpolation weights (C,) of the warm starts; the first is the mixture in force.
        recorded: rows already known, by run; they are not made again.
        on_row: called with every new row.
        propose: from all rows to the weights (C,) of one more candidate, the proposal; None: no proposal.
        evaluators: that work at the same time; decides how a round is dealt out, not what is in it.
        slopes: whether each candidate brings its losses' derivatives.
        retries: how often a candidate is tried again when its evaluator fails or goes away.
    """

    def __init__(
        self,
        space: Space,
        *,
        sampler: str,
        seed: int,
        trials: int,
        round_size: int,
        start: Sequence[np.ndarray],
        recorded: Mapping[str, TrialRow],
        on_row: Callable[[TrialRow], None],
        propose: Callable[[list[TrialRow]], np.ndarray | None],
        evaluators: int = 1,
        slopes: bool = False,
        retries: int = 0,
    ) -> None:
        super().__init__(metric="objective", mode="min")
        self._space = space
        self._trials, self._round = trials, round_size
        self._on_row, self._propose = on_row, propose
        self._evaluators = evaluators
        self._slopes = slopes
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
        self._enough = False  # no further round
        self._queue: deque[Asked] = deque()  # asked for, and with no evaluator
        self._retries, self._failures = retries, Counter[str]()
        self._running: dict[str, list[Asked]] = {}  # by trial id; nothing for one that rests
        self._proposed = False
        self._seconds: float | None = None  # that a candidate took
        self.proposal: np.ndarray | None = None

    @property
    def study(self) -> optuna.Study:
        """The Optuna study behind the search."""
        study = self._optuna._ot_study
        assert study is not None
        return study

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next candidates that are not known yet, a rest while there are none, FINISHED at the end."""
        while not self._queue:
            if not self._enough:
                if not self._known(self._asked - self._round):
                    return self._rest(trial_id)
                self._ask_round()
            elif not self._known(self._asked):
                return self._rest(trial_id)  # for the proposal, which must not wait for a new process
            elif not self._proposed:
                self._proposed = True
                self._tell(self._asked)
                self.proposal = self._propose(self.ordered())
                if self.proposal is not None:
                    self._enqueue(PROPOSAL, self.proposal)
            elif self.proposal is not None and PROPOSAL not in self.rows:
                return self._rest(trial_id)  # it may have to be tried again
            else:
                return Searcher.FINISHED
        taken = [self._queue.popleft() for _ in range(self._share())]
        self._running[trial_id] = taken
        config: dict[str, Any] = {"batch": [weights.tolist() for _, weights in taken]}
        # The proposal too brings slopes: what is compared is measured in the same way.
        return config | ({"slopes": True} if self._slopes else {})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Keep a finished trial's rows; candidates of one that failed come again, as far as they may."""
        taken = self._running.pop(trial_id, [])
        if error:
            taken = self._given_up(taken)
        given: list[dict[str, Any] | None] = [None] * len(taken)
        if result is not None and not error and taken:
            given = list(result["scored"])
        for (run, weights), one in zip(taken, given, strict=True):
            row = self._row(run, weights, one)
            self.rows[run] = row
            if row.status == "ok":
                self._seconds = row.seconds
            self._on_row(row)

    def _given_up(self, taken: list[Asked]) -> list[Asked]:
        """Of candidates that failed together, those that are not tried again."""
        self._failures.update(run for run, _ in taken)
        self._queue.extendleft(each for each in reversed(taken) if self._failures[each[0]] <= self._retries)
        return [each for each in taken if self._failures[each[0]] > self._retries]

    def hand_back(self, trial_id: str) -> None:
        """Return a suggestion that was not made use of; it comes again first."""
        self._queue.extendleft(reversed(self._running.pop(trial_id)))

    def _rest(self, trial_id: str) -> dict[str, Any]:
        self._running[trial_id] = []
        return {"rest": float(np.clip((self._seconds or 0.0) / 4, *_REST_SECONDS))}

    def _share(self) -> int:
        """How many candidates an evaluator takes: of what is left of a round no more than its part."""
        if self._seconds is None:
            return 1
        worth = int(_CALL_SECONDS / max(self._seconds, 1e-3))
        return max(1, min(worth, math.ceil(len(self._queue) / self._evaluators)))

    def _known(self, count: int) -> bool:
        """Whether the first candidates' rows are all there."""
        return all(f"{i:03d}" in self.rows for i in range(count))

    def _ask_round(self) -> None:
        """Tell all but the last round, then ask for the next one, unless there are candidates enough."""
        self._tell(self._asked - self._round)
        for index in range(self._asked, min(self._asked + self._round, self._trials)):
            self._enqueue(f"{index:03d}", self._ask(index))
            self._asked += 1
        self._enough = self._asked >= self._trials

    def _enqueue(self, run: str, weights: np.ndarray) -> None:
        known = self._recorded.get(run)
        if known is not None and np.abs(self._weights_of(known) - weights).max() < _SAME:
            self.rows[run] = known
        else:
            self._queue.append((run, weights))

    def ordered(self) -> list[TrialRow]:
        """The candidates' rows in the order they were asked for, without the proposal's."""
        return [self.rows[run] for run in (f"{i:03d}" for i in range(self._trials)) if run in self.rows]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for `Tuner.restore`, which we do without."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the rows on disk are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

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
        """Objectives; one that is not finite becomes clearly worse than all others, near enough to keep the scale."""
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
        if result is None or "finite" not in result:
            return TrialRow(run, named, ratios, status="failed")
        nats, targets = _by_set(result, "nats"), _by_set(result, "targets")
        losses = {name: sum(nats[name]) / max(1, sum(targets[name])) for name in nats}
        finite = bool(result["finite"]) and all(math.isfinite(loss) for loss in losses.values())
        status = "ok" if finite else "nan"
        return TrialRow(
            run=run,
            weights=named,
            ratios=ratios,
            losses=losses,
            objective=result["objective"] if finite else math.nan,
            status=status,  # type: ignore[arg-type]
            nats=nats,
            targets=targets,
            tokens=int(result["tokens"]),
            flops=float(result["flops"]),
            seconds=float(result["scoring_seconds"]),
            slopes=result.get("slopes", {}) if finite else {},
        )


def _by_set(result: dict[str, Any], key: str) -> dict[str, Any]:
    """A nested part of a result, which Tune hands over flattened (`nats/code`)."""
    if key in result:
        return result[key]
    return {
        name.removeprefix(f"{key}/"): value for name, value in result.items() if name.startswith(f"{key}/")
    }


def _sampler(name: str, seed: int, startup: int) -> BaseSampler:
    """An Optuna sampler by name, seeded.

    Args:
        name: `gp` (Gaussian process, log expected improvement), `tpe`, `qmc` (scrambled Sobol), `cmaes`, `random`.
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
