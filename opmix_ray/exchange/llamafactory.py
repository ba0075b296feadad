"""LLaMA-Factory: `dataset_info.json`, and a YAML file with `interleave_probs`, which count rows of the data sets."""

from __future__ import annotations

import json
from typing import Any

import yaml

from opmix_ray.errors import UserError
from opmix_ray.exchange.entries import SourceWeight, as_weight, files
from opmix_ray.exchange.handover import (
    FIXED_LENGTH,
    Handover,
    Part,
    Unit,
    Written,
    comment,
    number,
    refuse_kinds,
)

INFO, SETTINGS = "dataset_info.json", "llamafactory.yaml"
_ENDINGS = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".txt")  # that its loader knows, uncompressed
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def write_llamafactory(handover: Handover, unit: Unit) -> Written:
    """One data set a file; a domain of several files has several, `name`, `name.1`, ...

    Raises:
        UserError: token ids, or text and instruction data in one mixture, which are trained in different stages.
    """
    refuse_kinds(handover, "LLaMA-Factory", ("text", "prompt", "messages"))
    stages = {"pt" if part.kind == "text" else "sft" for part in handover.parts}
    if len(stages) > 1:
        raise UserError(
            "LLaMA-Factory trains text (stage pt) and instruction data (stage sft) in different stages",
            key="data.domains",
            remedy="export a mixture of one kind",
        )
    weights = handover.weights(unit)
    info: dict[str, Any] = {}
    chances: list[float] = []
    notes = []
    for part in handover.parts:
        for place, found in enumerate(files(part)):
            name = part.name if place == 0 else f"{part.name}.{place}"
            info[name] = {"file_name": found.path, **_columns(part)}
            chances.append(number(weights[part.name] * found.part))
            if not found.path.endswith(_ENDINGS):
                notes.append(f"{part.name}: LLaMA-Factory reads {found.path} only when it is uncompressed")
            elif "://" in found.path:
                notes.append(
                    f"{part.name}: copy {found.path} to a disk, LLaMA-Factory reads local files only"
                )
    settings = {
        "stage": stages.pop(),
        "dataset": ",".join(info),
        "dataset_dir": handover.place or ".",
        "mix_strategy": "interleave_over",
        "interleave_probs": ",".join(map(repr, chances)),
    }
    head = handover.words(unit, "interleave_probs") + ([FIXED_LENGTH] if unit == "documents" else [])
    text = comment([*head, *notes]) + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return Written({INFO: json.dumps(info, indent=2, ensure_ascii=False) + "\n", SETTINGS: text}, notes)


def _columns(part: Part) -> dict[str, Any]:
    source = part.source
    if part.kind == "messages" and source is not None:
        return {"formatting": "sharegpt", "columns": {"messages": source.messages_column}, "tags": _TAGS}
    if part.kind == "prompt" and source is not None:
        return {"columns": {"prompt": source.prompt_column, "response": source.completion_column}}
    return {"columns": {"prompt": source.text_column if source is not None else "text"}}


def read_llamafactory(tree: Any) -> list[SourceWeight] | None:
    """Entries of `dataset` and `interleave_probs`; None where there are none.

    Raises:
        ValueError: their numbers differ.
    """
    if not isinstance(tree, dict) or not {"dataset", "interleave_probs"} <= set(tree):
        return None
    names, chances = (_list(tree[key]) for key in ("dataset", "interleave_probs"))
    if len(names) != len(chances):
        raise ValueError(f"dataset names {len(names)} data sets and interleave_probs {len(chances)}")
    return [SourceWeight(name, (), as_weight(chance)) for name, chance in zip(names, chances, strict=True)]


def _list(value: Any) -> list[str]:
    return [str(part).strip() for part in (value if isinstance(value, list) else str(value).split(","))]
