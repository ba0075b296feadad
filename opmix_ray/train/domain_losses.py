"""A worker's sums of training loss by domain: of the step it is at, since the last row, and in blocks of steps.

Sums stay with the worker that made them until a row is logged or a checkpoint is written, so that no step has an
exchange more. The nats of a sequence are rounded to 2**-20; float64 adds such numbers without an error (up to 2**33
nats), so sums depend neither on the order of workers and micro-batches nor on where a run was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from opmix_ray.train.domain_curves import DomainCurves, block_length

_UNIT = 2.0**20  # parts of a nat
Total = Callable[[torch.Tensor], torch.Tensor]


class DomainLosses:
    """Nats and target tokens by domain in one segment; every sum is a tensor (2, D).

    Args:
        domains: names by their positions in a batch.
        start: global step at which the segment begins.
        stage_steps: of the stage.
        device: of the worker.
        total: the sum over workers, in place.
    """

    def __init__(
        self, domains: Sequence[str], start: int, stage_steps: int, device: torch.device, total: Total
    ) -> None:
        self._domains, self._start, self._device, self._total = tuple(domains), start, device, total
        self._length = block_length(stage_steps, len(domains))
        self._step, self._since = self._zeros(), self._zeros()
        self._blocks = [self._zeros()]
        self._done = 0  # steps

    def add(self, domain_ids: np.ndarray, nats: torch.Tensor, targets: torch.Tensor) -> None:
        """Add the sequences of a micro-batch.

        Args:
            domain_ids: (n,) positions of their domains.
            nats: (n,) or longer; what is beyond n does not count.
            targets: the same, target tokens.
        """
        places = torch.from_numpy(domain_ids).to(self._device)
        own = torch.stack([(nats * _UNIT).round() / _UNIT, targets.to(nats)])
        self._step.index_add_(1, places, own[:, : len(places)])

    def of_step(self) -> dict[str, float]:
        """Mean loss of the step by domain over all workers, nats per token; domains without a token are left out."""
        return {name: nats / tokens for name, (nats, tokens) in self._named(self._step.clone()).items()}

    def end_step(self) -> None:
        """The step is done."""
        if self._done == len(self._blocks) * self._length:
            self._blocks.append(self._zeros())
        self._since += self._step
        self._blocks[-1] += self._step
        self._step.zero_()
        self._done += 1

    def take_row(self) -> dict[str, list[float]]:
        """Nats and target tokens of each domain since the last row, over all workers."""
        found = self._named(self._since)
        self._since = self._zeros()
        return found

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, over all workers: sums since the last row, and curves."""
        sums = self._total(torch.stack([self._since, *self._blocks])).cpu()
        return {"since": sums[0].tolist(), "curves": self._curves(sums[1:].numpy()).to_dict()}

    def restore(self, values: Mapping[str, Any], step: int, *, first: bool) -> None:
        """Go on from `to_dict`; the first worker takes all sums, the others begin with none.

        Args:
            values: from `to_dict`; nothing where a checkpoint has none.
            step: global steps done.
            first: whether this is the first worker.
        """
        if not values:
            return
        curves = DomainCurves.from_dict(values["curves"])
        self._done = step - self._start
        self._blocks = [self._zeros() for _ in curves.steps]
        if first:
            self._since = torch.tensor(values["since"], dtype=torch.float64, device=self._device)
            for block, nats, tokens in zip(self._blocks, curves.nats, curves.tokens, strict=True):
                block.copy_(torch.from_numpy(np.stack([nats, tokens])))

    def _curves(self, blocks: np.ndarray) -> DomainCurves:
        """Curves of blocks (B, 2, D)."""
        ends = self._start + np.minimum(np.arange(1, len(blocks) + 1) * self._length, self._done)
        return DomainCurves(
            self._domains, self._start, ends, nats=blocks[:, 0], tokens=blocks[:, 1].astype(np.int64)
        )

    def _named(self, sums: torch.Tensor) -> dict[str, list[float]]:
        """Own sums (2, D) added up over workers, by name; domains without a token are left out."""
        nats, tokens = self._total(sums).cpu().tolist()
        return {
            name: [own, int(count)]
            for name, own, count in zip(self._domains, nats, tokens, strict=True)
            if count
        }

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(2, len(self._domains), dtype=torch.float64, device=self._device)
