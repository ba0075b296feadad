"""What is told while a run goes on; `opmix_ray.commands.progress` shows it to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opmix_ray.decision.rule import Decision
from opmix_ray.model.probe import Probe
from opmix_ray.trials.rows import TrialRow


class Progress:
    """Receives what happens; this one keeps silent."""

    def message(self, text: str) -> None:
        """One line about what begins or ended."""

    def preparing(self, name: str, done: int, total: int) -> None:
        """Bytes of a source read so far."""

    def segment_started(self, stage: str, step: int, end: int, mixture: dict[str, float]) -> None:
        """Training goes on from `step` to `end` under a mixture."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl."""

    def decision_started(self, index: int, step: int, components: Sequence[str], trials: int) -> None:
        """Probes come next, then trials."""

    def probe_started(self, name: str) -> None:
        """A probe was submitted."""

    def probe_done(self, probe: Probe) -> None:
        """A probe is trained, or was found."""

    def trial(self, row: TrialRow, best: TrialRow | None, trials: int) -> None:
        """A candidate was scored."""

    def decided(self, decision: Decision) -> None:
        """A decision was made."""

    def in_background(self) -> Progress:
        """What is told of a decision that is made while training goes on, whose own part stays as it is."""
        return self

    def close(self) -> None:
        """Nothing more comes."""
