"""The whole description of a run: its stages, its decisions, and every part of it.

Every field's description is the documentation of its key (`docs/configuration.md` is made from it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from opmix_ray.config.data import NAME, BaseConfig, DataConfig, EvaluationConfig, SourceConfig
from opmix_ray.config.objective import UNITS, Limit, Objective, OwnObjective, own_objective, weighted
from opmix_ray.config.section import Section, SpaceKey
from opmix_ray.config.strategy import StrategiesConfig
from opmix_ray.config.train import ModelConfig, TokenizerConfig, TrainConfig


class StageConfig(Section):
    """One stage: some domains, some steps, and when to decide again."""

    name: str = Field(pattern=NAME, description="Name, unique in the run.")
    steps: int = Field(ge=1, le=10**9, description="Optimiser steps.")
    domains: list[str] | None = Field(None, description="Domains used; none: all.")
    start: Literal["uniform", "proportional", "carry", "join"] | dict[str, float] = Field(
        "proportional",
        description="First mixture. `uniform`; `proportional` to tokens; `carry`: the mixture of the last stage or "
        "of the base, in which new domains have no share; `join`: the same with every new domain at its "
        "uniform share; or shares by name, one for every domain, that sum to 1. `carry` and `join` are "
        "proportional where nothing came before.",
    )
    decide_at: list[float] = Field(
        default_factory=list,
        description="When to decide: fractions of the stage, each in [0, 1). 0.0: before the first step. None: never.",
    )
    search_space: SpaceKey | list[SpaceKey] | None = Field(
        None,
        description="Search space of this stage's decisions, or one for each in the order of `decide_at`; none: "
        "`search.space`.",
    )
    overlap: bool | Annotated[int, Field(ge=1)] = Field(
        False,
        description="Train under the old mixture while a decision is made. A number: the new mixture comes into "
        "force after so many steps. True: after a tenth of the stage. The number is fixed beforehand, "
        "so a run does not depend on how long a decision takes.",
    )
    restart: bool = Field(
        False, description="Begin with the configured model instead of the last stage's weights."
    )


class ProbeConfig(Section):
    """The LoRA probes of a decision."""

    sized_by_rule: ClassVar[frozenset[str]] = frozenset({"steps", "batch_size"})

    steps: int = Field(25, ge=1, description="Optimiser steps of each probe.")
    batch_size: int | None = Field(None, ge=1, description="Sequences in a step; none: as in the main run.")
    rank: int = Field(16, ge=1, description="LoRA rank.")
    alpha: float = Field(32.0, gt=0, description="LoRA alpha; the scale is alpha / rank.")
    learning_rate_ratio: float = Field(
        2.0, gt=0, description="The probe's learning rate, divided by the main run's."
    )
    new_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the probe's own domain in its data; the rest is the old mixture.",
    )
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="Layers that are adapted, fused experts among them; `all-linear` leaves out embedding, head and "
        "layers on which a LoRA has no effect.",
    )
    cpus: float = Field(1, gt=0, description="CPUs asked for per probe.")
    gpus: float = Field(0, ge=0, description="GPUs asked for per probe; several share the model's blocks.")
    resources: dict[str, float] = Field(default_factory=dict, description="What else is asked for per probe.")
    check: bool = Field(
        True,
        description="Train one more probe, on a mixture of all domains. A decision is taken only if the sum of the "
        "other probes measures nearly the same as this one.",
    )


class SearchConfig(Section):
    """Candidates and how they are scored."""

    sized_by_rule: ClassVar[frozenset[str]] = frozenset({"trials", "sequences"})

    space: SpaceKey = Field(
        "simplex", description="A built-in search space (`simplex`, `old_new`, ...), or a YAML file."
    )
    budget: float | None = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of a stage's training FLOPs that all its decisions may cost. Probes (steps, batch), "
        "candidates and their sequences are sized to it; what is set by hand stays. Where every set can be counted "
        "(all but questions), probes only check that, at a fifth of it. Where it pays for no probe, the decision rests "
        "on counting; a pretrained model is asked first what it knows, else it costs no FLOPs. None: no bound.",
    )
    trials: int = Field(12, ge=1, description="Candidates scored per decision, at most.")
    gradients: bool | Literal["auto"] = Field(
        "auto",
        description="Measure how the losses of each candidate change with every share. A candidate then costs three "
        "times as much, so a third of `trials` is made. `auto`: only with 16 probes or more and fewer "
        "than two `trials` for each of them, under a law that uses them (`own-share`, `log-share`).",
    )
    sampler: Literal["gp", "tpe", "qmc", "cmaes", "random"] = Field(
        "tpe", description="Optuna sampler that proposes candidates."
    )
    round_size: int = Field(
        4,
        ge=1,
        description="Candidates proposed together. The number is fixed, so that the result does not depend on how "
        "many evaluators there are.",
    )
    evaluators: int = Field(2, ge=1, description="Trials scored at the same time.")
    sequences: int = Field(32, ge=1, description="Held-out sequences per evaluation set that a trial sees.")
    cpus: float = Field(1, gt=0, description="CPUs asked for per evaluator.")
    gpus: float = Field(
        0,
        ge=0,
        description="GPUs asked for per evaluator; several share the model's blocks. 0: it works on CPUs.",
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="What else is asked for per evaluator."
    )


class ProposalConfig(Section):
    """How the fitted law becomes the next mixture."""

    law: str = Field("auto", description="Mixing law: `auto`, `log-linear`, `log-share`, ...")
    kl: float = Field(0.05, ge=0, description="Weight of KL(proposal || prior) in nats of loss.")
    prior: Literal["best", "current", "proportional", "uniform"] | dict[str, float] = Field(
        "best",
        description="Mixture that the KL term holds on to; `best`: of the stage's first one, uniform, proportional and "
        "tempered, the one that the law likes best (with another law than `auto`: the mixture in force).",
    )
    verify: bool = Field(
        True,
        description="With another law than `auto`: take a proposal only if its check shows a gain; false: take it as "
        "it is. `auto` weighs what the check measured.",
    )


class ClusterConfig(Section):
    """Where Ray is."""

    address: str | None = Field(
        None, description="Ray address; none: RAY_ADDRESS, else a Ray that the run starts on this machine."
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs of the Ray that the run starts; none: all.")
    grows: bool = Field(
        False,
        description="Wait for machines that are not there yet instead of refusing the run. A job on the cluster's "
        "head sees what the autoscaler may bring; set this where the driver runs elsewhere.",
    )
    max_retries: int = Field(
        3,
        ge=0,
        description="How often a probe or a candidate is tried again when its machine goes away or it fails.",
    )
    connect_timeout: float = Field(30, gt=0, description="Seconds to wait for an address to answer.")


class WatchConfig(Section):
    """Trackers that follow the run. TensorBoard's event files are always written, to `tensorboard/` in the output."""

    wandb: dict[str, Any] | None = Field(
        None,
        description="Weights & Biases: arguments of Ray's `WandbLoggerCallback`, such as `{project: mine}`.",
    )
    mlflow: dict[str, Any] | None = Field(
        None,
        description="MLflow: arguments of Ray's `MLflowLoggerCallback`, such as "
        "`{tracking_uri: 'http://host:5000', experiment_name: mine}`.",
    )
    aim: dict[str, Any] | None = Field(
        None, description="Aim: arguments of Ray's `AimLoggerCallback`, such as `{repo: /data/aim}`."
    )


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", pattern=NAME, description="Name of the run.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything that is random.")
    output: str | None = Field(
        None, description="Directory or `pyarrow.fs` URI of the results; none: `runs/<name>`."
    )
    model: ModelConfig = Field(
        default_factory=ModelConfig,
        description="The language model. With `base.run` it is that run's model, unless you name another.",
    )
    base: BaseConfig = Field(default_factory=BaseConfig, description="What the run continues.")
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="The tokenizer.")
    data: DataConfig = Field(description="Domains and sequences.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="The main run.")
    stages: list[StageConfig] = Field(min_length=1, description="Stages, in order.")
    probe: ProbeConfig = Field(default_factory=ProbeConfig, description="LoRA probes of a decision.")
    search: SearchConfig = Field(
        default_factory=SearchConfig, description="Candidates and how they are scored."
    )
    proposal: ProposalConfig = Field(
        default_factory=ProposalConfig, description="From the law to the next mixture."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="Held-out sets, and what is minimised."
    )
    strategy: str = Field(
        "opmix",
        description="Who decides the mixture: `opmix`, one of those that it is compared with (docs/compare.md), or one "
        "that another package brings (docs/plugins.md).",
    )
    strategies: StrategiesConfig = Field(
        default_factory=StrategiesConfig, description="Parameters of the strategies."
    )
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Where Ray is.")
    watch: WatchConfig = Field(default_factory=WatchConfig, description="Trackers that follow the run.")

    def output_uri(self) -> str:
        """The output directory or URI."""
        return self.output or f"runs/{self.name}"

    def eval_sets(self) -> Mapping[str, SourceConfig]:
        """Every evaluation set: the domains' held-out parts and the sets named for evaluation only."""
        return {**self.data.domains, **self.evaluation.sets}

    def objective(self) -> dict[str, float]:
        """Weight per evaluation set in the objective, summing to 1."""
        own = self.own_objective()
        if own is not None:
            return own.weights
        weights = self.evaluation.weights or {name: 1.0 for name in self.eval_sets()}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def own_objective(self) -> OwnObjective | None:
        """What another package minimises; None: a built-in objective."""
        kind = self.evaluation.objective
        return None if kind in UNITS else own_objective(kind, self.eval_sets())

    def objective_of(self, bytes_per_token: Mapping[str, float | None]) -> Objective:
        """What is minimised.

        Args:
            bytes_per_token: by evaluation set, as prepared; read for `bits_per_byte` alone.

        Raises:
            UserError: a set with weight has no bytes.
        """
        own = self.own_objective()
        if own is None:
            return weighted(self.evaluation.objective, self.objective(), bytes_per_token)
        mean = Objective.of(own.weights)
        if own.value is None:
            return mean
        return replace(mean, kind=self.evaluation.objective, unit=own.unit, own=own.value)

    def limits(self) -> dict[str, Limit]:
        """Ceilings by evaluation set.

        Raises:
            UserError: one is not a limit.
        """
        return {name: Limit.read(name, given) for name, given in self.evaluation.limits.items()}

    def questions(self) -> set[str]:
        """Evaluation sets of questions: they are scored by wrong answers, and their words cannot be counted."""
        return {name for name, source in self.evaluation.sets.items() if source.metric != "loss"}

    def decided_on(self) -> list[str]:
        """Evaluation sets that a decision looks at: those with a weight or a limit, in their order."""
        weights = self.objective()
        return [
            name for name in self.eval_sets() if weights.get(name, 0) > 0 or name in self.evaluation.limits
        ]


LEAST_COMPONENTS = 16
MOST_TRIALS = 2  # for each component; with more, values alone do as well
PRICE = 3  # of a candidate with derivatives, in candidates without: a backward pass costs two forward passes
LEAST_CANDIDATES = 4
BY_SLOPES = ("own-share", "log-share")  # laws that take derivatives
FOR_TRAINED = ("auto", *BY_SLOPES)  # laws that are read for models trained to the end of the stage


def with_slopes(config: RunConfig, components: int, trials: int) -> bool:
    """Whether a decision on so many components, with so many candidates, measures derivatives.

    `auto`: from 16 components on, with less than two candidates for each, where the law uses them and all that counts
    is text. The law `auto` counts text, and uses none.
    """
    wanted = config.search.gradients
    if wanted != "auto":
        return bool(wanted)
    law = config.proposal.law
    questions = config.questions()
    text = not any(weight for name, weight in config.objective().items() if name in questions)
    many = components >= LEAST_COMPONENTS and trials < MOST_TRIALS * components
    return law in BY_SLOPES and text and many


def candidates(config: RunConfig, components: int, trials: int) -> int:
    """Candidates scored per decision, at most: `trials`, or a third of them where each brings derivatives."""
    if not with_slopes(config, components, trials):
        return trials
    return min(trials, max(LEAST_CANDIDATES, math.ceil(trials / PRICE)))
