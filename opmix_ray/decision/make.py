"""One decision from the current weights to decision.json; what a crash left is found and not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from opmix_ray.cluster.demand import of_evaluator, waiting
from opmix_ray.config import RunConfig
from opmix_ray.config.objective import needs_losses
from opmix_ray.config.run import candidates, with_slopes
from opmix_ray.counts.ngrams import Counts, DataLeft, Held, smoothed
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.budget import Size, decision_size, pretrained
from opmix_ray.decision.data_law import Known
from opmix_ray.decision.health import examine, with_health
from opmix_ray.decision.old_part import choose_components
from opmix_ray.decision.probing import CHECK, Probing, Trained, can_do_without, holding, undecided
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import (
    Decision,
    DecisionInputs,
    conclude,
    fit_decision,
    prior_mixture,
)
from opmix_ray.decision.task import (
    Measured,
    counts_for,
    load_weights,
    measure_in_task,
    measure_now,
    put_task,
    texts_for,
)
from opmix_ray.mixture import Mixture, share_caps
from opmix_ray.model.base import snapshot
from opmix_ray.model.probe import Probe
from opmix_ray.output.ledger import Ledger
from opmix_ray.output.result import DomainCurves, Evaluation
from opmix_ray.signals import Background
from opmix_ray.storage import Storage, read_record
from opmix_ray.trials.rows import RowLog, TrialRow
from opmix_ray.trials.space import Components, load_space, read_space
from opmix_ray.trials.tuner import searching


@dataclass(frozen=True)
class Situation:
    """When and where a decision is made.

    Args:
        index: of the decision in the run.
        step: global step.
        stage: name of the stage.
        space: name or file of the search space.
        current: mixture in force, over every domain of the stage.
        first: the one that the stage began with; None: the one in force.
        model: directory of the weights; None: the configured model.
        tokens_left: of the stage.
        tokens_used: by domain, since the run began.
        old: what the model was trained on before the stage; None: nothing.
        effective: step at which the new mixture comes into force; None: at once.
        curves: training loss of each domain since the weights were begun with; None: no steps yet, or not ours.
        evaluations: of the main run since then, in order.
    """

    index: int
    step: int
    stage: str
    space: str
    current: Mixture
    model: Path | None
    tokens_left: int
    tokens_used: dict[str, float]
    old: Mixture | None = None
    first: Mixture | None = None
    effective: int | None = None
    curves: DomainCurves | None = None
    evaluations: tuple[Evaluation, ...] = ()


def make_decision(
    config: RunConfig,
    prepared: Prepared,
    storage: Storage,
    situation: Situation,
    progress: Progress,
    ledger: Ledger,
) -> Decision:
    """Train the probes, search, fit, propose, check; or read what is already there.

    Args:
        config: the run.
        prepared: its data.
        storage: the run's output; the decision's files go to `decisions/<index>`.
        situation: when and where.
        progress: what a person sees.
        ledger: the cost is added to it once the decision is made.
    """
    return decided(
        storage, situation, progress, ledger,
        lambda place: _Maker(config, prepared, place, situation, progress).make(),
    )  # fmt: skip


def decided(
    storage: Storage,
    situation: Situation,
    progress: Progress,
    ledger: Ledger,
    make: Callable[[Storage], Decision],
) -> Decision:
    """The decision that is in its directory already, or a new one, written there; its cost goes to the ledger.

    Args:
        storage: the run's output.
        situation: when and where.
        progress: what a person sees.
        ledger: takes `details.cost` of the decision, by purpose.
        make: from the decision's directory to the decision.
    """
    place = storage.child(f"decisions/{situation.index:03d}")
    if place.exists("decision.json"):
        decision = read_record(place, "decision.json", Decision)
    else:
        decision = make(place)
        place.write_json("decision.json", decision.to_dict())
        progress.decided(decision)
    for purpose, amounts in decision.details["cost"].items():
        ledger.add(purpose, **amounts)
    return decision


def decision_seed(seed: int, index: int, number: int = 0) -> int:
    """A seed of its own for every decision, and for every model of it, below 2**31."""
    return (seed * 1_000_003 + index * 7919 + number) % 2**31


# What a strategy puts in the place of `make_decision`: it leaves decision.json and adds its cost to the ledger.
Decide = Callable[[RunConfig, Prepared, Storage, Situation, Progress, Ledger], Decision]


class _Maker:
    def __init__(
        self, config: RunConfig, prepared: Prepared, place: Storage, situation: Situation, progress: Progress
    ) -> None:
        self.prepared, self.place = prepared, place
        self.situation, self.progress = situation, progress
        self.domains = situation.current.domains
        kind = read_space(situation.space)[0].kind
        self.chosen = choose_components(kind, situation.old, situation.current)
        self.names, self.old = self.chosen.names, self.chosen.old
        self.sets = tuple(config.decided_on())
        stage = next(stage for stage in config.stages if stage.name == situation.stage)
        untrained = situation.curves is None
        self.size: Size = decision_size(config, stage, len(self.names), first=untrained)
        self.config, self.probe = config, self.size.probe or config.probe
        self.slopes = with_slopes(config, len(self.names), self.size.trials)
        self.trials = candidates(config, len(self.names), self.size.trials)
        self.times: dict[str, float] = {}
        self.lost: dict[str, str] = {}  # probes that failed for good, and why
        self.check: Probe | None = None
        self.base: ray.ObjectRef | None = None  # weights, where they are in the object store already
        self.asked: list[Measured] = []  # passes of the model before the search
        self.counting: Background[dict[str, Counts]] | None = None  # while probes train

    def make(self) -> Decision:
        self.progress.message(self.size.words)
        if self.size.probe is None:
            return self._by_counting()
        return self._by_probes()

    def _by_counting(self) -> Decision:
        """A decision without a candidate: the law of what counting says."""
        situation, began = self.situation, time.monotonic()
        question = self._question(self.chosen.components(self.config.probe.new_share), None)
        if not question.now and needs_losses(self.config.evaluation):
            question = replace(question, now=self._measured())
        found = fit_decision([], question)
        decision = conclude(
            [], None, found, question, index=situation.index, step=situation.step, stage=situation.stage
        )
        self.times["search"] = time.monotonic() - began
        decision.details.update(
            cost={
                **({"search": _passes(self.asked)} if self.asked else {}),
                "fit": {"seconds": found.seconds},
            },
            components=question.components.by_name(),
            lost={},
            **self._circumstances(question),
        )
        if found.law is not None:
            self.place.write_json("law.json", found.law.to_dict())
        return decision

    def _by_probes(self) -> Decision:
        config, situation = self.config, self.situation
        asked = [*self.names, *([CHECK] if config.probe.check else [])]
        self.progress.decision_started(situation.index, situation.step, asked, self.trials)
        began = time.monotonic()
        if config.proposal.law == "auto":
            self.counting = Background(self._count)
        model = load_weights(config, self.prepared, situation.model)
        base = snapshot(model)
        base_ref = self.base = ray.put(base)
        found = self._probes(base_ref)
        self.lost, self.check, probes = found.lost, found.check, found.probes
        if not can_do_without(self.lost, self.names, situation.current):
            return self._undecided(found, base.nbytes, began)
        if self.lost:
            held = {name: situation.current[name] for name in self.lost}
            probes = [holding(probe, held) for probe in probes]
        task, factors = put_task(
            config, self.prepared, model, base_ref, probes, self.domains, self.size.sequences
        )
        components = task.components
        space = load_space(situation.space, components, config.data.domains)
        self.times["probes"] = time.monotonic() - began
        began = time.monotonic()  # waiting for what is still to be counted is a part of the search
        question = self._question(components, len(probes[0].losses) or None)
        log = RowLog(self.place, self.domains, self.sets)
        best = _Best(log.rows)
        with (
            waiting(of_evaluator(config), self.progress.message),
            searching(
                task,
                space,
                config.search.but(trials=self.trials),
                log,
                seed=decision_seed(config.seed, situation.index),
                start=self._warm_starts(components),
                on_row=lambda row: self.progress.trial(row, best.update(row), self.trials),
                slopes=self.slopes,
                retries=config.cluster.max_retries,
            ) as search,
        ):
            rows = search.candidates()
            answer = fit_decision(rows, question)
            checked = None if answer.weights is None else search.check(answer.weights)
        log.sort()
        self.times["search"] = time.monotonic() - began
        decision = conclude(
            rows, checked, answer, question,
            index=situation.index, step=situation.step, stage=situation.stage,
        )  # fmt: skip
        trained = [*probes, *([self.check] if self.check else [])]
        check = None if self.check is None else {"data": self.check.data, "measured": self.check.measured}
        decision = with_health(
            decision,
            examine(decision, rows, question.aim.weights_at(rows[0].losses), check),
            verify=config.proposal.verify and not question.counts,  # else doubt is in the choice already
        )
        decision.details.update(
            components={name: probe.data for name, probe in zip(components.names, probes, strict=True)},
            probes={
                p.name: {"tokens": p.tokens, "flops": p.flops, "seconds": p.seconds, "losses": p.losses}
                for p in trained
            },
            weights=answer.weights.tolist() if answer.weights is not None else None,
            cost={
                "probes": _probe_cost(found.costs(), base.nbytes),
                "search": _passes([*rows, *([checked] if checked else []), *self.asked])
                | {"bytes": float(factors.nbytes)},
                "fit": {"seconds": answer.seconds},
            },
            gradients=self.slopes,
            lost=self.lost,
            **self._circumstances(question),
        )
        if answer.law is not None:
            self.place.write_json("law.json", answer.law.to_dict())
        return decision

    def _circumstances(self, question: DecisionInputs) -> dict[str, Any]:
        """What decision.json says of every decision that was made."""
        situation = self.situation
        return {
            "size": self.size.words,
            "wall_seconds": self.times,
            "objective": self.config.objective(),
            "bounds": {"lower": question.lower, "upper": question.upper},
            "effective_step": situation.step if situation.effective is None else situation.effective,
        }

    def _probes(self, base: Any) -> Trained:
        return Probing(
            self.config, self.prepared, self.place, self.progress,
            chosen=self.chosen, probe=self.probe,
            index=self.situation.index, sequences=self.size.sequences,
        ).train(base)  # fmt: skip

    def _undecided(self, found: Trained, base_bytes: int, began: float) -> Decision:
        situation = self.situation
        return undecided(
            self.lost, situation.current, index=situation.index, step=situation.step, stage=situation.stage,
            details={
                "cost": {"probes": _probe_cost(found.costs(), base_bytes)},
                "wall_seconds": {"probes": time.monotonic() - began},
                "effective_step": situation.step if situation.effective is None else situation.effective,
            },
        )  # fmt: skip

    def _question(self, components: Components, probe_steps: int | None) -> DecisionInputs:
        config, situation = self.config, self.situation
        batch = self.probe.batch_size or config.train.batch_size
        tokens = {name: self.prepared.domains[name].train_tokens for name in self.domains}
        sources = {name: config.data.domains[name] for name in self.domains}
        caps = share_caps(
            tokens,
            {name: source.max_epochs for name, source in sources.items()},
            situation.tokens_used,
            situation.tokens_left,
        )
        upper = {name: min(source.max_share, caps[name]) for name, source in sources.items()}
        upper.update({name: min(upper[name], situation.current[name]) for name in self.lost})
        # A share below what every probe saw cannot be simulated, so it could not be checked.
        floor = components.data.min(axis=0)
        lower = {
            name: min(max(sources[name].min_share, float(least)), upper[name])
            for name, least in zip(self.domains, floor, strict=True)
        }
        return DecisionInputs(
            components=components,
            sets=self.sets,
            objective=config.objective_of(self.prepared.bytes_per_token),
            current=situation.current,
            prior=prior_mixture(config.proposal.prior, situation.current, tokens),
            lower=lower,
            upper=upper,
            settings=config.proposal,
            seed=decision_seed(config.seed, situation.index),
            old=self.old,
            steps=situation.tokens_left / (config.train.batch_size * self.prepared.seq_len),
            probe_steps=None if probe_steps is None else probe_steps * batch / config.train.batch_size,
            known=self._known() if config.proposal.law == "auto" else None,
            free=self._free(tokens),
            limits=config.limits(),
            now=self._now(),
            before=self._before(),
        )

    def _now(self) -> dict[str, float]:
        """The main run's own evaluation at the decision; empty where it made none."""
        here = [one for one in self.situation.evaluations if one.step == self.situation.step]
        return {name: here[-1].losses[name] for name in self.sets} if here else {}

    def _measured(self) -> dict[str, float]:
        """Each set's loss now: by what the model was asked, else measured within the budget."""
        told = self.asked[0].targets if self.asked else {}
        if told.keys() >= set(self.sets):
            return {name: float(told[name].mean()) for name in self.sets}
        self.asked.append(measure_now(self.config, self.prepared, self._weights(), self.size.sequences))
        return self.asked[-1].losses

    def _before(self) -> Mixture | None:
        """What the weights were trained on before the stage, where all of that is in the stage too."""
        old = self.situation.old
        if old is None or any(share > 0 and name not in self.domains for name, share in old.items()):
            return None
        return old.over(self.domains)

    def _data(self) -> DataLeft:
        situation = self.situation
        return DataLeft(
            situation.tokens_left,
            np.array([situation.tokens_used.get(name, 0.0) for name in self.domains]),
            np.array([float(self.prepared.domains[name].train_tokens) for name in self.domains]),
        )

    def _texts(self, most: int | None = None) -> dict[str, Held]:
        held = {"reported": self.config.evaluation.sequences, "searched": self.config.search.sequences}
        return texts_for(self.prepared, self.sets, **held, most=most)

    def _count(self) -> dict[str, Counts]:
        return counts_for(self.prepared, self._texts(), self.situation.current, self._data())

    def _known(self) -> Known:
        config, situation, data = self.config, self.situation, self._data()
        counts = self.counting.result() if self.counting else self._count()
        if counts and self.size.asked and self._knows_more(counts, data):
            texts = self._texts(self.size.asked)
            told = measure_in_task(config, self._weights(), {**texts}, targets=True)
            self.asked.append(told)
            counts = counts_for(self.prepared, texts, situation.current, data, told.targets)
        now, read = self._now(), sum(situation.tokens_used.values())
        if counts and now and not pretrained(config) and data.used.sum() > 0.99 * read:  # of nothing else
            unread = [name for name in self.domains if not situation.tokens_used.get(name)]
            counts = smoothed(counts, now, situation.current.array(), data, unread)
        return Known(counts, data)

    def _weights(self) -> ray.ObjectRef:
        """The decision's weights in the object store, put there once."""
        if self.base is None:
            self.base = ray.put(snapshot(load_weights(self.config, self.prepared, self.situation.model)))
        return self.base

    def _knows_more(self, counts: Mapping[str, Counts], data: DataLeft) -> bool:
        """Whether the model loses less now than counting says it would after the stage: then it is asked first."""
        now = self._now()
        if not now:
            return pretrained(self.config)
        weights = self.config.objective()
        current = self.situation.current.array()[None]
        ahead = {name: float(one.loss(current, data)[0]) - now[name] for name, one in counts.items()}
        return sum(max(weights.get(name, 0.0), 1e-9) * more for name, more in ahead.items()) > 0

    def _free(self, tokens: Mapping[str, float]) -> dict[str, Mixture]:
        """Mixtures that cost nothing to find. Not an earlier decision's: held to that, each would go further."""
        rules = {
            "uniform": Mixture.uniform(self.domains),
            "proportional": Mixture.proportional(tokens),
            "temperature": Mixture({name: count**0.5 for name, count in tokens.items()}),
        }
        first = self.situation.first or self.situation.current
        return rules if first in rules.values() else {"stage's first": first, **rules}

    def _warm_starts(self, components: Components) -> list[np.ndarray]:
        """Weights of the mixture in force, then of the proportional and the uniform mixture, each only once."""
        tokens = {name: float(self.prepared.domains[name].train_tokens) for name in self.domains}
        mixtures = [self.situation.current, Mixture.proportional(tokens), Mixture.uniform(self.domains)]
        starts: list[np.ndarray] = []
        for mixture in mixtures:
            weights = components.weights_for(mixture)
            if all(np.abs(weights - other).max() > 1e-3 for other in starts):
                starts.append(weights)
        return starts


class _Best:
    """The best candidate so far."""

    def __init__(self, rows: Sequence[TrialRow]) -> None:
        self.row: TrialRow | None = None
        for row in rows:
            self.update(row)

    def update(self, row: TrialRow) -> TrialRow | None:
        if row.status == "ok" and (self.row is None or row.objective < self.row.objective):
            self.row = row
        return self.row


def _passes(rows: Sequence[TrialRow | Measured]) -> dict[str, float]:
    return {
        "tokens": sum(row.tokens for row in rows),
        "flops": sum(row.flops for row in rows),
        "seconds": sum(row.seconds for row in rows),
    }


def _probe_cost(probes: Sequence[Probe], base_bytes: int) -> dict[str, float]:
    return {
        "tokens": sum(p.tokens for p in probes),
        "flops": sum(p.flops for p in probes),
        "seconds": sum(p.seconds for p in probes),
        "bytes": float(base_bytes),
    }
