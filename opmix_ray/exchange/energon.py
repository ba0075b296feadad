"""Megatron-Energon's metadata set, version 2: a blend of prepared data sets, weighted by samples."""

from __future__ import annotations

from typing import Any

import yaml

from opmix_ray.exchange.entries import SourceWeight, as_weight
from opmix_ray.exchange.handover import FIXED_LENGTH, Handover, Part, Unit, Written, comment, number
from opmix_ray.exchange.places import Place, files, stem

METADATASET = "metadataset.yaml"
_CLASS = {"__module__": "megatron.energon", "__class__": "MetadatasetV2"}


def write_energon(handover: Handover, unit: Unit) -> Written:
    """`splits.train.blend`; every entry carries its domain's name as a subflavor."""
    weights = handover.weights(unit)
    blend: list[dict[str, Any]] = []
    notes = []
    for part in handover.parts:
        for place in _places(part):
            entry = {"weight": number(weights[part.name] * place.part), "path": place.path}
            blend.append({**entry, "subflavors": {"domain": part.name}})
        if not part.paths:
            notes.append(f"{part.name}: `energon prepare {_places(part)[0].path}` once, if that is not done")
    head = handover.words(unit, "weight") + ([FIXED_LENGTH] if unit == "documents" else [])
    tree = {**_CLASS, "splits": {"train": {"blend": blend}}}
    text = comment([*head, *notes]) + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return Written({METADATASET: text}, notes)


def _places(part: Part) -> list[Place]:
    """Plain .jsonl files, which Energon reads in place; else the directory of a web data set."""
    if part.paths:
        return files(part)
    paths = part.where()
    if all("*" not in path and path.endswith(".jsonl") for path in paths):
        return files(part)
    return [Place(stem(paths[0]), 1.0)]


def read_energon(tree: Any) -> list[SourceWeight] | None:
    """Entries of the training blend; None where it is no metadata set.

    Raises:
        ValueError: its blend is not one of weights and paths.
    """
    if not isinstance(tree, dict) or not str(tree.get("__class__", "")).startswith("Metadataset"):
        return None
    train = (tree.get("splits") or {}).get("train")
    blend = train.get("blend", train.get("datasets")) if isinstance(train, dict) else None
    if isinstance(train, dict) and blend is None and "path" in train:
        blend = [train]
    if not isinstance(blend, list) or not all(isinstance(entry, dict) and "path" in entry for entry in blend):
        raise ValueError("splits.train.blend must be a list of weights and paths")
    entries = []
    for entry in blend:
        flavour = (entry.get("subflavors") or {}).get("domain", entry["path"])
        entries.append(SourceWeight(str(flavour), (str(entry["path"]),), as_weight(entry.get("weight", 1.0))))
    return entries
