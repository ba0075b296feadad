"""What is usually done when new data come: train on them alone, replay a little of the old, or begin again.

Sequential training is the lower bound of continual learning (McCloskey and Cohen 1989). Replay mixes in a fixed
share of old data (Ibrahim et al. 2024, arXiv 2403.08763). Retraining begins from the first weights with everything
so far, as long as all stages so far together.
"""

from __future__ import annotations

from collections.abc import Mapping

from opmix_ray.config import RunConfig
from opmix_ray.mixture import Mixture


def sequential(tokens: Mapping[str, float], old: Mixture | None) -> Mixture | None:
    """Shares of the new domains in proportion to their tokens, none for old ones; None: nothing is new or old."""
    return _with_old(tokens, old, 0.0)


def replay(tokens: Mapping[str, float], old: Mixture | None, share: float) -> Mixture | None:
    """`share` of what was trained on before, the rest to the new domains in proportion to their tokens.

    Args:
        tokens: training tokens of the stage's domains.
        old: what was trained on before; old domains that the stage leaves out are not replayed.
        share: of old data.
    """
    return _with_old(tokens, old, share)


def _with_old(tokens: Mapping[str, float], old: Mixture | None, share: float) -> Mixture | None:
    kept = {name: part for name, part in (old or {}).items() if name in tokens and part > 0}
    new = {name: count for name, count in tokens.items() if name not in kept}
    if not kept or not new:
        return None
    rest = (1 - share) / sum(new.values())
    scale = share / sum(kept.values())
    return Mixture({name: scale * kept[name] if name in kept else rest * new[name] for name in tokens})


def retrained(config: RunConfig) -> RunConfig:
    """Stages that each begin again with the domains and the steps of all stages so far, in proportion to tokens."""
    stages, steps, seen = [], 0, dict[str, None]()
    for stage in config.stages:
        steps += stage.steps
        seen |= dict.fromkeys(stage.domains or config.data.domains)
        changed = {
            "steps": steps,
            "domains": [name for name in config.data.domains if name in seen],
            "start": "proportional",
            "decide_at": [],
            "restart": True,
        }
        stages.append(stage.model_copy(update=changed))
    return config.model_copy(update={"stages": stages})
