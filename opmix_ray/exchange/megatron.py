"""Megatron-LM's blend, a text file for `--data-args-path`, the same for NeMo as YAML, and Megatron-Energon's
metadata set, version 2.

The first two draw samples of one sequence length out of token streams, so a weight is a share of tokens
(`get_blend_from_list` in megatron/core/datasets/utils.py; `GPTDatasetConfig.blend`). Energon weighs samples of prepared
data sets.
"""

from __future__ import annotations

from typing import Any

import yaml

from opmix_ray.errors import UserError
from opmix_ray.exchange.handover import (
    FIXED_LENGTH,
    Handover,
    Part,
    Place,
    SourceWeight,
    Unit,
    Written,
    as_weight,
    comment,
    files,
    number,
    prefix,
    stem,
)

BLEND, NEMO = "megatron_blend.txt", "nemo_blend.yaml"


def write_blend(handover: Handover, unit: Unit) -> Written:
    """`weight prefix` a line; Megatron splits the file at white space and allows no comments.

    Raises:
        UserError: a path holds white space.
    """
    pairs, notes = _pairs(handover)
    for place in pairs:
        if len(place.path.split()) != 1:
            raise UserError(
                "Megatron splits its blend at white space",
                key="path",
                value=place.path,
                remedy="rename the file",
            )
    text = "".join(f"{number(place.part)} {place.path}\n" for place in pairs)
    return Written({BLEND: text}, [*notes, f"train with --data-args-path {BLEND}"])


def write_nemo(handover: Handover, unit: Unit) -> Written:
    """`dataset.blend`: prefixes, and their weights in the same order."""
    pairs, notes = _pairs(handover)
    blend = [[place.path for place in pairs], [number(place.part) for place in pairs]]
    head = comment([*handover.words("tokens", "blend"), *notes])
    text = head + yaml.safe_dump({"dataset": {"blend": blend}}, sort_keys=False, allow_unicode=True)
    return Written({NEMO: text}, notes)


def _pairs(handover: Handover) -> tuple[list[Place], list[str]]:
    pairs: list[Place] = []
    notes = []
    for part in handover.parts:
        places, note = _prefixes(part)
        pairs += [Place(place.path, part.share * place.part) for place in places]
        notes += [note] if note else []
    return pairs, notes


def _prefixes(part: Part) -> tuple[list[Place], str | None]:
    paths = part.where()
    if part.paths or part.indexed:
        found = files(part) if part.paths or part.opened else [Place(path, 1 / len(paths)) for path in paths]
        return [Place(prefix(place.path), place.part) for place in found], None
    place = f"{stem(paths[0])}_text_document"
    output = place.removesuffix("_text_document")
    return [Place(place, 1.0)], (
        f"{part.name}: make {place}.bin and .idx with Megatron's tools/preprocess_data.py --append-eod "
        f"--output-prefix {output}, or name another place with --path {part.name}=PREFIX"
    )


def read_blend(text: str) -> list[SourceWeight] | None:
    """Entries of a blend as text; None where it is none."""
    words = text.split()
    if not words or len(words) % 2:
        return None
    try:
        return [
            SourceWeight(path, (path,), as_weight(weight))
            for weight, path in zip(words[::2], words[1::2], strict=True)
        ]
    except ValueError:
        return None


def read_nemo(tree: Any) -> list[SourceWeight] | None:
    """Entries of `dataset.blend`, or of Megatron's per-split JSON (`train`); None where it is neither.

    Raises:
        ValueError, TypeError: the blend is not prefixes and as many weights.
    """
    if not isinstance(tree, dict):
        return None
    if isinstance(tree.get("dataset"), dict) and isinstance(tree["dataset"].get("blend"), list):
        prefixes, weights = tree["dataset"]["blend"]
        pairs = zip(prefixes, weights, strict=True)
        return [SourceWeight(str(path), (str(path),), as_weight(weight)) for path, weight in pairs]
    if {"train", "valid", "test"} <= set(tree):
        train = tree["train"]
        return read_blend(" ".join(map(str, train)) if isinstance(train, list) else str(train))
    return None


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
