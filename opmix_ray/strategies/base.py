"""What a strategy is: what it plans, begins a stage with, decides, does while a model is trained, and costs.

class WorstFirst(Strategy):
    def make(self, making: Making) -> Decision: ...

`registry.py` lists ours; other packages register theirs as entry points of `opmix_ray.strategies`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.make import Situation, decided
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.mixture import Mixture
from opmix_ray.output.ledger import Ledger
from opmix_ray.storage import Storage
from opmix_ray.strategies.costs import Costs, Planned
from opmix_ray.strategies.making import Making
from opmix_ray.train.callback import TrainingCallback


class Strategy:
    """The neutral one: the run as it is configured, and every decision keeps the mixture in force.

    `decides` says when: at the points of the configuration, once before every stage that has such a point (for
    strategies that learn from separate models, so that the whole stage can profit), or never.
    """

    decides: ClassVar[Literal["as configured", "before the stage", "never"]] = "as configured"

    def check(self, config: RunConfig) -> None:
        """Refuse a run that does not suit the strategy.

        Raises:
            UserError: it lacks a parameter, or does not suit.
        """

    def plan(self, config: RunConfig) -> RunConfig:
        """The run as the strategy wants it; planning again changes nothing."""
        self.check(config)
        return config.but(**self.changes(config))

    def changes(self, config: RunConfig) -> dict[str, Any]:
        """What the strategy wants otherwise, from the configuration alone: keys, and keys below them.

        {"probe": {"steps": 3}}
        """
        if self.decides == "as configured":
            return {}
        before = self.decides == "before the stage"
        return {
            "stages": [
                stage.but(decide_at=[0.0] if stage.decide_at and before else []) for stage in config.stages
            ]
        }

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        """A stage's first mixture before any cap; None: as the stage says.

        Args:
            config: the run.
            stage: the stage.
            old: what was trained on before it, if anything.
            tokens: training tokens of the stage's domains.
        """
        return None

    def decide(
        self, config: RunConfig, prepared: Prepared, storage: Storage, situation: Situation,
        progress: Progress, ledger: Ledger,
    ) -> Decision:  # fmt: skip
        """One decision: the one that is in the run's output already, or what `make` makes.

        Args:
            config: the run.
            prepared: its data.
            storage: the run's output; the decision's files go to `decisions/<index>`.
            situation: when and where.
            progress: what a person sees.
            ledger: the cost is added to it once the decision is made.
        """

        def made(place: Storage) -> Decision:
            progress.message(f"decision {situation.index} at step {situation.step}: {config.strategy}")
            return self.make(Making(config, prepared, place, situation, progress, output=storage))

        return decided(storage, situation, progress, ledger, made)

    def make(self, making: Making) -> Decision:
        """Make a decision; what a crash left in `making.place` need not be done again."""
        return making.decision(making.situation.current, "the strategy keeps the mixture")

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback | None:
        """What happens inside segments; None: nothing.

        Args:
            config: the run, with the objective of the stage.
            caps: greatest share by domain that repetition allows in the stage.
        """
        return None

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        """FLOPs of one decision, from shapes and counts alone: known before the run begins."""
        return 0.0

    def training_cost(
        self, config: RunConfig, costs: Costs, mixtures: Callable[[], Sequence[Mixture]]
    ) -> float:
        """FLOPs of the main run.

        Args:
            config: the run as it was planned.
            costs: of its model and data.
            mixtures: gives the first mixture of every stage.
        """
        sequences = sum(stage.steps for stage in config.stages) * config.train.batch_size
        return sequences * costs.length * costs.train

    def live_cost(self, config: RunConfig, domains: int, costs: Costs) -> float:
        """FLOPs of what is measured inside a stage of so many domains."""
        return 0.0
