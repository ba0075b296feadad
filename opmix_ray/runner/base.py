"""What a run goes on from: an earlier run's model, mixture and reading positions, or a model and its old mixture.

with resolved(config) as run:
    run.config.model.path                  # the earlier run's model
    run.prior                              # old mixture and positions
    adopt(run.written, storage, state)     # weights and moments become the run's own first checkpoint

start = start_stage(config, 1, prior, prepared)     # how a stage begins, in the names of its domains
start.mixture, start.old
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from opmix_ray.config import RunConfig, with_given
from opmix_ray.data.lineage import Content, Origin, follow, take_over
from opmix_ray.data.prepare import Prepared
from opmix_ray.data.sampler import SamplerState
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.mixture import Mixture
from opmix_ray.output.state import STATE, RunState, load_state
from opmix_ray.runner.plan import in_stage, stage_domains, start_mixture
from opmix_ray.storage import Storage, check_sealed, is_sealed, seal
from opmix_ray.train.checkpoint import TrainState

BASE = "train/base"  # the checkpoint that an adopted run begins with
_MOMENTS = ("optimizer.pt", "rng.pt")
_RESTORE = "restore it, or train it again; delete checksums.json if you changed it yourself"


@dataclass(frozen=True)
class PriorTraining:
    """What was trained on before a stage.

    Args:
        mixture: last one in force, share by domain; empty where nothing came before.
        sampler: reading positions of every domain that was ever read.
        read: what those domains held.
    """

    mixture: dict[str, float] = field(default_factory=dict)
    sampler: SamplerState = field(default_factory=SamplerState)
    read: dict[str, Content] = field(default_factory=dict)

    @classmethod
    def of(cls, state: RunState) -> PriorTraining:
        """From a run's state."""
        read = {name: Content(**values) for name, values in state.read.items()}
        return cls(state.mixture, SamplerState.from_dict(state.sampler), read)

    def put(self, state: RunState) -> None:
        """Write positions and contents into a run's state."""
        state.sampler = self.sampler.to_dict()
        state.read = {name: asdict(content) for name, content in self.read.items()}


@dataclass(frozen=True)
class Resolved:
    """What a run reads its configuration from: made once, and nobody changes it on the way.

    Args:
        written: as it was given; the output's config.yaml holds this.
        config: the same with the weights that the run begins with, wherever they lie now.
    """

    written: RunConfig
    config: RunConfig

    @cached_property
    def prior(self) -> PriorTraining:
        """What came before the first stage.

        Raises:
            UserError: the base is not a finished run.
        """
        return beginning(self.config)

    @cached_property
    def stages(self) -> tuple[RunConfig, ...]:
        """The configuration as the decisions of each stage see it."""
        count = len(self.config.stages)
        return tuple(in_stage(self.config, position, self.prior.read) for position in range(count))


@contextmanager
def resolved(config: RunConfig) -> Iterator[Resolved]:
    """A run's configuration for the time of a `with`; it begins with the base run's model, unless it names one.

    Raises:
        UserError: the base is not a finished run, or its model is damaged.
    """
    if not _takes_weights(config):
        yield Resolved(config, config)
        return
    _finished(str(config.base.run))
    base = Storage(str(config.base.run))
    with base.local("model") as directory:
        if is_sealed(directory):
            check_sealed(directory, remedy=_RESTORE, shown=base.path("model"))
        yield Resolved(config, with_given(config, model=Path(directory)))


def _takes_weights(config: RunConfig) -> bool:
    return config.base.run is not None and config.model.path is None and config.model.config is None


def beginning(config: RunConfig) -> PriorTraining:
    """What came before the first stage.

    Raises:
        UserError: the base is not a finished run.
    """
    if config.base.run is None:
        return PriorTraining(
            mixture=dict(config.base.mixture) if isinstance(config.base.mixture, dict) else {}
        )
    prior = PriorTraining.of(_finished(config.base.run))
    return replace(prior, sampler=replace(prior.sampler, step=0, since_step=0))


def adopt(config: RunConfig, storage: Storage, state: RunState) -> None:
    """Let a run that has done nothing yet begin where its base ended.

    Unless a model is named, the base's weights, and its optimiser's moments where it still has them and they are
    wanted, are copied to `train/base`.

    Args:
        config: the run, as it was given.
        storage: its output.
        state: its state.
    """
    prior = beginning(config)
    prior.put(state)
    state.mixture = prior.mixture
    if not _takes_weights(config):
        return
    base = Storage(str(config.base.run))
    found = load_state(base)
    whole = found.checkpoint is not None and base.exists(f"{found.checkpoint}/{_MOMENTS[0]}")
    source = found.checkpoint if whole and config.base.optimizer else None
    with base.local(source or "") as there, tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        if source:
            check_sealed(
                there,
                remedy="set base.optimizer to false: weights alone are taken over",
                shown=base.path(source),
            )
        for name in ["model", *(_MOMENTS if source else ())]:
            (here / name).symlink_to((there / name).resolve())
        first = TrainState(sampler=state.sampler, segment="base")
        (here / "state.json").write_text(json.dumps(asdict(first)))
        seal(here)
        storage.upload(here, BASE)
    state.checkpoint = BASE


def same_content(state: RunState, prepared: Prepared) -> None:
    """Refuse to go on with domains that hold other sequences than when the run read them.

    Raises:
        UserErrors: one error for each such domain.
    """
    changed = [
        name for name in state.mixture
        if name in state.read and state.read[name]["digest"] != prepared.domains[name].digest
    ]  # fmt: skip
    if changed:
        remedy = "put the old files back, or begin another run with `opmix run --continue`"
        raise UserErrors([
            UserError("holds other text than when this run began", key=f"data.domains.{name}", remedy=remedy)
            for name in changed
        ])  # fmt: skip


def _finished(uri: str) -> RunState:
    storage = Storage(uri)
    if not storage.exists(STATE):
        raise UserError(
            "is not the output of a run", key="base.run", value=uri, remedy="name a run's output directory"
        )
    state = load_state(storage)
    if not state.finished or not storage.exists("model/config.json"):
        raise UserError(
            "is not finished", key="base.run", value=uri, remedy="end it first with `opmix run ... --resume`"
        )
    return state


@dataclass(frozen=True)
class StageStart:
    """A stage as it begins.

    Args:
        mixture: its first, over its domains.
        old: what was trained on before, over the same domains; None: nothing of it is left, or nothing was.
        prior: positions and contents in the stage's names.
        used: tokens read by domain.
        notes: what became of domains that changed, and which shares repetition caps moved.
    """

    mixture: Mixture
    old: Mixture | None
    prior: PriorTraining
    used: dict[str, float]
    notes: list[str]

    def after(self, sequences: float) -> PriorTraining:
        """What a stage of so many sequences under its first mixture leaves to the next."""
        consumed = dict(self.prior.sampler.consumed)
        for name, share in self.mixture.items():
            consumed[name] = consumed.get(name, 0) + round(share * sequences)
        return replace(
            self.prior,
            mixture=self.mixture.shares,
            sampler=replace(self.prior.sampler, consumed=consumed),
        )


def start_stage(config: RunConfig, position: int, prior: PriorTraining, prepared: Prepared) -> StageStart:
    """Begin a stage.

    Args:
        config: the run.
        position: of the stage.
        prior: what came before it.
        prepared: the data.

    Raises:
        UserError: the repetition caps cannot be met.
    """
    stage = config.stages[position]
    names = stage_domains(config, stage)
    origins = {name: Origin.of(config.data.domains[name]) for name in names}
    now = {name: Content.of(prepared.domains[name]) for name in names}
    sampler, read, notes = take_over(prior.sampler, prior.read, now, origins)
    tokens = {name: prepared.domains[name].train_tokens for name in names}
    old = follow(prior.mixture, origins, tokens)
    if position == 0 and old is not None and config.base.mixture_unit == "documents":
        old = Mixture({name: old[name] * prepared.domains[name].tokens_per_document for name in names})
    used = {name: float(count * prepared.seq_len) for name, count in sampler.consumed.items()}
    mixture, moved = start_mixture(config, stage, old, tokens, used, prepared.seq_len)
    notes += [
        f"{name}: share changed by {change:+.4f} to keep its max_epochs" for name, change in moved.items()
    ]
    return StageStart(mixture, old, PriorTraining(prior.mixture, sampler, read), used, notes)
