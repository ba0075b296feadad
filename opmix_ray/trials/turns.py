"""Evaluators that stay: each of Tune's trials is a turn of one evaluator, which gets candidates once there are some.

An evaluator that has nothing to do waits in its turn: Tune would end its actor, and the next candidates would wait for
a new process. It takes several candidates of a round at a time where they are short, so that the way through Tune costs
little against them. A candidate whose evaluator failed is given out again. Tune's own retries do not cover an evaluator
that goes away while it begins its next turn.
"""

from __future__ import annotations

import math
import queue
from collections import Counter, deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from ray.tune.search import Searcher

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
