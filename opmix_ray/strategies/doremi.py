"""DoReMi: domain weights from group DRO on a proxy model against a reference (Xie et al. 2023, arXiv 2305.10429).

Algorithm 1. A reference model is trained on the reference mixture. A proxy of the same size then sees every domain
equally often and minimises `sum_d alpha_d * (loss_d - reference loss_d)`, while

    lambda_d = mean over the tokens of domain d of max(loss of the proxy - loss of the reference, 0)
    alpha    = (1 - c) * normalised(alpha * exp(eta * lambda)) + c / D

The mixture is the mean of alpha over the steps.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch

from opmix_ray.config import RunConfig
from opmix_ray.data.held_out import HeldOut
from opmix_ray.decision.rule import Decision
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import forward_flops
from opmix_ray.model.base import SPEC, BaseModel, load_base, model_from, save_base
from opmix_ray.model.loss import compute_context, token_losses
from opmix_ray.storage import read_record
from opmix_ray.strategies.base import Costs, Planned, Strategy
from opmix_ray.strategies.making import Making
from opmix_ray.strategies.proxies import Proxy, ProxyRun, ProxyTask, run_tasks, train_proxy

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
