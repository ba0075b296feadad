"""When more candidates would change nothing: the gain that the proposal is expected to bring no longer moves.

    settled = Settled(question, patience=2)
    settled(rows)      # after every round; True: enough

After each round the law is fitted on the rows so far and asked for its proposal; where `auto` tries every law, the
quickest one stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opmix_ray.decision.rule import Question, answer
from opmix_ray.trials.rows import TrialRow

LEAST_ROWS = 8
RELATIVE, ABSOLUTE = 0.1, 2e-4  # of the gain; nats per token


class Settled:
    """Whether the expected gain has come to rest.

    Args:
        question: of the decision.
        patience: rounds in a row in which the gain may not move by more than a tenth of itself (or 0.0002 nats).
    """

    def __init__(self, question: Question, patience: int) -> None:
        law = question.settings.law
        if (
            law == "auto"
            and question.extrapolation(question.current.array(question.components.domains)) is None
        ):
            law = "log-share"
        self._question = replace(question, settings=question.settings.model_copy(update={"law": law}))
        self._patience = patience
        self._gains: list[float] = []

    def __call__(self, rows: Sequence[TrialRow]) -> bool:
        """Take the rows of all rounds so far."""
        if len(rows) < LEAST_ROWS:
            return False
        found = answer(rows, self._question)
        if found.proposal is None or found.proposal.gain is None:
            return False
        self._gains.append(found.proposal.gain)
        last = self._gains[-self._patience - 1 :]
        if len(last) <= self._patience:
            return False
        limit = max(ABSOLUTE, RELATIVE * abs(last[-1]))
        return max(last) - min(last) <= limit
