"""A Python module around `datasets.interleave_datasets`, which draws rows: its probabilities count documents."""

from __future__ import annotations

import ast
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.exchange.entries import SourceWeight, as_weight, constant, files, reader
from opmix_ray.exchange.handover import FIXED_LENGTH, Handover, Part, Unit, Written, comment, number

MODULE = "datasets_mixture.py"
_BODY = '''
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
    return Written({MODULE: comment(head) + _BODY % (domains, chances, handover.seed)})


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
