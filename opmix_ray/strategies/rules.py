"""Rules: mixtures that never change, and what is usually done when new data come.

Uniform, proportional to size, tempered sizes, given shares. Tempering follows the sampling of multilingual models:
Conneau et al. 2020 (arXiv 1911.02116), section 3.1, with an exponent of 1 / temperature.

Sequential training is the lower bound of continual learning (McCloskey and Cohen 1989). Replay mixes in a fixed
share of old data (Ibrahim et al. 2024, arXiv 2403.08763). Retraining begins from the first weights with everything
so far, as long as all stages so far together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.base import Strategy


class Uniform(Strategy):
    """The same share for every domain."""

    decides = "never"

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture:
        return Mixture.uniform(tokens)


class Proportional(Strategy):
    """Shares in proportion to tokens."""

    decides = "never"

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture:
        return Mixture.proportional(tokens)


class Temperature(Strategy):
    """Shares in proportion to tokens ** (1 / temperature)."""

    decides = "never"

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture:
        exponent = 1 / config.strategies.temperature.temperature
        largest = max(tokens.values())
        return Mixture({name: (count / largest) ** exponent for name, count in tokens.items()})


class Fixed(Strategy):
    """The given shares, over the stage's domains."""

    decides = "never"

    def check(self, config: RunConfig) -> None:
        self.start(config, config.stages[0], None, dict.fromkeys(config.data.domains, 1.0))

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture:
        given, key = config.strategies.fixed.mixture, "strategies.fixed.mixture"
        if not given:
            raise UserError(
                "the strategy `fixed` needs a mixture",
                key=key,
                remedy="give shares by domain, or another strategy",
            )
        for name, share in given.items():
            if name not in config.data.domains:
                raise UserError(
                    "no such domain", key=f"{key}.{name}", value=share,
                    remedy=f"known: {', '.join(config.data.domains)}",
                )  # fmt: skip
        shares = {name: given.get(name, 0.0) for name in tokens}
        if not sum(shares.values()):
            raise UserError(
                f"gives no share to any domain of a stage ({', '.join(tokens)})", key=key, remedy="add one"
            )
        return Mixture(shares)


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
