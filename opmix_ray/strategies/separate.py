"""Mixtures by a law over separate models: small ones on sampled mixtures, or merged experts.

A swarm: RegMix (Liu et al. 2024, arXiv 2407.01492) draws mixtures from a Dirichlet around the tokens' shares with a
varying concentration, trains a small model on each, regresses their losses and takes the best predicted mixture; olmix
does the same with a log-linear law and KL to the prior. Here the mixtures are those of `opmix design`, which tell more
than as many drawn at random. The mixture is then used for the whole stage.

MergeMix: one expert per domain by full weights, merged as proxies of mixtures (Wang et al. 2026, arXiv 2601.17858).
All experts start from the weights in force and are trained for a short time at a constant learning rate, so that
they stay in one basin. A mixture `a` is then scored on `theta + sum_d a_d * (theta_d - theta)`, without training; a
law over the scores proposes the mixture.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from opmix_ray.config import ModelConfig, ProbeConfig, RunConfig
from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import HeldOut, tokens_of
from opmix_ray.decision.rule import Decision
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import forward_flops
from opmix_ray.model.base import SPEC, BaseModel, load_base, save_base
from opmix_ray.model.interpolate import view_of
from opmix_ray.model.loss import evaluate_sets
from opmix_ray.node import use_own_threads
from opmix_ray.storage import read_record
from opmix_ray.strategies.base import Costs, Planned, Strategy
from opmix_ray.strategies.design import CONCENTRATION, designed, sample_mixtures
from opmix_ray.strategies.making import Making
from opmix_ray.strategies.proxies import CONSTANT, run_tasks, train_proxy, trainable_copy


class Swarm(Strategy):
    """Small models on sampled mixtures, a law, a proposal; the whole stage profits."""

    decides = "before the stage"

    def make(self, making: Making) -> Decision:
        """Train what is missing of the swarm, fit, propose."""
        settings = making.config.strategies.swarm
        prior = Mixture.proportional(making.tokens)
        mixtures = designed(
            settings.proxies, prior, lower=making.lower, upper=making.caps, seed=making.seed()
        )
        names = {f"{number:03d}": mixture for number, mixture in enumerate(mixtures)}
        log = making.log()
        done = {row.run for row in log.rows}
        base = making.start_weights() if len(done) < len(names) else None
        tasks = [
            (making.proxy(name, mixture, settings.proxy, evaluate=True), (base, making.sets))
            for name, mixture in names.items()
            if name not in done
        ]
        for proxy in run_tasks(train_proxy, tasks, making.progress.probe_started):
            cost = {"tokens": proxy.tokens, "flops": proxy.flops, "seconds": proxy.seconds}
            log.add(making.row(proxy.name, names[proxy.name].shares, proxy.losses, **cost))
            making.progress.message(f"proxy {proxy.name}: objective {log.rows[-1].objective:.4f}")
        log.sort()
        for row in log.rows:
            making.add("probes", row.tokens, row.flops, row.seconds)
        return making.by_law(log.rows, "proportional", "proxy models")

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        own = config.strategies.swarm
        train, forward = costs.proxy(own.proxy)
        return own.proxies * (train + costs.seen * forward)


@dataclass(frozen=True)
class MergeScore:
    """Losses of one merged model, and what they cost."""

    losses: dict[str, float]
    tokens: int
    flops: float
    seconds: float


class Merger:
    """One process's model at any merging weights.

    Args:
        base: the weights in force.
        experts: D models of the same architecture.
        device: where to compute.
    """

    def __init__(
        self, base: BaseModel, experts: Sequence[BaseModel], device: torch.device | str = "cpu"
    ) -> None:
        self.model = trainable_copy(base, device)
        self._base, self._experts = base, list(experts)

    @torch.no_grad()
    def set(self, weights: np.ndarray) -> None:
        """Move the model to `base + sum_d weights_d * (expert_d - base)`; weights of shape (D,)."""
        for name, parameter in self.model.named_parameters():
            bits = name in self._base.bfloat16
            base = view_of(self._base.weights[name], bits).float()
            total = base.clone()
            for weight, expert in zip(weights, self._experts, strict=True):
                total += float(weight) * (view_of(expert.weights[name], bits).float() - base)
            parameter.copy_(total)


def score_merges(
    candidates: Sequence[np.ndarray],
    sets: HeldOut,
    batch_size: int,
    length: int,
    model: ModelConfig,
    resources: ProbeConfig,
    base: BaseModel,
    *experts: BaseModel,
) -> list[MergeScore]:
    """Score merged models one after the other.

    Args:
        candidates: merging weights (D,).
        sets: held-out sequences.
        batch_size: sequences in a forward pass.
        length: tokens in a sequence.
        model: how to compute.
        resources: whether on a GPU.
        base, experts: see `Merger`.
    """
    use_own_threads()
    device = "cuda" if resources.gpus and torch.cuda.is_available() else "cpu"
    merger = Merger(base, experts, device)
    tokens = sum(map(tokens_of, sets.values()))
    flops = forward_flops(merger.model, tokens, length)
    found = []
    for weights in candidates:
        began = time.monotonic()
        merger.set(weights)
        losses = evaluate_sets(merger.model, sets, batch_size, autocast=model.autocast)
        means = {name: loss.mean for name, loss in losses.items()}
        found.append(MergeScore(means, tokens, flops, time.monotonic() - began))
    return found


class MergeMix(Strategy):
    """One expert per domain, merged as proxies of mixtures."""

    def make(self, making: Making) -> Decision:
        """Train the experts that are missing, score merges, fit, propose."""
        settings = making.config.strategies.mergemix
        _train_experts(making)
        prior = Mixture.uniform(making.domains)
        corners = [Mixture({d: float(d == name) for d in making.domains}) for name in making.domains]
        drawn = sample_mixtures(prior, settings.trials, CONCENTRATION, making.seed())
        mixtures = [making.situation.current, *corners, *drawn][: settings.trials]
        names = {f"{number:03d}": mixture for number, mixture in enumerate(mixtures)}
        log = making.log()
        done = {row.run for row in log.rows}
        missing = [name for name in names if name not in done]
        if missing:
            for name, score in zip(missing, _score(making, [names[n] for n in missing]), strict=True):
                cost = {"tokens": score.tokens, "flops": score.flops, "seconds": score.seconds}
                log.add(making.row(name, names[name].shares, score.losses, **cost))
        log.sort()
        for row in log.rows:
            making.add("search", row.tokens, row.flops, row.seconds)
        return making.by_law(log.rows, "current", "merged models")

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        own = config.strategies.mergemix
        tokens = own.steps * (own.batch_size or config.train.batch_size) * costs.length
        return len(planned.domains) * tokens * costs.train + own.trials * costs.look


def _train_experts(making: Making) -> None:
    settings, place = making.config.strategies.mergemix, making.place
    proxy = ProxyConfig(
        steps=settings.steps, batch_size=settings.batch_size, learning_rate_ratio=settings.learning_rate_ratio
    )
    missing = [name for name in making.domains if not place.exists(f"experts/{name}/{SPEC}")]
    if missing:
        base = ray.put(making.base)
        tasks = [
            (
                making.proxy(
                    name, Mixture({name: 1.0}), proxy, model=making.config.model, schedule=CONSTANT, keep=True
                ),
                (base, making.sets),
            )
            for name in missing
        ]
        for expert in run_tasks(train_proxy, tasks, making.progress.probe_started):
            assert expert.model is not None
            cost = {"tokens": expert.tokens, "flops": expert.flops, "seconds": expert.seconds}
            place.write_json(f"costs/{expert.name}.json", cost)
            with tempfile.TemporaryDirectory() as directory:
                save_base(expert.model, directory)
                place.upload(directory, f"experts/{expert.name}")
            making.progress.message(f"expert {expert.name}: {expert.seconds:.1f} s")
    for name in making.domains:
        cost = read_record(place, f"costs/{name}.json", dict[str, float])
        making.add("probes", cost["tokens"], cost["flops"], cost["seconds"])


def _score(making: Making, mixtures: Sequence[Mapping[str, float]]) -> list[MergeScore]:
    """Score mixtures on as many processes as a search has evaluators, in their order."""
    config = making.config
    experts: list[Any] = []
    for name in making.domains:
        with making.place.local(f"experts/{name}") as directory:
            experts.append(ray.put(load_base(directory)))
    base = ray.put(making.base)
    candidates = [np.array([mixture[name] for name in making.domains]) for mixture in mixtures]
    count = min(config.search.evaluators, len(candidates))
    parts = [candidates[start::count] for start in range(count)]
    remote = ray.remote(score_merges).options(
        num_cpus=config.search.cpus, num_gpus=config.search.gpus, max_retries=config.cluster.max_retries
    )
    size, length = config.evaluation.batch_size, making.prepared.seq_len
    waiting = [
        remote.remote(part, making.sets, size, length, config.model, config.probe, base, *experts)
        for part in parts
    ]
    scored = ray.get(waiting)
    return [scored[i % count][i // count] for i in range(len(candidates))]
