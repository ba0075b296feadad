"""How a stage begins: reading positions and old mixture in the names of its domains, and its first mixture.

start = start_stage(config, 1, before, prepared)
start.mixture, start.old
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from opmix_ray.config import RunConfig
from opmix_ray.data.lineage import Content, Origin, follow, take_over
from opmix_ray.data.prepare import Prepared
from opmix_ray.mixture import Mixture
from opmix_ray.runner.base import PriorTraining
from opmix_ray.runner.plan import stage_domains, start_mixture


@dataclass(frozen=True)
class StageStart:
    """A stage as it begins.

    Args:
        mixture: its first, over its domains.
        old: what was trained on before, over the same domains; None: nothing of it is left, or nothing was.
        before: positions and contents in the stage's names.
        used: tokens read by domain.
        notes: what became of domains that changed, and which shares repetition caps moved.
    """

    mixture: Mixture
    old: Mixture | None
    before: PriorTraining
    used: dict[str, float]
    notes: list[str]

    def after(self, sequences: float) -> PriorTraining:
        """What a stage of so many sequences under its first mixture leaves to the next."""
        consumed = dict(self.before.sampler.consumed)
        for name, share in self.mixture.items():
            consumed[name] = consumed.get(name, 0) + round(share * sequences)
        return replace(
            self.before,
            mixture=self.mixture.shares,
            sampler=replace(self.before.sampler, consumed=consumed),
        )


def start_stage(config: RunConfig, position: int, before: PriorTraining, prepared: Prepared) -> StageStart:
    """Begin a stage.

    Args:
        config: the run.
        position: of the stage.
        before: what came before it.
        prepared: the data.

    Raises:
        UserError: the repetition caps cannot be met.
    """
    stage = config.stages[position]
    names = stage_domains(config, stage)
    origins = {name: Origin.of(config.data.domains[name]) for name in names}
    now = {name: Content.of(prepared.domains[name]) for name in names}
    sampler, read, notes = take_over(before.sampler, before.read, now, origins)
    tokens = {name: prepared.domains[name].train_tokens for name in names}
    old = follow(before.mixture, origins, tokens)
    if position == 0 and old is not None and config.base.mixture_unit == "documents":
        old = Mixture({name: old[name] * prepared.domains[name].tokens_per_document for name in names})
    used = {name: float(count * prepared.seq_len) for name, count in sampler.consumed.items()}
    mixture, moved = start_mixture(config, stage, old, tokens, used, prepared.seq_len)
    notes += [
        f"{name}: share changed by {change:+.4f} to keep its max_epochs" for name, change in moved.items()
    ]
    return StageStart(mixture, old, PriorTraining(before.mixture, sampler, read), used, notes)
