"""A run small enough for tests and real in every part."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from opmix_ray.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "data"
PATIENCE = 1200.0  # seconds that a run of a minute may take where machines are busy; no test judges seconds
DOMAINS = {"code": 40, "german": 30, "mathematics": 200}  # documents taken of each


def write_tiny_data(directory: Path) -> Path:
    """Real text of three domains as plain JSONL."""
    for name, documents in DOMAINS.items():
        with gzip.open(DEMO / f"{name}.jsonl.gz", "rt", encoding="utf-8") as source:
            lines = list(islice(source, documents))
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as in workers: models this small are slowed down by more, and sums differ with them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tiny_tree(data: Path) -> dict[str, Any]:
    """The configuration as a plain mapping."""
    return {
        "name": "tiny",
        "seed": 3,
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
                "max_position_embeddings": 64,
            },
            "autocast": False,
        },
        "tokenizer": {"path": str(DEMO / "tokenizer")},
        "data": {
            "seq_len": 32,
            "eval_fraction": 0.1,
            "cache": str(data / "cache"),
            "domains": {name: {"path": str(data / f"{name}.jsonl")} for name in DOMAINS},
        },
        "train": {
            "batch_size": 4,
            "log_every": 2,
            "checkpoint_every": 3,
            "optimizer": {"learning_rate": 0.003},
        },
        "stages": [{"name": "only", "steps": 12, "start": "uniform", "decide_at": [0.5]}],
        "probe": {"steps": 4, "rank": 4, "alpha": 8},
        "search": {"budget": None, "trials": 6, "round_size": 3, "sequences": 6, "evaluators": 2},
        "evaluation": {"sequences": 8},
    }


class TinyRun:
    """A configuration tree to change, load, write and run."""

    def __init__(self, data: Path, directory: Path) -> None:
        self.directory = directory
        self.tree = tiny_tree(data)
        self.file = directory / "run.yaml"

    def write(self) -> Path:
        """The configuration as a file."""
        self.file.write_text(yaml.safe_dump(self.tree, sort_keys=False))
        return self.file

    def load(self, *overrides: str, output: str = "out") -> RunConfig:
        """The configuration, its output below the test's directory."""
        loaded = load_config(self.write(), list(overrides))
        return loaded.but(output=str(self.directory / output))

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs it."""
        return [sys.executable, "-m", "opmix_ray", *arguments]


def opmix(*arguments: str, timeout: float = PATIENCE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "opmix_ray", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
        cwd=ROOT,
        check=False,
    )


def read_json(path: Path) -> Any:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
