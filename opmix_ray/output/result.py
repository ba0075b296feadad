"""What came out of a run and what it cost (result.json), every mixture (mixture.json), and the loss of every domain.

curves.losses()        # (B, D) nats per token, B blocks of steps
curves.steps           # (B,) the global step at which each block ends
DomainCurves.from_dict(curves.to_dict())
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from opmix_ray.config import RunConfig
from opmix_ray.config.objective import bytes_per_token_of
from opmix_ray.output.ledger import Ledger
from opmix_ray.output.state import MIXTURE, RunState
from opmix_ray.storage import Storage

if TYPE_CHECKING:
    from opmix_ray.data.prepare import Prepared


def make_result(
    config: RunConfig,
    state: RunState,
    rows: list[dict[str, Any]],
    storage: Storage,
    tokens: dict[str, int],
    seq_len: int,
) -> dict[str, Any]:
    """Collect a run's result.

    Args:
        config: the run.
        state: where it stands.
        rows: of metrics.jsonl.
        storage: its output.
        tokens: training tokens there are, by domain.
        seq_len: tokens in a sequence.

    Returns:
        Losses in nats per token, perplexities as their exponentials, accuracies and their rates of wrong answers
        among the losses; means over sets of one kind, None where there is none; costs in tokens, FLOPs, seconds, bytes.
        The last evaluation is of the finished model; `kept` is the step of each stage's weights (`train.keep: best`).
    """
    ledger = Ledger(state.ledger)
    delivered: dict[str, int] = next(
        (row["delivered"] for row in reversed(rows) if row["kind"] == "train"), {}
    )
    begun = {name: count for name, count in state.begun.items() if name in delivered}
    decisions = [
        storage.read_json(f"decisions/{name}/decision.json")
        for name in storage.names("decisions")
        if storage.exists(f"decisions/{name}/decision.json")
    ]
    return {
        "name": config.name,
        "versions": {
            package: version(package)
            for package in ("opmix_ray", "ray", "torch", "transformers", "peft", "optuna")
        },
        "seed": config.seed,
        "objective": config.objective(),
        "steps": state.step,
        "kept": kept_steps(rows),
        "domains": list(config.data.domains),
        "initial_mixture": state.mixtures[0]["mixture"] if state.mixtures else {},
        "final_mixture": state.mixture,
        "mixtures": state.mixtures,
        "evaluations": [_evaluation(row, config) for row in rows if row["kind"] == "evaluation"],
        "decisions": [
            {
                "index": d["index"],
                "step": d["step"],
                "trials": d["trials"],
                "proposal": d["proposal"],
                "kept": d["kept"],
                "reason": d["reason"],
                "failed": not d["usable"]
                and not d["law_name"]
                and bool(d["trials"] or d["details"].get("lost")),
                "gain": d["gain"],
                "law": d["law"],
            }
            for d in decisions
        ],
        "delivered": {
            name: {
                "sequences": delivered.get(name, 0) - begun.get(name, 0),
                "tokens": (delivered.get(name, 0) - begun.get(name, 0)) * seq_len,
                "epochs": delivered.get(name, 0) * seq_len / count if count else 0.0,
            }
            for name, count in tokens.items()
        },
        "ledger": {**ledger.to_dict(), "overhead": ledger.overhead()},
    }


def kept_steps(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Stage -> step whose weights it ended with, where that is the best and not the last one.

    Args:
        rows: of metrics.jsonl.
    """
    return {row["stage"]: row["kept"] for row in rows if "kept" in row}


def kept_words(kept: Mapping[str, int]) -> str:
    """`step 40 in words, step 180 in letters`."""
    return ", ".join(f"step {step:,} in {stage}" for stage, step in kept.items())


def perplexity_of(row: Mapping[str, Any], objective: Mapping[str, float]) -> float:
    """The perplexity of the targets: e to the weighted mean loss of the objective's sets of text; NaN without any.

    Args:
        row: an evaluation, from metrics.jsonl or result.json.
        objective: weight per set; where it weighs no set of text, every one counts the same.
    """
    losses, text = row.get("losses") or {}, row.get("perplexity") or {}
    weights = {
        name: weight for name, weight in objective.items() if weight and name in text and name in losses
    }
    weights = weights or {name: 1.0 for name in text if name in losses}
    if not weights:
        return math.nan
    mean = sum(weight * losses[name] for name, weight in weights.items()) / sum(weights.values())
    return math.exp(min(mean, 700.0))


def perplexity_change(nats: float) -> float:
    """What a change of the mean loss does to the perplexity, as a fraction: -.05 nats are -4.9 %."""
    return math.expm1(min(nats, 700.0))


def _evaluation(row: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    losses, perplexity = row["losses"], row["perplexity"]
    return {
        "step": row["step"],
        "losses": losses,
        "perplexity": perplexity,
        "bits_per_byte": row["bits_per_byte"],
        "accuracy": row.get("accuracy", {}),
        "mean_loss": _mean([loss for name, loss in losses.items() if name in perplexity]),
        "mean_perplexity": _mean(list(perplexity.values())),
        "mean_accuracy": _mean(list(row.get("accuracy", {}).values())),
        "objective": config.objective_of(bytes_per_token_of(row)).at(losses),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_mixture(
    storage: Storage, mixture: Mapping[str, float], history: Sequence[Mapping[str, Any]], prepared: Prepared
) -> None:
    """Write mixture.json.

    Args:
        storage: the run's output.
        mixture: share of training tokens by domain.
        history: every mixture with the step it began at, its stage, and why.
        prepared: the data; training documents and the tokens that these are go along, so that shares of tokens can
            become shares of documents.
    """
    counted = {
        name: {"documents": domain.train_documents, "tokens": domain.train_tokens}
        for name, domain in prepared.domains.items()
    }
    storage.write_json(
        MIXTURE, {"mixture": dict(mixture), "history": [dict(entry) for entry in history], "domains": counted}
    )


MOST_BLOCKS, LEAST_BLOCKS = 200, 20  # of a stage
MOST_VALUES = 20_000  # blocks times domains, so that a checkpoint stays small where domains are many


def block_length(steps: int, domains: int) -> int:
    """Steps in one block of a stage, by rule: 200 blocks at most, and fewer where there are more than 100 domains.

    Args:
        steps: of the stage.
        domains: of the stage.
    """
    blocks = min(MOST_BLOCKS, max(LEAST_BLOCKS, MOST_VALUES // max(1, domains)))
    return -(-steps // blocks)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation sets, measured in the main run.

    Args:
        step: global step.
        losses: nats per token by set, or the rate of wrong answers.
    """

    step: int
    losses: dict[str, float]


@dataclass(frozen=True, eq=False)
class DomainCurves:
    """Sums over blocks of steps, one after the other without a gap.

    Args:
        domains: D names.
        start: global step at which the first block begins.
        steps: (B,) global step at which each block ends; the next one begins there.
        nats: (B, D) summed training loss.
        tokens: (B, D) target tokens.
    """

    domains: tuple[str, ...]
    start: int
    steps: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray

    def losses(self) -> np.ndarray:
        """Mean loss in nats per token, (B, D); NaN where a block has no token of a domain."""
        return np.divide(self.nats, self.tokens, out=np.full(self.nats.shape, np.nan), where=self.tokens > 0)

    def then(self, later: DomainCurves) -> DomainCurves:
        """These blocks and those of a later segment, over the domains of both."""
        domains = tuple(dict.fromkeys([*self.domains, *later.domains]))
        parts = [part.over(domains) for part in (self, later)]
        return DomainCurves(
            domains=domains,
            start=self.start,
            steps=np.concatenate([part.steps for part in parts]),
            nats=np.concatenate([part.nats for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
        )

    def over(self, domains: tuple[str, ...]) -> DomainCurves:
        """The same over other domains, in their order; what was not read has no tokens."""
        place = {name: i for i, name in enumerate(self.domains)}
        known = [(i, place[name]) for i, name in enumerate(domains) if name in place]
        to, of = ([pair[k] for pair in known] for k in (0, 1))
        nats, tokens = (
            np.zeros((len(self.steps), len(domains)), kept.dtype) for kept in (self.nats, self.tokens)
        )
        nats[:, to], tokens[:, to] = self.nats[:, of], self.tokens[:, of]
        return DomainCurves(domains, self.start, self.steps, nats, tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "domains": list(self.domains),
            "start": self.start,
            "steps": self.steps.tolist(),
            "nats": self.nats.tolist(),
            "tokens": self.tokens.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DomainCurves:
        """The inverse of `to_dict`."""
        shape = len(values["steps"]), len(values["domains"])
        return cls(
            domains=tuple(values["domains"]),
            start=int(values["start"]),
            steps=np.array(values["steps"], dtype=np.int64),
            nats=np.array(values["nats"], dtype=np.float64).reshape(shape),
            tokens=np.array(values["tokens"], dtype=np.int64).reshape(shape),
        )
