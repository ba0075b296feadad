"""A strategy: more of what the model knows least, without probes or a search. Used with `strategy: worst-first`."""

from __future__ import annotations

from opmix_ray import Decision, Making, Mixture, Strategy

STEP = 0.2  # of the way to the domain with the greatest loss


class WorstFirst(Strategy):
    """Decides from the last evaluation of the run."""

    def make(self, making: Making) -> Decision:
        current, losses = making.situation.current, making.losses()
        worst = max(current.domains, key=lambda name: losses.get(name, 0.0))
        mixture = Mixture(
            {name: (1 - STEP) * share + STEP * (name == worst) for name, share in current.items()}
        )
        reason = f"{worst} has the greatest loss, {losses.get(worst, 0.0):.4f} nats per token"
        return making.decision(mixture, reason)
