"""Parameters of the strategies that a run can follow; the defaults are those of the papers where they say."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from opmix_ray.config.section import Section


class PublishedConfig(Section):
    """OP-Mix as its paper describes it (arXiv 2605.15220): what it changes in `probe`, `search` and `proposal`."""

    probe_steps: int | None = Field(None, ge=1, description="Steps of a probe; none: `probe.steps`.")
    trials: int = Field(40, ge=1, description="Mixtures simulated per decision.")


class FixedConfig(Section):
    """One mixture from beginning to end."""

    mixture: dict[str, float] | None = Field(
        None, description="Shares by domain; a stage takes those of its own domains. Required by `fixed`."
    )


class TemperatureConfig(Section):
    """Shares in proportion to tokens ** (1 / temperature)."""

    temperature: float = Field(2.0, gt=0, description="1 is proportional; towards infinity it is uniform.")


class ReplayConfig(Section):
    """A fixed share of old data in every stage that brings new domains."""

    old_share: float = Field(0.1, ge=0, lt=1, description="Share of what was trained on before.")


class ProxyConfig(Section):
    """How a separate model is trained by full weights to learn something about mixtures."""

    model: dict[str, Any] | None = Field(
        None,
        description="Keys that replace those of `model.config`, such as `hidden_size`; none: the same architecture. "
        "Without `model.config` a proxy starts from the weights in force.",
    )
    steps: int = Field(100, ge=1, description="Optimiser steps.")
    batch_size: int | None = Field(None, ge=1, description="Sequences in a step; none: as in the main run.")
    learning_rate_ratio: float = Field(1.0, gt=0, description="Learning rate, divided by the main run's.")


class SwarmConfig(Section):
    """Small models on sampled mixtures, a law, a proposal (RegMix, arXiv 2407.01492; olmix)."""

    proxies: int = Field(16, ge=4, description="Models trained, each on its own mixture.")
    proxy: ProxyConfig = Field(default_factory=ProxyConfig, description="How each is trained.")


class MergeMixConfig(Section):
    """One expert per domain by full weights, merged as proxies of mixtures (arXiv 2601.17858)."""

    trials: int = Field(20, ge=4, description="Merged models that are scored.")
    steps: int = Field(25, ge=1, description="Optimiser steps of each expert, at a constant learning rate.")
    batch_size: int | None = Field(None, ge=1, description="Sequences in a step; none: as in the main run.")
    learning_rate_ratio: float = Field(
        0.5, gt=0, description="Learning rate, divided by the main run's: experts must stay near each other."
    )


class DoReMiConfig(Section):
    """Group DRO on a proxy against a reference model (arXiv 2305.10429)."""

    eta: float = Field(1.0, gt=0, description="Step size of the domain weights.")
    proxy: ProxyConfig = Field(default_factory=ProxyConfig, description="How both models are trained.")


class OdmConfig(Section):
    """EXP3 bandit over domains with the training loss as reward (arXiv 2312.02406)."""

    smoothing: float = Field(0.9, ge=0, lt=1, description="Share of the old value in the moving average.")
    warmup_fraction: float = Field(
        0.01, ge=0, lt=1, description="Part of a stage under its first mixture before the bandit acts."
    )


class AioliConfig(Section):
    """Sweeps over perturbed mixtures inside the main run (arXiv 2411.05735)."""

    rounds: int = Field(4, ge=1, description="Rounds in a stage; each begins with a sweep.")
    sweep_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Part of a round spent on its sweep; every domain gets at least one step.",
    )
    one_hot: float = Field(0.75, gt=0, le=1, description="Share of the domain whose turn it is in a sweep.")
    eta: float = Field(1.0, gt=0, description="Step size of the exponentiated gradient.")


class SelfDistillationConfig(Section):
    """On-policy self-distillation for instruction tuning (SDFT, arXiv 2601.19897)."""

    rollouts: int = Field(1, ge=1, description="Answers that the student gives to each prompt.")
    max_new_tokens: int = Field(32, ge=1, description="Longest answer that the student gives.")
    temperature: float = Field(1.0, gt=0, description="Temperature at which the student samples.")
    teacher_rate: float = Field(
        0.01, ge=0, le=1,
        description="How far the teacher's weights move towards the student's at every step; 0: it stays what the "
        "stage began with; 1: it is the student.",
    )  # fmt: skip


class StrategiesConfig(Section):
    """Parameters of every strategy; a run reads those of its own."""

    opmix_published: PublishedConfig = Field(
        default_factory=PublishedConfig, description="Of `opmix-published`."
    )
    fixed: FixedConfig = Field(default_factory=FixedConfig, description="Of `fixed`.")
    temperature: TemperatureConfig = Field(default_factory=TemperatureConfig, description="Of `temperature`.")
    replay: ReplayConfig = Field(default_factory=ReplayConfig, description="Of `replay`.")
    swarm: SwarmConfig = Field(default_factory=SwarmConfig, description="Of `swarm`.")
    mergemix: MergeMixConfig = Field(default_factory=MergeMixConfig, description="Of `mergemix`.")
    doremi: DoReMiConfig = Field(default_factory=DoReMiConfig, description="Of `doremi`.")
    odm: OdmConfig = Field(default_factory=OdmConfig, description="Of `odm`.")
    aioli: AioliConfig = Field(default_factory=AioliConfig, description="Of `aioli`.")
    self_distillation: SelfDistillationConfig = Field(
        default_factory=SelfDistillationConfig, description="Of `self-distillation`."
    )
