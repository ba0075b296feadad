"""What a strategy may do inside a segment: change the mixture before a step, or put its own loss in the place of ours.

A `TrainingCallback` object travels to every worker and keeps nothing itself: what it remembers is a dictionary in the
checkpoint, so that a resumed segment goes on exactly where it stood. All workers see the same numbers. `CallbackRunner`
is the part of a worker that runs it: it watches losses, measures held-out sets and moves the mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from opmix_ray.data.held_out import part_of, search_sets, tokens_of
from opmix_ray.mixture import Mixture, fit_to_caps


@dataclass(frozen=True)
class Moment:
    """Where a segment stands before a step.

    Args:
        done: steps done of the stage.
        steps: of the stage.
        mixture: in force.
        losses: training loss of the last step by domain, nats per token; domains without a row are left out.
        held_out: loss of the sets that decisions may look at, of those with a weight in `TrainingCallback.objective` if
            any has one, where `TrainingCallback.measures` asked for it.
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
        checkpoint, and take it from there in a segment that goes on. After the last step of a stage comes
        `end_stage(held_out, bytes_per_token)`, which may move the weights: `held_out()` measures what
        `Moment.held_out` holds.
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


class CallbackRunner:
    """What a worker does beside training for a strategy with a callback.

    Args:
        worker: of `train.loop`, whose state it moves on.
        callback: the strategy.
    """

    def __init__(self, worker: Any, callback: TrainingCallback) -> None:
        self.worker, self.callback = worker, callback
        self._sets: Any = None
        if worker.resumed:
            self._call("recall", worker.optimizer)

    def before_step(self) -> None:
        """Let the strategy set the mixture of the next step."""
        worker, callback = self.worker, self.callback
        state, segment = worker.state, worker.segment
        moment = Moment(
            done=state.step - segment.stage_start,
            steps=segment.stage_steps,
            mixture=worker.sampler.mixture,
            losses=state.live.get("losses", {}),
        )
        memory = state.live.setdefault("memory", {})
        if callback.measures(memory, moment):
            moment = Moment(moment.done, moment.steps, moment.mixture, moment.losses, self._held_out())
        self._call("begin_step", state.step)
        mixture = callback.steer(memory, moment)
        if mixture is not None:
            worker.sampler.set_mixture(callback.allowed(mixture))

    def after_step(self) -> None:
        """Put the step's losses by domain where the next step finds them, and count what a module of its own did."""
        worker = self.worker
        self._call("after_step")
        self._count()
        if worker.state.step + 1 == worker.segment.stage_end:
            self._call("end_stage", self._held_out, worker.segment.prepared.bytes_per_token)
        if self.callback.watches_losses:
            worker.state.live["losses"] = worker.domain_losses.of_step()

    def before_save(self) -> None:
        """Let a module of the strategy's own put what it remembers into the optimiser's state."""
        self._call("keep", self.worker.optimizer)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A method of the strategy's own module, where it has one of this name."""
        method = getattr(self.worker.parallel.own, name, None)
        return None if method is None else method(*arguments)

    def _count(self) -> None:
        """Tokens as the strategy's own module counted them, in the place of the batch's."""
        worker, own = self.worker, self._call("take_counts")
        if own is None:
            return
        counts = torch.tensor(list(own.values()), dtype=torch.float64, device=worker.device)
        totals = dict(zip(own, map(int, worker.parallel.total(counts).tolist()), strict=True))
        segment, state = worker.segment, worker.state
        state.tokens += totals.pop("main") - segment.train.batch_size * segment.prepared.seq_len
        for purpose, count in totals.items():
            state.side[purpose] = state.side.get(purpose, 0) + count

    def _held_out(self) -> dict[str, float]:
        """Mean loss, of each set with a weight, of the sequences that decisions may look at; counted as search."""
        worker, segment = self.worker, self.worker.segment
        if self._sets is None:
            weights = self.callback.objective
            self._sets = search_sets(
                segment.prepared, segment.evaluation.sequences, segment.sequences_searched,
                [name for name, weight in weights.items() if weight > 0] or None,
            )  # fmt: skip
        parallel = worker.parallel
        parallel.model.eval()
        alone = parallel.sharded or worker.world == 1
        found = {}
        for name, held in self._sets.items():
            own = worker._measure(held if alone else part_of(held, slice(worker.rank, None, worker.world)))
            sums = torch.tensor([own.nats.sum(), own.tokens.sum()], dtype=torch.float64, device=worker.device)
            sums = sums if alone else parallel.total(sums)
            found[name] = float(sums[0] / sums[1].clamp_min(1))
            worker.state.side["search"] = worker.state.side.get("search", 0) + tokens_of(held)
        parallel.model.train()
        return found
