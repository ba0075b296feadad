"""OLMo-core's `SourceMixtureList`: sources of token files with target ratios, which are shares of tokens."""

from __future__ import annotations

import math
from typing import Any

import yaml

from opmix_ray.exchange.entries import SourceWeight, as_weight, prefix, stem
from opmix_ray.exchange.handover import Handover, Part, Unit, Written, comment, number
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
