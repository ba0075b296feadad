"""The order of candidates: rounds asked of `OptunaSearch`, told back in order, and the proposal at the end.

Candidates come in rounds of a fixed size; the sampler learns a round's results together and in order. So the
candidates depend on the seed and the results alone, not on how many evaluators there are or which is first, and a
search that was cut off finds its way again by asking for the rows it already has.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from opmix_ray.search.rows import TrialRow
from opmix_ray.search.samplers import make_sampler
from opmix_ray.search.space import Space

PROPOSAL = "proposal"
_SAME = 1e-9


class MixtureSearch(Searcher):
    """A Tune searcher for one decision.

    Args:
        space: what Optuna draws from.
        sampler: name of the Optuna sampler.
        seed: of the sampler.
        trials: candidates, warm starts included.
        round_size: candidates asked for together.
        start: interpolation weights (C,) of the warm starts; the first is the mixture in force.
        recorded: rows already known, by run; they are not made again.
        on_row: called with every new row.
        propose: from all rows to the weights (C,) of one more candidate, the proposal; None: no proposal.
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
    ) -> None:
        super().__init__(metric="objective", mode="min")
        self._space = space
        self._trials, self._round = trials, round_size
        self._on_row, self._propose = on_row, propose
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
            sampler=make_sampler(sampler, seed, startup=max(round_size, min(10, trials // 2))),
        )
        self._next = 0
        self._told = 0
        self._running: dict[str, tuple[str, np.ndarray]] = {}  # trial id -> run, weights
        self._waiting: list[tuple[str, np.ndarray]] = []  # suggested, then handed back
        self._proposed = False
        self.proposal: np.ndarray | None = None

    @property
    def study(self) -> optuna.Study:
        """The Optuna study behind the search."""
        study = self._optuna._ot_study
        assert study is not None
        return study

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next candidate that is not known yet; None while a round is unfinished; FINISHED at the end."""
        if self._waiting:
            self._running[trial_id] = run, weights = self._waiting.pop(0)
            return {"weights": weights.tolist()}
        while True:
            self._tell()
            if self._next < self._trials:
                if self._next % self._round == 0 and self._told < self._next:
                    return None
                run, weights = f"{self._next:03d}", self._ask(self._next)
                self._next += 1
            elif not self._proposed:
                if self._told < self._trials:
                    return None
                self._proposed = True
                self.proposal = self._propose(self.ordered())
                if self.proposal is None:
                    return Searcher.FINISHED
                run, weights = PROPOSAL, self.proposal
            else:
                return Searcher.FINISHED
            known = self._recorded.get(run)
            if known is not None and np.abs(self._weights_of(known) - weights).max() < _SAME:
                self.rows[run] = known
                continue
            self._running[trial_id] = (run, weights)
            return {"weights": weights.tolist()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Keep a finished trial's row."""
        if trial_id not in self._running:
            return
        run, weights = self._running.pop(trial_id)
        row = self._row(run, weights, None if error else result)
        self.rows[run] = row
        self._on_row(row)

    def hand_back(self, trial_id: str) -> None:
        """Return a suggestion that was not made use of; it comes again first."""
        self._waiting.append(self._running.pop(trial_id))

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

    def _tell(self) -> None:
        """Tell Optuna every whole round, in order."""
        while self._told < self._next:
            end = min(self._told + self._round, self._trials)
            runs = [f"{i:03d}" for i in range(self._told, end)]
            if self._next < end or any(run not in self.rows for run in runs):
                return
            worst = self._worst()
            for index in range(self._told, end):
                row = self.rows[f"{index:03d}"]
                if index not in self._untold:
                    value = row.objective if row.usable and math.isfinite(row.objective) else worst
                    self._optuna.on_trial_complete(str(index), {"objective": value})
            self._told = end

    def _worst(self) -> float:
        """A finite value for a candidate without one: clearly worse than all, near enough to keep the scale."""
        values = [row.objective for row in self.rows.values() if row.usable and math.isfinite(row.objective)]
        return max(values) + max(0.5 * (max(values) - min(values)), 1e-3) if values else 0.0

    def _weights_of(self, row: TrialRow) -> np.ndarray:
        return np.array([row.weights.get(name, 0.0) for name in self._space.components.names])

    def _row(self, run: str, weights: np.ndarray, result: dict[str, Any] | None) -> TrialRow:
        components = self._space.components
        named = dict(zip(components.names, weights.tolist(), strict=True))
        ratios = dict(zip(components.domains, components.ratios(weights).tolist(), strict=True))
        if result is None or "complete" not in result:
            return TrialRow(run, named, ratios, status="failed")
        nats, targets = _by_set(result, "nats"), _by_set(result, "targets")
        losses = {name: sum(nats[name]) / max(1, sum(targets[name])) for name in nats}
        finite = bool(result["finite"]) and all(math.isfinite(loss) for loss in losses.values())
        status = "nan" if not finite else "ok" if result["complete"] else "stopped"
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
        )


def _by_set(result: dict[str, Any], key: str) -> dict[str, Any]:
    """A nested part of a result, which Tune hands over flattened (`nats/code`)."""
    if key in result:
        return result[key]
    return {
        name.removeprefix(f"{key}/"): value for name, value in result.items() if name.startswith(f"{key}/")
    }
