"""MosaicML Streaming: `streams` with proportions, as in the YAML files of LLM Foundry; proportions count samples."""

from __future__ import annotations

from typing import Any

import yaml

from opmix_ray.exchange.handover import (
    FIXED_LENGTH,
    Handover,
    SourceWeight,
    Unit,
    Written,
    as_weight,
    comment,
    files,
    number,
    stem,
)
from opmix_ray.paths import is_uri

STREAMS = "streams.yaml"
_USE = (
    "StreamingDataset(streams=[Stream(**settings) for settings in yaml.safe_load(file)['streams'].values()])"
)


def write_streaming(handover: Handover, unit: Unit) -> Written:
    """`streams`: name to the arguments of `streaming.Stream`."""
    weights = handover.weights(unit)
    streams: dict[str, dict[str, Any]] = {}
    notes = []
    for part in handover.parts:
        places = (
            [(place.path, place.part) for place in files(part)]
            if part.paths
            else [(stem(part.where()[0]), 1.0)]
        )
        for place, (path, share) in enumerate(places):
            name = part.name if place == 0 else f"{part.name}.{place}"
            where = {"remote": path} if is_uri(path) else {"local": path}
            streams[name] = {**where, "proportion": number(weights[part.name] * share)}
        if not part.paths:
            notes.append(
                f"{part.name}: write MDS shards to {places[0][0]}, or name another place with --path {part.name}=DIR"
            )
    head = handover.words(unit, "proportion") + ([FIXED_LENGTH] if unit == "documents" else []) + [_USE]
    text = comment([*head, *notes]) + yaml.safe_dump(
        {"streams": streams}, sort_keys=False, allow_unicode=True
    )
    return Written({STREAMS: text}, notes)


def read_streaming(tree: Any) -> list[SourceWeight] | None:
    """Entries of `streams`, at the top or below `dataset` of a loader; None where there are none.

    Raises:
        ValueError: a stream has no proportion.
    """
    for key in ("train_loader", "dataset"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict) and "streams" not in tree:
            tree = tree[key]
    streams = tree.get("streams") if isinstance(tree, dict) else None
    if isinstance(streams, list):
        streams = {str(place): entry for place, entry in enumerate(streams)}
    if not isinstance(streams, dict) or not all(isinstance(entry, dict) for entry in streams.values()):
        return None
    if not all("proportion" in entry for entry in streams.values()):
        raise ValueError("every stream needs a proportion")
    entries = []
    for name, entry in streams.items():
        paths = tuple(str(entry[key]) for key in ("remote", "local") if entry.get(key))
        entries.append(SourceWeight(str(name), paths, as_weight(entry["proportion"])))
    return entries
