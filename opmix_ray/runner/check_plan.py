"""Everything wrong with a run that its configuration alone shows: stages, mixtures, bounds, names, numbers."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from opmix_ray.config import DomainConfig, RunConfig, StageConfig
from opmix_ray.config.objective import UNITS, Limit
from opmix_ray.errors import UserError, nearest
from opmix_ray.laws.fit import law_names
from opmix_ray.runner.plan import decision_points, evaluated_at, overlap_steps, plan, stage_domains
from opmix_ray.strategies.base import strategy_of
from opmix_ray.trackers import CALLBACKS, missing
from opmix_ray.trials.space import OLD

ROUNDING = 1e-9
TYPED = 0.015  # how far from 1 the sum of shares may be that were rounded when they were written


def check_plan(config: RunConfig, file: Any = None) -> list[UserError]:
    """One error for each thing wrong; none when all is well.

    Args:
        config: the run.
        file: its file, for the errors.
    """
    check = _Check(config, file)
    check.names()
    for position, stage in enumerate(config.stages):
        check.stage(f"stages.{position}", stage)
    check.base()
    check.bounds()
    check.model()
    check.numbers()
    check.strategy()
    check.objective()
    check.limits()
    check.trackers()
    if config.evaluation.weights is not None:
        check.shares(config.evaluation.weights, "evaluation.weights", list(config.eval_sets()))
    if isinstance(config.proposal.prior, dict):
        check.shares(config.proposal.prior, "proposal.prior", list(config.data.domains))
    return check.errors


def oddities(config: RunConfig) -> list[str]:
    """A line for each thing that is odd, but may be meant."""
    found = []
    for position, stage in enumerate(config.stages):
        if isinstance(stage.start, dict):
            idle = [name for name, share in stage.start.items() if share == 0]
            until = "before the first decision" if stage.decide_at else "in this stage"
            if idle:
                found.append(f"stages.{position}.start: {', '.join(idle)}: not trained on {until}")
    mixed = any(len(stage_domains(config, stage)) > 1 for stage in config.stages)
    if mixed and strategy_of(config).decides != "never" and not any(s.decide_at for s in config.stages):
        found.append("stages: no decision; decide_at [0.0, 0.3] decides before the first step and at 30 %")
    return found


class _Check:
    def __init__(self, config: RunConfig, file: Any) -> None:
        self.config, self.file = config, file
        self.errors: list[UserError] = []

    def wrong(self, problem: str, key: str, value: Any, remedy: str) -> None:
        self.errors.append(UserError(problem, file=self.file, key=key, value=value, remedy=remedy))

    def names(self) -> None:
        """A component, its probe and its column are called like the domain; `old` is one of our own."""
        if OLD in self.config.data.domains:
            self.wrong(f"`{OLD}` means the mixture so far", f"data.domains.{OLD}", None, "rename the domain")

    def stage(self, key: str, stage: StageConfig) -> None:
        """Its name, domains, first mixture and decisions."""
        config = self.config
        if [other.name for other in config.stages].count(stage.name) > 1:
            self.wrong("another stage has this name", f"{key}.name", stage.name, "rename one")
        known = list(config.data.domains)
        for name in stage.domains or []:
            if name not in known:
                self.wrong("no such domain", f"{key}.domains", name, nearest(name, known))
        if stage.domains is not None and len(set(stage.domains)) < len(stage.domains):
            self.wrong("names a domain twice", f"{key}.domains", stage.domains, "name each once")
        names = stage_domains(config, stage)
        if stage.domains == []:
            self.wrong("has no domain", f"{key}.domains", stage.domains, f"known: {', '.join(known)}")
        for fraction in stage.decide_at:
            if not 0 <= fraction < 1:
                self.wrong("must lie in [0, 1)", f"{key}.decide_at", fraction, "0.5 is half-way")
        self._points(key, stage)
        if stage.decide_at and len(names) == 1:
            self.wrong(
                "a decision needs at least two domains", f"{key}.decide_at", stage.decide_at,
                "add a domain, or leave decide_at out",
            )  # fmt: skip
        if isinstance(stage.start, dict):
            self.start(stage.start, f"{key}.start", names)

    def start(self, shares: Mapping[str, float], key: str, names: Sequence[str]) -> None:
        """A first mixture written out: shares that sum to 1, one for every domain of the stage."""
        before = len(self.errors)
        self.shares(shares, key, names)
        if len(self.errors) > before:
            return
        missing, total = [name for name in names if name not in shares], sum(shares.values())
        if missing:
            self.wrong(
                f"leaves out {', '.join(missing)}", key, _listed(shares),
                f"give {missing[0]} a share, 0 if it shall have none before the first decision",
            )  # fmt: skip
        elif abs(total - 1) > TYPED:
            even = ", ".join(f"{name}: {share / total:.3g}" for name, share in shares.items())
            self.wrong(f"the shares sum to {total:g}, not to 1", key, _listed(shares), f"write {{{even}}}")

    def _points(self, key: str, stage: StageConfig) -> None:
        """Search spaces and overlaps fit the steps at which the stage decides."""
        points, ahead = decision_points(stage), overlap_steps(stage)
        spaces = stage.search_space
        if isinstance(spaces, list) and len(spaces) != len(points):
            self.wrong(
                f"names {len(spaces)} search spaces for {len(points)} decisions", f"{key}.search_space", spaces,
                "name one for each, or a single one",
            )  # fmt: skip
        for point, end in pairwise([*points, stage.steps]):
            if ahead and point + ahead >= end:
                following = "the end of the stage" if end == stage.steps else "the next decision"
                self.wrong(
                    f"the mixture decided at step {point} of the stage would come into force at step "
                    f"{point + ahead}, not before {following} at step {end}",
                    f"{key}.overlap", ahead, f"set it below {end - point}, or move decide_at",
                )  # fmt: skip

    def base(self) -> None:
        """The old mixture and the names that domains had before."""
        config = self.config
        origins: list[str] = []
        for name, source in config.data.domains.items():
            place = f"data.domains.{name}"
            if source.renamed_from is not None and source.split_from is not None:
                self.wrong(
                    "is given together with renamed_from", f"{place}.split_from", source.split_from,
                    "keep one of them",
                )  # fmt: skip
            if source.renamed_from in config.data.domains:
                self.wrong(
                    "is the name of another domain", f"{place}.renamed_from", source.renamed_from,
                    "name the one it had in an earlier run, or use split_from",
                )  # fmt: skip
            origins += source.earlier_names
        if isinstance(config.base.mixture, str):
            self.wrong("was not read", "base.mixture", config.base.mixture, "load the file with load_config")
        elif config.base.mixture is not None:
            self.shares(config.base.mixture, "base.mixture", [*config.data.domains, *origins])
            if config.base.run is not None:
                self.wrong(
                    "is given together with base.run, which has its own", "base.mixture", config.base.mixture,
                    "keep one of them",
                )  # fmt: skip

    def strategy(self) -> None:
        """There is such a strategy, and it has what it needs."""
        try:
            strategy_of(self.config).plan(self.config)
        except UserError as error:
            self.errors.append(error)

    def trackers(self) -> None:
        """The trackers' packages are installed."""
        for name in CALLBACKS:
            if getattr(self.config.watch, name) is not None and (error := missing(name)) is not None:
                self.errors.append(error)

    def objective(self) -> None:
        """An objective of another package is there, and says what the sets weigh."""
        evaluation = self.config.evaluation
        if evaluation.objective not in UNITS and evaluation.weights is not None:
            self.wrong(
                "excludes evaluation.weights", "evaluation.objective", evaluation.objective, "keep one"
            )
        if evaluation.weights is not None and not sum(evaluation.weights.values()) > 0:
            return  # said with the weights themselves
        try:
            weights = self.config.objective()
        except UserError as error:
            self.errors.append(error)
            return
        if evaluation.objective not in ("perplexity", "bits_per_byte"):
            return
        for name, source in evaluation.sets.items():
            if source.metric != "loss" and weights.get(name, 0) > 0:
                self.wrong(
                    f"the set {name} is measured by {source.metric}, which has no {evaluation.objective}",
                    "evaluation.objective", evaluation.objective,
                    f"set evaluation.weights.{name} to 0 and give it a limit, or use loss",
                )  # fmt: skip

    def limits(self) -> None:
        """Ceilings are on sets that there are, and are readable."""
        known = list(self.config.eval_sets())
        for name, given in self.config.evaluation.limits.items():
            if name not in known:
                self.wrong("no such set", f"evaluation.limits.{name}", given, nearest(name, known))
                continue
            try:
                Limit.read(name, given)
            except UserError as error:
                self.errors.append(error)

    def bounds(self) -> None:
        """Least and greatest shares must leave room for a mixture, in every stage that decides."""
        domains = self.config.data.domains
        for name, source in domains.items():
            if source.min_share > source.max_share:
                self.wrong(
                    f"is above its max_share, {source.max_share:g}", f"data.domains.{name}.min_share",
                    source.min_share, "lower it, or raise max_share",
                )  # fmt: skip
        deciding = [(p, s) for p, s in enumerate(self.config.stages) if s.decide_at]
        places = [(f"stages.{p}.domains", stage_domains(self.config, s)) for p, s in deciding]
        for key, names in places or [("data.domains", list(domains))]:
            if names:
                self._room(key, {name: domains[name] for name in names})

    def _room(self, key: str, sources: Mapping[str, DomainConfig]) -> None:
        least = {name: source.min_share for name, source in sources.items()}
        most = {name: source.max_share for name, source in sources.items()}
        floor, ceiling = sum(least.values()), sum(most.values())
        if floor > 1 + ROUNDING:
            self.wrong(
                f"the least shares sum to {floor:.4g}, {floor - 1:.4g} more than 1 ({_listed(least)})",
                key, None, f"lower data.domains.{max(least, key=least.__getitem__)}.min_share or others",
            )  # fmt: skip
        if ceiling < 1 - ROUNDING:
            self.wrong(
                f"the greatest shares sum to {ceiling:.4g}, {1 - ceiling:.4g} less than 1 ({_listed(most)})",
                key, None, f"raise data.domains.{min(most, key=most.__getitem__)}.max_share or others",
            )  # fmt: skip

    def model(self) -> None:
        """Exactly one model and one tokenizer."""
        model, tokenizer = self.config.model, self.config.tokenizer
        if (model.path is None) == (model.config is None):
            both = model.path is not None
            self.wrong(
                f"{'has both' if both else 'needs either'} `path` {'and' if both else 'or'} `config`",
                "model", model.path,
                "give model.path for a pretrained model or model.config for fresh weights",
            )  # fmt: skip
        if model.gguf_file is not None and model.path is None:
            self.wrong("needs model.path", "model.gguf_file", model.gguf_file, "name the directory it is in")
        if tokenizer.path is not None and tokenizer.train_vocab_size is not None:
            self.wrong(
                "is given together with tokenizer.train_vocab_size", "tokenizer.path", tokenizer.path,
                "keep one of them",
            )  # fmt: skip

    def numbers(self) -> None:
        """Numbers that do not go together."""
        train, search, schedule = self.config.train, self.config.search, self.config.train.schedule
        if train.workers > train.batch_size:
            self.wrong(
                f"is more than train.batch_size, {train.batch_size}", "train.workers", train.workers,
                "raise train.batch_size or use fewer workers",
            )  # fmt: skip
        measured = Counter(
            step.stage
            for step in plan(self.config)
            for at in evaluated_at(self.config, step)
            if at > step.start
        )
        if train.keep == "best" and max(measured.values(), default=0) < 2:
            longest = max(stage.steps for stage in self.config.stages)
            self.wrong(
                "leaves one evaluation to a stage, at its end, so that train.keep: best has no choice",
                "train.eval_every", train.eval_every,
                f"set it below {longest}, the steps of the longest stage, or set train.keep to last",
            )  # fmt: skip
        spent = schedule.warmup_fraction + (schedule.decay_fraction if schedule.kind == "wsd" else 0)
        if spent > 1 + ROUNDING:
            self.wrong(
                f"warm-up and decay take {spent:g} of the stage, more than all of it",
                "train.schedule.warmup_fraction", schedule.warmup_fraction, "lower it, or decay_fraction",
            )  # fmt: skip
        for key, gpus in (("probe.gpus", self.config.probe.gpus), ("search.gpus", search.gpus)):
            if gpus > 1 and gpus != int(gpus):
                self.wrong("is neither a part of a GPU nor some whole ones", key, gpus, f"set {int(gpus)}")
        for section in ("train", "probe", "search"):
            self.resources(section, getattr(self.config, section).resources)
        law = self.config.proposal.law
        if law not in law_names():
            self.wrong("no such law", "proposal.law", law, nearest(law, law_names()))
        if law == "trees" and importlib.util.find_spec("lightgbm") is None:
            self.wrong("needs lightgbm", "proposal.law", law, "pip install 'opmix_ray[trees]'")

    def resources(self, section: str, resources: Mapping[str, float]) -> None:
        """Named resources: amounts above 0, and no CPUs or GPUs, which have keys of their own."""
        for kind, amount in resources.items():
            key = f"{section}.resources.{kind}"
            if kind in ("CPU", "GPU"):
                own = f"{section}.{kind.lower()}s{'_per_worker' if section == 'train' else ''}"
                self.wrong("has a key of its own", key, amount, f"use {own}")
            elif not amount > 0:
                self.wrong("must be above 0", key, amount, "for example 1, or leave it out")

    def shares(self, shares: Mapping[str, float], key: str, known: Sequence[str]) -> None:
        """Weights by name: known names, no negative number, and a sum above 0."""
        before = len(self.errors)
        for name, share in shares.items():
            if name not in known:
                self.wrong("no such name", f"{key}.{name}", share, nearest(name, known))
            elif not share >= 0:
                self.wrong("must be a number of at least 0", f"{key}.{name}", share, "for example 0.2")
        if len(self.errors) == before and not sum(shares.values()) > 0:
            self.wrong("the shares sum to 0", key, dict(shares), "give one of them a share above 0")


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())
