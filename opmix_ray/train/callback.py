"""What a strategy may do inside a segment: change the mixture before a step, or put its own loss in the place of ours.

A `TrainingCallback` object travels to every worker and keeps nothing itself: what it remembers is a dictionary in the
checkpoint, so that a resumed segment goes on exactly where it stood. All workers see the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from opmix_ray.data.plan import fit_to_caps
from opmix_ray.mixture import Mixture


@dataclass(frozen=True)
class Moment:
    """Where a segment stands before a step.

    Args:
        done: steps done of the stage.
        steps: of the stage.
        mixture: in force.
        losses: training loss of the last step by domain, nats per token; domains without a row are left out.
        held_out: loss of the sets that decisions may look at, where `TrainingCallback.measures` asked for it.
    """

    done: int
    steps: int
    mixture: Mixture
    losses: Mapping[str, float]
    held_out: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TrainingCallback:
    """The neutral one, which changes nothing.

    Args:
        caps: greatest share by domain that repetition allows in the stage.
        objective: weight of every evaluation set.
    """

    caps: dict[str, float] = field(default_factory=dict)
    objective: dict[str, float] = field(default_factory=dict)

    @property
    def watches_losses(self) -> bool:
        """Whether `Moment.losses` is needed."""
        return False

    def module(self, model: Any) -> nn.Module | None:
        """A module like `LossModule` whose forward is the loss to train on; None: the usual one.

        Where it does not train on the next token it gives None for the nats of each sequence, and no loss is kept by
        domain.

        Where the module has them, `begin_step(step)` is called before every step and `after_step()` after it,
        `take_counts()` gives the tokens trained on since (`main`) and those passed forward, by purpose in the
        ledger, and `keep(optimizer)` and `recall(optimizer)` put what it remembers into the optimiser's state before a
        checkpoint, and take it from there in a segment that goes on.
        """
        return None

    def measures(self, memory: dict[str, Any], moment: Moment) -> bool:
        """Whether the held-out sets are to be measured before this step."""
        return False

    def steer(self, memory: dict[str, Any], moment: Moment) -> Mixture | None:
        """The mixture from this step on; None: as it is. May write plain values into `memory`."""
        return None

    def allowed(self, mixture: Mixture) -> Mixture:
        """The nearest mixture that the repetition caps allow."""
        return fit_to_caps(mixture, self.caps)[0]
