"""result.json: what came out and what it cost; and mixture.json: the mixture in force, every one before it, and what
other trainers need to know of the domains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opmix_ray.config import RunConfig
from opmix_ray.config.objective import bytes_per_token_of
from opmix_ray.output.ledger import Ledger
from opmix_ray.output.state import MIXTURE, RunState
from opmix_ray.storage import Storage

if TYPE_CHECKING:  # torch, which `opmix status` does without
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
