"""A swarm of small models on sampled mixtures, a law over their losses, and the mixture it proposes.

RegMix (Liu et al. 2024, arXiv 2407.01492) draws mixtures from a Dirichlet around the tokens' shares with a varying
concentration, trains a small model on each, regresses their losses and takes the best predicted mixture; olmix
does the same with a log-linear law and KL to the prior. Here the mixtures are those of `opmix design`, which tell more
than as many drawn at random. The mixture is then used for the whole stage.
"""

from __future__ import annotations

from opmix_ray.config import RunConfig
from opmix_ray.decision.rule import Decision
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.base import Costs, Planned, Strategy
from opmix_ray.strategies.design import designed
from opmix_ray.strategies.making import Making
from opmix_ray.strategies.proxies import run_tasks, train_proxy


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
