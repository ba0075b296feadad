"""Formats whose loaders draw from several sources by proportions.

- MosaicML Streaming: `streams`, as in the YAML files of LLM Foundry; proportions count samples.
- `datasets.interleave_datasets`, in a Python module around it: it draws rows, so probabilities count documents.
- torchtitan, as a Python module for `InterleavedHuggingFaceTextDataLoader` of torchtitan 0.3, whose configurations are
  Python too: sources are packed first, so weights count tokens.
"""

from __future__ import annotations

import ast
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
    constant,
    files,
    number,
    reader,
    refuse_kinds,
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


DATASETS = "datasets_mixture.py"
_DATASETS_BODY = '''
from datasets import interleave_datasets, load_dataset, load_from_disk

# name: (how it is loaded, its files, columns to keep and what they are called in the mixture)
DOMAINS = {
%s}

PROBABILITIES = {
%s}


def load(name, streaming=True):
    """One domain."""
    kind, files, columns = DOMAINS[name]
    if kind == "saved":
        rows = load_from_disk(files)
        rows = rows.to_iterable_dataset() if streaming else rows
    else:
        rows = load_dataset(kind, data_files=files, split="train", streaming=streaming)
    rows = rows.select_columns(list(columns))
    return rows.rename_columns({old: new for old, new in columns.items() if old != new})


def mixture(streaming=True, seed=%d):
    """The mixture; ends when every domain was gone through, and repeats the others until then."""
    return interleave_datasets(
        [load(name, streaming) for name in PROBABILITIES],
        probabilities=list(PROBABILITIES.values()),
        seed=seed,
        stopping_strategy="all_exhausted",
    )


if __name__ == "__main__":
    for row in mixture().take(5):
        print(row)
'''


def write_datasets(handover: Handover, unit: Unit) -> Written:
    """A module with `mixture()`.

    Raises:
        UserError: a domain's files are of a kind that `datasets` does not read, or rows differ in kind.
    """
    kinds = {part.kind for part in handover.parts}
    if len(kinds) > 1:
        raise UserError(
            f"rows of different kinds ({', '.join(sorted(kinds))}) cannot be interleaved",
            key="data.domains",
            remedy="bring them into one form, and name the files with --path",
        )
    weights = handover.weights(unit)
    domains = "".join(
        f"    {part.name!r}: {(*loading(part)[:2], _columns(part))!r},\n" for part in handover.parts
    )
    chances = "".join(f"    {part.name!r}: {number(weights[part.name])!r},\n" for part in handover.parts)
    head = handover.words(unit, "PROBABILITIES") + ([FIXED_LENGTH] if unit == "documents" else [])
    return Written({DATASETS: comment(head) + _DATASETS_BODY % (domains, chances, handover.seed)})


def loading(part: Part) -> tuple[str, Any, str]:
    """How `datasets` loads a domain: builder (or `saved`), files, and column of the text.

    Raises:
        UserError: it has no builder for the files.
    """
    paths = part.where()
    column = part.source.text_column if part.source is not None else "text"
    if part.source is not None and not part.paths and part.source.format == "hf":
        return "saved", paths[0], column
    if part.opened is not None and any(reader(path) is None for path in paths):
        paths = [place.path for place in files(part)]
    kinds = {reader(path) for path in paths}
    if part.source is not None and not part.paths and part.source.format in ("jsonl", "parquet", "arrow"):
        kinds = {"json" if part.source.format == "jsonl" else part.source.format}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise UserError(
            "the paths do not say how `datasets` is to load them",
            key=f"data.domains.{part.name}",
            value=", ".join(paths),
            remedy=f"name .jsonl, .parquet or .arrow files, for example --path '{part.name}={paths[0]}/*.jsonl'",
        )
    return kind, paths, column


def _columns(part: Part) -> dict[str, str]:
    source = part.source
    if source is None:
        return {"text": "text"}
    if part.kind == "messages":
        return {str(source.messages_column): "messages"}
    if part.kind == "prompt":
        return {str(source.prompt_column): "prompt", str(source.completion_column): "completion"}
    if part.kind == "tokens":
        if source.tokens_column is None:
            raise UserError(
                "`datasets` does not read raw token files",
                key=f"data.domains.{part.name}",
                remedy=f"name its text with --path {part.name}=FILES",
            )
        return {source.tokens_column: "input_ids"}
    return {source.text_column: "text"}


def read_datasets(tree: ast.Module) -> list[SourceWeight] | None:
    """Entries of PROBABILITIES; None where there is no such constant."""
    found = constant(tree, "PROBABILITIES")
    if not isinstance(found, dict):
        return None
    return [SourceWeight(str(name), (), as_weight(weight)) for name, weight in found.items()]


TORCHTITAN = "torchtitan_mixture.py"
_TORCHTITAN_BODY = '''
from datasets import load_dataset, load_from_disk
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HFDataSource, InterleavedHuggingFaceTextDataLoader

# name: (how `datasets` loads it, its files, column of the text)
DOMAINS = {
%s}


def _load(name):
    kind, files, _ = DOMAINS[name]
    if kind == "saved":
        return load_from_disk(files)
    return load_dataset(kind, data_files=files, split="train")


for _name, (_, _, _column) in DOMAINS.items():
    DATASETS[_name] = DatasetConfig(path=_name, loader=_load, sample_processor=lambda row, column=_column: row[column])

# in a function of your config registry: dataloader=opmix_dataloader()
WEIGHTS = {
%s}


def opmix_dataloader():
    """The mixture as a data loader configuration."""
    sources = [HFDataSource(dataset=name, weight=weight) for name, weight in WEIGHTS.items()]
    return InterleavedHuggingFaceTextDataLoader.Config(sources=sources, seed=%d)
'''


def write_torchtitan(handover: Handover, unit: Unit) -> Written:
    """A module that registers the domains and makes the data loader's configuration.

    Raises:
        UserError: a domain is not text, or two names differ in case only, which torchtitan ignores.
    """
    refuse_kinds(handover, "torchtitan's interleaved loader", ("text",))
    names = [part.name.lower() for part in handover.parts]
    for part, name in zip(handover.parts, names, strict=True):
        if names.count(name) > 1:
            raise UserError(
                "differs from another name in case only, and torchtitan ignores case",
                key="data.domains", value=part.name, remedy="rename one",
            )  # fmt: skip
    domains = "".join(f"    {part.name.lower()!r}: {loading(part)!r},\n" for part in handover.parts)
    weights = "".join(f"    {part.name.lower()!r}: {number(part.share)!r},\n" for part in handover.parts)
    text = comment(handover.words("tokens", "weight")) + _TORCHTITAN_BODY % (domains, weights, handover.seed)
    return Written(
        {TORCHTITAN: text}, ["in your config registry: from torchtitan_mixture import opmix_dataloader"]
    )


def read_torchtitan(tree: ast.Module) -> list[SourceWeight] | None:
    """Entries of WEIGHTS, or of every `HFDataSource(dataset=..., weight=...)`; None where there is neither.

    Raises:
        ValueError: a weight is not a plain number.
    """
    found = constant(tree, "WEIGHTS")
    if isinstance(found, dict):
        return [SourceWeight(str(name), (), as_weight(weight)) for name, weight in found.items()]
    entries = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "HFDataSource":
            given = {word.arg: word.value for word in node.keywords}
            if isinstance(given.get("dataset"), ast.Constant):
                weight = ast.literal_eval(given["weight"]) if "weight" in given else 1.0
                path = given.get("dataset_path")
                paths = (str(path.value),) if isinstance(path, ast.Constant) and path.value else ()
                entries.append(
                    SourceWeight(str(ast.literal_eval(given["dataset"])), paths, as_weight(weight))
                )
    return entries or None
