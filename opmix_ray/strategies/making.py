"""What decisions by separate models share: where their files go, what they cost, and the step from rows to a mixture.

Every model is a line or a file on disk as soon as it is trained, so that a decision that was cut off goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import ray

from opmix_ray.config import ProposalConfig, RunConfig
from opmix_ray.config.strategy import ProxyConfig
from opmix_ray.data.held_out import search_sets
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.make import Situation, decision_seed
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import LEAST_ROWS, Decision, DecisionInputs, fit_decision, prior_mixture
from opmix_ray.decision.task import load_weights
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture, fit_to_caps, share_caps
from opmix_ray.model.base import BaseModel, snapshot
from opmix_ray.output.state import read_rows
from opmix_ray.storage import Storage
from opmix_ray.strategies.proxies import ProxyTask
from opmix_ray.trials.rows import RowLog, TrialRow
from opmix_ray.trials.space import Components

LAW, KL = "log-linear", 0.05  # of every strategy that fits a law on models of its own


@dataclass
class Making:
    """One decision in the making, with what strategies other than ours need for it.

    Args:
        config: the run.
        prepared: its data.
        place: the decision's directory.
        situation: when and where.
        progress: what a person sees.
        cost: spent so far, by purpose and unit.
        output: the run's; None: there is none.
    """

    config: RunConfig
    prepared: Prepared
    place: Storage
    situation: Situation
    progress: Progress
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    output: Storage | None = None

    @property
    def domains(self) -> list[str]:
        """Of the stage."""
        return self.situation.current.domains

    @property
    def tokens(self) -> dict[str, float]:
        """Training tokens of the stage's domains."""
        return {name: float(self.prepared.domains[name].train_tokens) for name in self.domains}

    def losses(self) -> dict[str, float]:
        """Loss of every held-out set at the last evaluation, nats per token; none before the first."""
        rows = [] if self.output is None else read_rows(self.output)
        return next((row["losses"] for row in reversed(rows) if row["kind"] == "evaluation"), {})

    @cached_property
    def caps(self) -> dict[str, float]:
        """Greatest share of each domain: its `max_share` and what repetition allows."""
        sources = {name: self.config.data.domains[name] for name in self.domains}
        epochs = {name: source.max_epochs for name, source in sources.items()}
        caps = share_caps(self.tokens, epochs, self.situation.tokens_used, self.situation.tokens_left)
        return {name: min(source.max_share, caps[name]) for name, source in sources.items()}

    @cached_property
    def base(self) -> BaseModel:
        """The weights in force."""
        return snapshot(load_weights(self.config, self.prepared, self.situation.model))

    @cached_property
    def sets(self) -> Any:
        """Reference of the held-out sequences that decisions may look at."""
        config = self.config
        evaluated, searched = config.evaluation.sequences, config.search.sequences
        return ray.put(search_sets(self.prepared, evaluated, searched, config.decided_on()))

    def seed(self, number: int = 0) -> int:
        """A seed of its own for every model of every decision."""
        return decision_seed(self.config.seed, self.situation.index, number)

    def add(self, purpose: str, tokens: float, flops: float, seconds: float) -> None:
        """Count a cost."""
        sums = self.cost.setdefault(purpose, {"tokens": 0.0, "flops": 0.0, "seconds": 0.0})
        for unit, amount in (("tokens", tokens), ("flops", flops), ("seconds", seconds)):
            sums[unit] += amount

    def proxy(self, name: str, mixture: Mixture, settings: ProxyConfig, **changes: Any) -> ProxyTask:
        """A model to train on a mixture; fresh and of the proxy's size where the model has a configuration."""
        config = self.config
        model = config.model
        if model.config is not None:
            model = model.but(config={**model.config, **(settings.model or {})})
        elif settings.model is not None:
            raise UserError(
                "a proxy of another size needs `model.config`", key=f"strategies.{config.strategy}.proxy.model",
                remedy="leave it out: proxies then start from the weights in force",
            )  # fmt: skip
        batch = settings.batch_size or config.train.batch_size
        fields: dict[str, Any] = {
            "name": name,
            "mixture": mixture.shares,
            "stream": f"{config.strategy}-{self.situation.index}",
            "steps": settings.steps,
            "batch_size": batch,
            "retries": config.cluster.max_retries,
            "micro_batch_size": min(batch, config.train.micro_batch_size or batch),
            "seed": self.seed(),
            "model": model,
            "optimizer": config.train.optimizer,
            "prepared": self.prepared,
            "resources": config.probe,
            "rate": settings.learning_rate_ratio,
            "schedule": config.train.schedule,
        }
        return ProxyTask(**(fields | changes))

    def start_weights(self) -> Any:
        """Reference of the weights that proxies start from; None: fresh ones."""
        return None if self.config.model.config is not None else ray.put(self.base)

    def log(self) -> RowLog:
        """The rows of the decision."""
        return RowLog(self.place, self.domains, self.config.decided_on())

    def row(
        self, name: str, mixture: Mapping[str, float], losses: Mapping[str, float], **cost: Any
    ) -> TrialRow:
        """A scored mixture."""
        objective = self.config.objective_of(self.prepared.bytes_per_token).at(losses)
        finite = math.isfinite(objective)
        return TrialRow(
            run=name, weights=dict(mixture), ratios=dict(mixture), losses=dict(losses), objective=objective,
            status="ok" if finite else "nan", **cost,
        )  # fmt: skip

    @property
    def lower(self) -> dict[str, float]:
        """Least share of each domain."""
        given = self.config.data.domains
        return {name: min(given[name].min_share, self.caps[name]) for name in self.domains}

    def by_law(self, rows: Sequence[TrialRow], prior: str, what: str) -> Decision:
        """Fit the log-linear law on scored mixtures and take the one it proposes.

        Args:
            rows: scored mixtures.
            prior: `current`, `proportional` or `uniform`.
            what: rows in words.
        """
        config, current = self.config, self.situation.current
        identity = Components(tuple(self.domains), tuple(self.domains), np.eye(len(self.domains)))
        settings = ProposalConfig(law=LAW, kl=KL)
        question = DecisionInputs(
            components=identity, sets=tuple(config.decided_on()),
            objective=config.objective_of(self.prepared.bytes_per_token), current=current,
            prior=prior_mixture(prior, current, self.tokens), lower=self.lower, upper=self.caps,
            settings=settings, seed=self.seed(),
        )  # fmt: skip
        found = fit_decision(rows, question)
        self.add("fit", 0.0, 0.0, found.seconds)
        if found.proposal is None or found.law is None:
            usable = sum(row.usable for row in rows)
            reason = f"only {usable} of {len(rows)} {what} gave a finite loss; a law needs {LEAST_ROWS}"
            return self.decision(current, reason, rows)
        self.place.write_json("law.json", found.law.to_dict())
        reason = f"the law of {len(rows)} {what} proposes it"
        decision = self.decision(
            found.proposal.mixture, reason, rows, found.law.name, dict(found.law.quality)
        )
        decision.details.update(found.promise())
        return decision

    def decision(
        self, mixture: Mixture, reason: str, rows: Sequence[TrialRow] = (), law_name: str = "",
        law: dict[str, Any] | None = None,
    ) -> Decision:  # fmt: skip
        """The decision for a mixture, moved inside the caps."""
        situation = self.situation
        allowed, _ = fit_to_caps(mixture, self.caps)
        return Decision(
            index=situation.index,
            step=situation.step,
            stage=situation.stage,
            kept="proposal" if allowed != situation.current else "old",
            reason=reason,
            trials=len(rows),
            usable=sum(row.usable for row in rows),
            current=situation.current.shares,
            proposal=allowed.shares,
            mixture=allowed.shares,
            law_name=law_name,
            law=law or {},
            details={"cost": self.cost, "strategy": self.config.strategy},
        )
