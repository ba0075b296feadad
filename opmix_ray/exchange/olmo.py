"""AI2's trainers. OLMo-core's `SourceMixtureList` names token files with target ratios, which are shares of tokens.

olmix takes `ratios.csv` and `metrics.csv` of a decision, a `fit.yaml` around them, and the mixture in its own format.
`olmix fit --config fit.yaml --output-dir OUT` then fits the same trials (`FitConfig` in olmix/fit/config.py).
"""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

from opmix_ray.exchange.handover import (
    Handover,
    Part,
    SourceWeight,
    Unit,
    Written,
    as_weight,
    comment,
    number,
    prefix,
    stem,
)
from opmix_ray.paths import is_uri

SOURCES = "source_mixture.yaml"


def write_olmo_core(handover: Handover, unit: Unit) -> Written:
    """`sources`, for `SourceMixtureList.from_yaml`.

    `max_repetition_ratio` is the cap of the configuration, else the passes that the planned tokens need.
    """
    sources, notes = [], []
    for part in handover.parts:
        paths, note = _paths(part)
        notes += [note] if note else []
        sources.append(
            {
                "source_name": part.name,
                "target_ratio": number(part.share),
                "paths": paths,
                "max_repetition_ratio": _repetition(part, handover.planned_tokens),
            }
        )
    head = handover.words("tokens", "target_ratio")
    if handover.planned_tokens:
        head.append(f"`max_repetition_ratio` is enough for {handover.planned_tokens:,} tokens.")
    text = comment([*head, *notes]) + yaml.safe_dump(
        {"sources": sources}, sort_keys=False, allow_unicode=True
    )
    return Written({SOURCES: text}, notes)


def _repetition(part: Part, planned: int | None) -> float:
    if part.source is not None and part.source.max_epochs is not None:
        return max(1.0, part.source.max_epochs)
    if not planned or not part.tokens:
        return 1.0
    return max(1.0, float(math.ceil(part.share * planned / part.tokens)))


def _paths(part: Part) -> tuple[list[str], str | None]:
    """OLMo-core takes files and globs with `*`, no directories; a raw `.bin` is the same to it as `.npy`."""
    paths = part.where()
    if part.paths:
        return paths, None
    if part.indexed:
        return [f"{prefix(path)}.bin" for path in paths], None
    if part.kind == "tokens" and part.source is not None and part.source.tokens_column is None:
        return [_glob(path) for path in paths], None
    place = f"{stem(paths[0])}/*.npy"
    return [place], (
        f"{part.name}: write its tokens to {place.removesuffix('/*.npy')} with `dolma tokens`, or name another place "
        f"with --path {part.name}=GLOB"
    )


def _glob(path: str) -> str:
    plain = path.partition("?")[0] if is_uri(path) else path
    return path if plain.endswith((".npy", ".bin")) else f"{path.rstrip('/')}/*.npy"


def read_olmo_core(tree: Any) -> list[SourceWeight] | None:
    """Entries of a source list, alone or below `source_list`; None where it is none.

    Raises:
        ValueError: a source lacks its name or ratio.
    """
    if isinstance(tree, dict) and isinstance(tree.get("source_list"), dict):
        tree = tree["source_list"]
    sources = tree.get("sources") if isinstance(tree, dict) else None
    if not isinstance(sources, list) or not any(isinstance(s, dict) and "source_name" in s for s in sources):
        return None
    if not all(
        isinstance(source, dict) and {"source_name", "target_ratio"} <= set(source) for source in sources
    ):
        raise ValueError("every source needs source_name and target_ratio")
    return [
        SourceWeight(
            str(s["source_name"]), tuple(map(str, s.get("paths") or ())), as_weight(s["target_ratio"])
        )
        for s in sources
    ]


FIT, RATIOS, METRICS, OPTIMAL = "fit.yaml", "ratios.csv", "metrics.csv", "mixture_optimal.json"


def write_olmix(handover: Handover, unit: Unit) -> Written:
    """The mixture as olmix writes one, and a fit's input where there was a decision."""
    mixture = [{"domain": part.name, "weight": number(part.share)} for part in handover.parts]
    contents = {OPTIMAL: json.dumps(mixture, indent=2, ensure_ascii=False) + "\n"}
    counted = all(part.tokens for part in handover.parts)
    if handover.sweep is None or not counted:
        why = "no decision scored candidates" if handover.sweep is None else "tokens were not counted"
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
