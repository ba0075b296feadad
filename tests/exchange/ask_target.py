"""Reads an export with the target's own code and prints what it sees as JSON: `python ask_target.py FORMAT FILE`.

Runs in a process of its own, with the targets' packages on its path (`make test-targets`).
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def without_init(*packages: str) -> None:
    """Make sub-modules importable without the packages' own `__init__`, which import far more than a parser needs."""
    for package in packages:
        found = importlib.util.find_spec(package)
        assert found is not None, package
        module = types.ModuleType(package)
        module.__path__ = list(found.submodule_search_locations or ())
        sys.modules[package] = module


def megatron(file: Path) -> Any:
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import get_blend_from_list

    prefixes, weights = get_blend_from_list(file.read_text().split())
    first = IndexedDataset(prefixes[0], mmap=True)
    return {
        "weights": dict(zip(prefixes, weights, strict=True)),
        "documents": len(first.document_indices) - 1,
        "first": first[0].tolist(),
    }


def build(prefix: Path) -> Any:
    """Write a data set as `tools/preprocess_data.py` does."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = [[5, 6, 7, 0], [8, 0], list(range(1, 300)), [9]]
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return documents


def nemo(file: Path) -> Any:
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

    blend = yaml.safe_load(file.read_text())["dataset"]["blend"]
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=32, blend=blend, split="9,1,0", reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, tokenizer=types.SimpleNamespace(vocab_size=100),
    )  # fmt: skip
    return {"weights": dict(zip(*config.blend, strict=True))}


def energon(file: Path) -> Any:
    from megatron.energon.dataset_config import load_config
    from megatron.energon.epathlib import EPath
    from megatron.energon.metadataset.metadataset_v2 import MetadatasetV2

    path = EPath(file)
    found = load_config(path, default_type=MetadatasetV2, default_kwargs={"path": path})
    assert type(found).__name__ == "MetadatasetV2"
    return {"weights": {entry.subflavors["domain"]: entry.weight for entry in found.splits["train"].blend}}


def olmo_core(file: Path) -> Any:
    from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList

    sources = SourceMixtureList.from_yaml(str(file))
    sources.validate()
    built = SourceMixtureDatasetConfig(
        source_list=sources, requested_tokens=100_000, global_batch_size=1024, render_tables=False
    ).build(npdtype=np.uint16, sequence_length=32)
    tokens = {source.name: sum(path.tokens for path in source.path_tokens) for source in built.sources}
    return {
        "weights": {source.source_name: source.target_ratio for source in sources.sources},
        "drawn": {name: count / sum(tokens.values()) for name, count in tokens.items()},
    }


def torchtitan(file: Path) -> Any:
    sys.path.insert(0, str(file.parent))
    import torch
    from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataset
    from torchtitan_mixture import opmix_dataloader

    class Letters:
        def encode(self, text: str, **_: Any) -> list[int]:
            return list(text.encode())

    config = opmix_dataloader()
    name = config.sources[0].dataset
    data = HuggingFaceTextDataset(dataset_name=name, dataset_path=None, tokenizer=Letters(), seq_len=16)
    inputs, _ = next(iter(data))
    return {
        "weights": {source.dataset: source.weight for source in config.sources},
        "text": bytes(inputs["input"].to(torch.uint8).tolist()).decode(errors="replace"),
    }


def llamafactory(file: Path) -> Any:
    without_init("llamafactory.data")
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams.data_args import DataArguments

    settings = yaml.safe_load(file.read_text())
    settings.pop("stage")
    found = DataArguments(**settings)
    sets = get_dataset_list(found.dataset, found.dataset_dir)
    return {
        "weights": dict(zip(found.dataset, found.interleave_probs, strict=True)),
        "sets": {
            name: [item.load_from, item.dataset_name, item.prompt]
            for name, item in zip(found.dataset, sets, strict=True)
        },
    }


def axolotl(file: Path) -> Any:
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset

    rows: dict[str, int] = {}
    for entry in yaml.safe_load(file.read_text())["datasets"]:
        SFTDataset.model_validate(entry)
        loaded = load_dataset_with_config(DictDefault(entry), use_auth_token=False)
        rows[entry["path"]] = rows.get(entry["path"], 0) + len(loaded)
    return {"weights": rows}


def streaming(file: Path) -> Any:
    without_init("streaming", "streaming.base")
    from streaming.base.stream import Stream

    settings = yaml.safe_load(file.read_text())["streams"]
    streams = {name: Stream(**entry) for name, entry in settings.items()}
    relative, unspecified = Stream.validate_weights(list(streams.values()))
    assert (relative, unspecified) == (True, False)
    return {"weights": {name: stream.proportion for name, stream in streams.items()}}


if __name__ == "__main__":
    name = sys.argv[1].replace("megatron-energon", "energon").replace("-", "_")
    print("\n" + json.dumps(globals()[name](Path(sys.argv[2]))))
