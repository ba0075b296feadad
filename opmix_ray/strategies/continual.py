"""What is usually done when new data come: train on them alone, replay a little of the old, or begin again.

Sequential training is the lower bound of continual learning (McCloskey and Cohen 1989). Replay mixes in a fixed
share of old data (Ibrahim et al. 2024, arXiv 2403.08763). Retraining begins from the first weights with everything
so far, as long as all stages so far together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.base import Strategy


class Sequential(Strategy):
    """New domains in proportion to their tokens, nothing of the old ones."""

    decides = "never"

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        return _with_old(tokens, old, 0.0)


class Replay(Strategy):
    """A share of what was trained on before, the rest to the new domains in proportion to their tokens.

    Old domains that the stage leaves out are not replayed.
    """

    decides = "never"

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        return _with_old(tokens, old, config.strategies.replay.old_share)


class Retrain(Strategy):
    """Stages that each begin again with the domains and the steps of all stages so far, in proportion to tokens."""

    def changes(self, config: RunConfig) -> dict[str, Any]:
        if any(stage.restart for stage in config.stages):
            return {}
        stages, steps, seen = [], 0, dict[str, None]()
        for stage in config.stages:
            steps += stage.steps
            seen |= dict.fromkeys(stage.domains or config.data.domains)
            domains = [name for name in config.data.domains if name in seen]
            stages.append(
                stage.but(steps=steps, domains=domains, start="proportional", decide_at=[], restart=True)
            )
        return {"stages": stages}


def _with_old(tokens: Mapping[str, float], old: Mixture | None, share: float) -> Mixture | None:
    """The old domains together at a share, the new ones by their tokens; None: nothing is new, or nothing old."""
    kept = {name: part for name, part in (old or {}).items() if name in tokens and part > 0}
    new = {name: count for name, count in tokens.items() if name not in kept}
    if not kept or not new:
        return None
    rest = (1 - share) / sum(new.values())
    scale = share / sum(kept.values())
    return Mixture({name: scale * kept[name] if name in kept else rest * new[name] for name in tokens})
