"""torchtitan's interleaved data loader, as a Python module: its sources are packed first, so weights count tokens.

Written for `InterleavedHuggingFaceTextDataLoader` of torchtitan 0.3, whose configurations are Python too.
"""

from __future__ import annotations

import ast

from opmix_ray.errors import UserError
from opmix_ray.exchange.entries import SourceWeight, as_weight, constant
from opmix_ray.exchange.handover import Handover, Unit, Written, comment, number, refuse_kinds
from opmix_ray.exchange.hf_datasets import loading

MODULE = "torchtitan_mixture.py"
_BODY = '''
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
    text = comment(handover.words("tokens", "weight")) + _BODY % (domains, weights, handover.seed)
    return Written(
        {MODULE: text}, ["in your config registry: from torchtitan_mixture import opmix_dataloader"]
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
