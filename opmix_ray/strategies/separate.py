"""Mixtures by separate models: a law over small ones or over merged experts, and domain weights from a proxy.

A swarm: RegMix (Liu et al. 2024, arXiv 2407.01492) draws mixtures from a Dirichlet around the tokens' shares with a
varying concentration, trains a small model on each, regresses their losses and takes the best predicted mixture; olmix
does the same with a log-linear law and KL to the prior. Here the mixtures are those of `opmix design`, which tell more
than as many drawn at random. The mixture is then used for the whole stage.

MergeMix: one expert per domain by full weights, merged as proxies of mixtures (Wang et al. 2026, arXiv 2601.17858).
All experts start from the weights in force and are trained for a short time at a constant learning rate, so that
they stay in one basin. A mixture `a` is then scored on `theta + sum_d a_d * (theta_d - theta)`, without training; a
law over the scores proposes the mixture.

DoReMi: domain weights from group DRO on a proxy model against a reference (Xie et al. 2023, arXiv 2305.10429),
algorithm 1. A reference model is trained on the reference mixture. A proxy of the same size then sees every domain
equally often and minimises `sum_d alpha_d * (loss_d - reference loss_d)`, while

    lambda_d = mean over the tokens of domain d of max(loss of the proxy - loss of the reference, 0)
    alpha    = (1 - c) * normalised(alpha * exp(eta * lambda)) + c / D

The mixture is the mean of alpha over the steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from opmix_ray.model.base import SPEC, BaseModel, load_base, model_from, save_base
from opmix_ray.model.interpolate import view_of
from opmix_ray.model.loss import compute_context, evaluate_sets, token_losses
from opmix_ray.node import use_own_threads
from opmix_ray.storage import read_record
from opmix_ray.strategies.base import Costs, Planned, Strategy
from opmix_ray.strategies.design import CONCENTRATION, designed, sample_mixtures
from opmix_ray.strategies.making import Making
from opmix_ray.strategies.proxies import (
    CONSTANT,
    Proxy,
    ProxyRun,
    ProxyTask,
    run_tasks,
    train_proxy,
    trainable_copy,
)


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

    decides = "once trained"

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


REFERENCE, PROXY = "reference", "proxy"
SMOOTHING = 1e-3  # share of the uniform mixture in the weights: the paper's c, algorithm 1


def next_weights(alpha: np.ndarray, excess: np.ndarray, eta: float) -> np.ndarray:
    """One step of the domain weights: exponentiated gradient ascent on the excess losses, then smoothing.

    Args:
        alpha: (D,) weights that sum to 1.
        excess: (D,) mean excess loss, nats per token, at least 0.
        eta: step size.
    """
    grown = alpha * np.exp(eta * (excess - excess.max()))
    return (1 - SMOOTHING) * grown / grown.sum() + SMOOTHING / len(alpha)


def train_dro(
    task: ProxyTask, base: BaseModel | None, sets: HeldOut, reference: BaseModel, eta: float
) -> Proxy:
    """Train the proxy; `found["mixture"]` is the mean of its domain weights.

    Args:
        task: on the uniform mixture.
        base: weights to start from; None: fresh ones.
        sets: held-out sequences.
        reference: the trained reference model.
        eta: see `next_weights`.
    """
    began = time.monotonic()
    run = ProxyRun(task, base)
    other = model_from(reference, run.device)
    count = len(run.domains)
    alpha, total = np.full(count, 1 / count), np.zeros(count)
    for step, parts in enumerate(run.batches()):
        targets = np.zeros(count)
        for _, mask, domains in parts:
            np.add.at(targets, domains.cpu().numpy(), mask[:, 1:].sum(dim=1).cpu().numpy())
        excess = np.zeros(count)
        for ids, mask, domains in parts:  # the weights of a step come before its gradient
            ahead = _excess(run, other, ids, mask, domains, count)
            excess += ahead
        alpha = next_weights(alpha, excess / np.maximum(targets, 1), eta)
        total += alpha
        scale = torch.from_numpy(alpha / np.maximum(targets, 1)).to(run.device)
        for ids, mask, domains in parts:
            (run.nats(ids, mask) * scale[domains]).sum().backward()
        run.update(step)
    tokens, length = task.steps * task.batch_size * task.prepared.seq_len, task.prepared.seq_len
    found = {"mixture": dict(zip(run.domains, (total / task.steps).tolist(), strict=True))}
    # The reference and the first look at the excess: two forward passes over everything.
    side = forward_flops(other, tokens, length) + forward_flops(run.model, tokens, length)
    return run.finish(sets, time.monotonic() - began, found, side)


@torch.no_grad()
def _excess(run: ProxyRun, other: Any, ids: Any, mask: Any, domains: Any, count: int) -> np.ndarray:
    """Sum over tokens of max(proxy - reference, 0) by domain."""
    sums = torch.zeros(count, dtype=torch.float64, device=run.device)
    with compute_context(run.task.model.autocast, run.device):
        pairs = zip(token_losses(run.model, ids, mask), token_losses(other, ids, mask), strict=True)
        for (mine, rows), (theirs, _) in pairs:
            sums.index_add_(0, domains[rows], (mine - theirs).clamp_min(0).double())
    return sums.cpu().numpy()


@dataclass
class Cost:
    """Content of a proxy's file: what it cost and, of the one that weighs domains, what it found."""

    tokens: float
    flops: float
    seconds: float
    mixture: dict[str, float] = field(default_factory=dict)


class DoReMi(Strategy):
    """The mean domain weights of a proxy under group DRO; the whole stage profits."""

    decides = "before the stage"

    def make(self, making: Making) -> Decision:
        """Train reference and proxy, or what is missing of them."""
        settings, place = making.config.strategies.doremi, making.place
        start = making.start_weights()
        if not place.exists(f"{REFERENCE}/{SPEC}"):
            mixture = Mixture.proportional(making.tokens)
            task = making.proxy(REFERENCE, mixture, settings.proxy, keep=True)
            for proxy in run_tasks(
                train_proxy, [(task, (start, making.sets))], making.progress.probe_started
            ):
                _store(making, proxy)
        if not place.exists("proxy.json"):
            with place.local(REFERENCE) as directory:
                reference = ray.put(load_base(directory))
            task = making.proxy(PROXY, Mixture.uniform(making.domains), settings.proxy)
            arguments = (start, making.sets, reference, settings.eta)
            for proxy in run_tasks(train_dro, [(task, arguments)], making.progress.probe_started):
                place.write_json("proxy.json", _cost(proxy) | proxy.found)
        for name in (f"{REFERENCE}.json", "proxy.json"):
            cost = read_record(place, name, Cost)
            making.add("probes", cost.tokens, cost.flops, cost.seconds)
        found = read_record(place, "proxy.json", Cost).mixture
        return making.decision(Mixture(found), "the mean domain weights of the proxy under group DRO")

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        train, _ = costs.proxy(config.strategies.doremi.proxy)
        return 2 * train + 2 * train / 3  # two forward passes besides the training of both models


def _store(making: Making, proxy: Proxy) -> None:
    assert proxy.model is not None
    making.place.write_json(f"{proxy.name}.json", _cost(proxy))
    with tempfile.TemporaryDirectory() as directory:
        save_base(proxy.model, directory)
        making.place.upload(directory, proxy.name)


def _cost(proxy: Proxy) -> dict[str, Any]:
    return {"tokens": proxy.tokens, "flops": proxy.flops, "seconds": proxy.seconds}
