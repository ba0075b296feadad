"""olmix: `ratios.csv` and `metrics.csv` of the decision with a `fit.yaml` around them, and the mixture in its format.

`olmix fit --config fit.yaml --output-dir OUT` then fits the same trials (`FitConfig` in olmix/fit/config.py).
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from opmix_ray.exchange.entries import SourceWeight, as_weight
from opmix_ray.exchange.handover import Handover, Unit, Written, comment, number

FIT, RATIOS, METRICS, OPTIMAL = "fit.yaml", "ratios.csv", "metrics.csv", "mixture_optimal.json"


def write_olmix(handover: Handover, unit: Unit) -> Written:
    """The mixture as olmix writes one, and a fit's input where there was a decision."""
    mixture = [{"domain": part.name, "weight": number(part.share)} for part in handover.parts]
    contents = {OPTIMAL: json.dumps(mixture, indent=2, ensure_ascii=False) + "\n"}
    counted = all(part.tokens for part in handover.parts)
    if handover.sweep is None or not counted:
        why = "no decision was made" if handover.sweep is None else "tokens were not counted"
        return Written(contents, [f"{why}, so there is no {FIT} for `olmix fit`"])
    ratios, metrics = handover.sweep
    base = f"{handover.place}/" if handover.place else ""
    columns = metrics.partition("\n")[0].split(",")[1:]
    tree: dict[str, Any] = {
        "swarm": {"ratios": f"{base}{RATIOS}", "metrics": f"{base}{METRICS}"},
        "priors": {"token_counts": {part.name: part.tokens for part in handover.parts}},
        "eval": {"type": "offline", "tasks": {"held_out": columns}},
        "regression": {"type": "log_linear"},
        "proposer": {"type": "exact", "kl_reg": handover.kl},
    }
    caps = [
        part.source.max_epochs
        for part in handover.parts
        if part.source is not None and part.source.max_epochs
    ]
    if caps and handover.planned_tokens:
        tree["constraints"] = {
            "enabled": True,
            "target_tokens": handover.planned_tokens,
            "repetition_factor": min(caps),
        }
    head = [
        *handover.words("tokens", "ratios")[:1],
        "Ratios and token counts are of tokens; metrics are nats per token.",
    ]
    text = comment(head) + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return Written(contents | {FIT: text, RATIOS: ratios, METRICS: metrics})


def read_olmix(tree: Any) -> list[SourceWeight] | None:
    """Entries of olmix's optimal weights, or its priors (token counts); None where there are neither.

    Raises:
        ValueError: a weight is not a number.
    """
    if (
        isinstance(tree, list)
        and tree
        and all(isinstance(e, dict) and {"domain", "weight"} <= set(e) for e in tree)
    ):
        return [SourceWeight(str(entry["domain"]), (), as_weight(entry["weight"])) for entry in tree]
    priors = tree.get("priors", tree) if isinstance(tree, dict) else None
    counts = priors.get("token_counts") if isinstance(priors, dict) else None
    if not isinstance(counts, dict):
        return None
    return [SourceWeight(str(name), (), as_weight(count)) for name, count in counts.items()]
