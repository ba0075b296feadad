"""What a forecast is made of: FLOPs of a run's model, of its proxies, and of a look at held-out sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import part_of, search_sets, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.model.architecture import architecture
from opmix_ray.model.flops import forward_flops, train_flops


@dataclass(frozen=True)
class Planned:
    """A decision that a run will come to.

    Args:
        stage: that it is in, as long as it will be.
        domains: of its stage.
        known: domains trained on before the stage.
        space: its search space.
    """

    stage: StageConfig
    domains: list[str]
    known: set[str]
    space: str


class Costs:
    """FLOPs by token of a run's model, and how many tokens things take.

    Args:
        config: the run.
        prepared: its data.
    """

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self._config, self._prepared = config, prepared
        self.length = prepared.seq_len
        self.model = self._built({})
        self.train = train_flops(self.model, 1.0, self.length)
        self.forward = forward_flops(self.model, 1.0, self.length)
        self._sets = search_sets(
            prepared, config.evaluation.sequences, config.search.sequences, config.decided_on()
        )

    @property
    def seen(self) -> float:
        """Tokens of one look at the held-out sets."""
        return self.seen_of(None)

    def seen_of(self, sequences: int | None) -> float:
        """Tokens of one look at so many sequences of each set, at most; None: `search.sequences`."""
        return float(sum(tokens_of(part_of(held, slice(0, sequences))) for held in self._sets.values()))

    @property
    def look(self) -> float:
        """FLOPs of one look at the held-out sets with the run's own model."""
        return self.seen * self.forward

    def rows(self, domain: str, most: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Training rows of a domain, ids int64 (L,) and which count, bool (L,); so many at most, evenly spread."""
        store = self._prepared.domains[domain].train()
        places = np.unique(np.linspace(0, len(store) - 1, most).astype(int))
        ids, mask = map(torch.from_numpy, store.batch(places))
        return list(zip(ids, mask, strict=True))

    def proxy(self, settings: ProxyConfig) -> tuple[float, float]:
        """FLOPs of training one proxy, and of a token forward through it."""
        model = self._built(settings.model or {})
        tokens = settings.steps * (settings.batch_size or self._config.train.batch_size) * self.length
        return train_flops(model, tokens, self.length), forward_flops(model, 1.0, self.length)

    def _built(self, changes: dict[str, Any]) -> Any:
        model = self._config.model
        if changes and model.config is not None:
            model = model.but(config={**model.config, **changes})
        prepared = self._prepared
        return architecture(model, vocab_size=prepared.vocab_size, eos_token_id=prepared.eos_token_id)
