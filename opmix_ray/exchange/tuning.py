"""Trainers for fine-tuning, both of which count rows of data sets.

LLaMA-Factory takes `dataset_info.json`, and a YAML file with `interleave_probs`.

Axolotl has no weights: it trains on every row of its data sets once an epoch. So the mixture is written as
rows: each domain is listed as often as it is to be gone through, the last time with a slice, `split: train[:N]`. The
planned tokens decide how many rows that are.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from opmix_ray.errors import UserError
from opmix_ray.exchange.handover import (
    FIXED_LENGTH,
    Handover,
    Part,
    SourceWeight,
    Unit,
    Written,
    as_weight,
    comment,
    files,
    number,
    reader,
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


DATASETS = "axolotl_datasets.yaml"
MOST_PASSES = 64
_SLICE = re.compile(r"train\[:(\d+)\]")


def write_axolotl(handover: Handover, unit: Unit) -> Written:
    """`datasets` with slices that hold the mixture in one epoch.

    Raises:
        UserError: token ids; no planned tokens; documents not counted; a domain gone through too often.
    """
    refuse_kinds(handover, "Axolotl", ("text", "prompt", "messages"))
    if handover.planned_tokens is None:
        raise UserError(
            "Axolotl has no weights, so the mixture is written as numbers of rows, and these depend on how long the "
            "training is",
            key="--tokens",
            remedy="say how many tokens it is to train on",
        )
    entries: list[dict[str, Any]] = []
    lines = handover.words("tokens", "share")[:1]
    lines += [
        "Axolotl has no weights: an epoch goes through every row that is listed, once.",
        "Rows by domain:",
    ]
    for part in handover.parts:
        rows = part.share * handover.planned_tokens / part.tokens_per_document()
        assert part.documents is not None
        if rows > MOST_PASSES * part.documents:
            raise UserError(
                f"would be listed {rows / part.documents:.0f} times",
                key=part.name,
                value=part.share,
                remedy=f"say fewer --tokens than {handover.planned_tokens:,}, and train more epochs",
            )
        entries += _entries(part, rows)
        lines.append(
            f"  {part.name}: {part.share:.6g} of the tokens, {part.tokens_per_document():.6g} tokens per document, "
            f"{rows:.0f} of {part.documents} rows"
        )
    tree = {"datasets": entries, "shuffle_merged_datasets": True, "num_epochs": 1}
    text = comment(lines) + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return Written(
        {DATASETS: text}, [f"put {DATASETS} into your Axolotl configuration; one epoch is the mixture"]
    )


def _entries(part: Part, rows: float) -> list[dict[str, Any]]:
    """Whole passes and a rest for each file; rows are spread over several files by size."""
    entries = []
    for place in files(part):
        there = max(1, round((part.documents or 0) * place.part))
        passes, rest = divmod(max(1, round(rows * place.part)), there)
        common = {"path": place.path, "ds_type": reader(place.path) or "json", **_type(part)}
        entries += [{**common, "split": f"train[:{there}]"} for _ in range(passes)]
        entries += [{**common, "split": f"train[:{rest}]"}] if rest else []
    return entries


def _type(part: Part) -> dict[str, Any]:
    source = part.source
    if part.kind == "messages" and source is not None:
        mapping = {"role": "role", "content": "content"}
        return {
            "type": "chat_template",
            "field_messages": source.messages_column,
            "message_property_mappings": mapping,
        }
    if part.kind == "prompt" and source is not None:
        shape = {"format": "{instruction}", "no_input_format": "{instruction}"}
        fields = {"field_instruction": source.prompt_column, "field_output": source.completion_column}
        return {"type": {**fields, **shape}}
    return {"type": "completion", "field": source.text_column if source is not None else "text"}


def read_axolotl(tree: Any) -> list[SourceWeight] | None:
    """Entries of `datasets` that are all sliced to numbers of rows; None where there are none.

    Raises:
        ValueError: a data set has no such slice, so the file does not say how many rows it gives.
    """
    sets = tree.get("datasets") if isinstance(tree, dict) else None
    if not isinstance(sets, list) or not all(isinstance(entry, dict) and "path" in entry for entry in sets):
        return None
    entries = []
    for entry in sets:
        found = _SLICE.fullmatch(str(entry.get("split")))
        if found is None:
            raise ValueError(f"{entry['path']} has no split: train[:N], so its number of rows is not known")
        entries.append(SourceWeight(str(entry["path"]), (str(entry["path"]),), float(found[1])))
    return entries
