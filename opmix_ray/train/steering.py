"""The part of a worker that serves a `Live` strategy: it watches losses, measures held-out sets, moves the mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from opmix_ray.data.held_out import part_of, search_sets, tokens_of
from opmix_ray.train.live import Live, Moment


class Steering:
    """What a worker does beside training for a strategy that acts live.

    Args:
        worker: of `train.loop`, whose state it moves on.
        live: the strategy.
    """

    def __init__(self, worker: Any, live: Live) -> None:
        self.worker, self.live = worker, live
        self._sets: Any = None
        self._sums = self._zeros()
        if worker.resumed:
            self._call("recall", worker.optimizer)

    def before_step(self) -> None:
        """Let the strategy set the mixture of the next step."""
        worker, live = self.worker, self.live
        state, segment = worker.state, worker.segment
        moment = Moment(
            done=state.step - segment.stage_start,
            steps=segment.stage_steps,
            mixture=worker.sampler.mixture,
            losses=state.live.get("losses", {}),
        )
        memory = state.live.setdefault("memory", {})
        if live.measures(memory, moment):
            moment = Moment(moment.done, moment.steps, moment.mixture, moment.losses, self._held_out())
        mixture = live.steer(memory, moment)
        if mixture is not None:
            worker.sampler.set_mixture(live.allowed(mixture))

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, domains: np.ndarray) -> torch.Tensor:
        """Summed loss of a micro-batch, with gradients; kept by domain where the strategy watches it.

        Args:
            ids, mask: (n, L) on the device.
            domains: (n,) positions in the sampler's domains; may be empty where no row counts.
        """
        module = self.worker.parallel.module
        if not self.live.watches_losses or not len(domains) or not bool(mask[:, 1:].any()):
            return module(ids, mask)[0]
        nats, targets = module(ids, mask, per_sequence=True)
        places = torch.from_numpy(domains).to(nats.device)
        self._sums[0].index_add_(0, places, nats.detach().double())
        self._sums[1].index_add_(0, places, targets.double())
        return nats.sum()

    def after_step(self) -> None:
        """Put the step's losses by domain where the next step finds them, and count what a module of its own did."""
        self._call("after_step")
        self._count()
        if not self.live.watches_losses:
            return
        sums = self.worker.parallel.total(self._sums).cpu().numpy()
        names = list(self.worker.stores)
        seen = np.flatnonzero(sums[1])
        self.worker.state.live["losses"] = {names[d]: float(sums[0, d] / sums[1, d]) for d in seen}
        self._sums = self._zeros()

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
        counts = torch.tensor(own, dtype=torch.float64, device=worker.device)
        trained, forwarded = map(int, worker.parallel.total(counts).tolist())
        segment, state = worker.segment, worker.state
        state.tokens += trained - segment.train.batch_size * segment.prepared.seq_len
        state.side["main"] = state.side.get("main", 0) + forwarded

    def _zeros(self) -> torch.Tensor:
        """Nats and target tokens by domain: (2, D)."""
        return torch.zeros(2, len(self.worker.stores), dtype=torch.float64, device=self.worker.device)

    def _held_out(self) -> dict[str, float]:
        """Mean loss of the sequences that decisions may look at; counted as search."""
        worker, segment = self.worker, self.worker.segment
        if self._sets is None:
            self._sets = search_sets(
                segment.prepared, segment.evaluation.sequences, segment.sequences_searched
            )
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
