"""A strategy: more of what the model knows least, without probes or a search. Used with `strategy: worst-first`."""

from __future__ import annotations

import json

from opmix_ray import Decision, Mixture, RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.make import Situation, decided
from opmix_ray.decision.progress import Progress
from opmix_ray.output.ledger import Ledger
from opmix_ray.storage import Storage

STEP = 0.2  # of the way to the domain with the greatest loss


def decide(
    config: RunConfig,
    prepared: Prepared,
    storage: Storage,
    situation: Situation,
    progress: Progress,
    ledger: Ledger,
) -> Decision:
    """Decide from the last evaluation in metrics.jsonl, and leave decision.json as every strategy does."""

    def make(place: Storage) -> Decision:
        current = situation.current
        rows = [json.loads(line) for line in storage.lines("metrics.jsonl")]
        losses = next((row["losses"] for row in reversed(rows) if row["kind"] == "evaluation"), {})
        worst = max(current.domains, key=lambda name: losses.get(name, 0.0))
        mixture = Mixture(
            {name: (1 - STEP) * share + STEP * (name == worst) for name, share in current.items()}
        )
        return Decision(
            index=situation.index,
            step=situation.step,
            stage=situation.stage,
            kept="proposal",
            reason=f"{worst} has the greatest loss, {losses.get(worst, 0.0):.4f} nats per token",
            trials=0,
            usable=0,
            current=current.shares,
            proposal=mixture.shares,
            mixture=mixture.shares,
            details={"cost": {}},
        )

    return decided(storage, situation, progress, ledger, make)
