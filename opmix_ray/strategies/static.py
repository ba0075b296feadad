"""Mixtures that never change: uniform, proportional to size, tempered sizes, given shares.

Tempering follows the sampling of multilingual models: Conneau et al. 2020 (arXiv 1911.02116), section 3.1, with
an exponent of 1 / temperature.
"""

from __future__ import annotations

from collections.abc import Mapping

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
