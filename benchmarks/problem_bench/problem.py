"""A problem: its file, its texts as a configuration of the product, and what is kept of its training."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from opmix_ray.config import RunConfig, load_config, make_config
from problem_bench.text import ROOT, write

FILES = ROOT / "benchmarks" / "problems"
RESULTS = ROOT / "benchmarks" / "results" / "problems"
BUILT = ROOT / "runs" / "problems"
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "vocabulary": 400}
SHORT = ("data.seq_len=128", "train.batch_size=4", "evaluation.sequences=24")  # of pretrained models


@dataclass(frozen=True)
class Problem:
    """What a problem's file says.

    Args:
        name: of the file.
        family: kind of problem; constants are judged on the families they were not chosen on.
        about: one sentence.
        domains, targets: name -> what `problem_bench.text.write` takes.
        weights: of the sets in the objective; none: all domains alike.
        start: mixture of the prefix, as in a stage.
        known: domains of the prefix, for a pretrained base; none: all.
        prefix, steps: optimiser steps before the decision and after it.
        model: sizes of the model.
        eval_fraction: part of each domain that is held out.
        after: made when every constant had been chosen, and looked at once.
        pretrained: file of a configuration that names model and texts; none: the prefix is trained here.
    """

    name: str
    family: str
    about: str
    domains: dict[str, Any]
    targets: dict[str, Any]
    weights: dict[str, float] | None
    start: str | dict[str, float]
    known: list[str] | None
    prefix: int
    steps: int
    model: dict[str, int]
    eval_fraction: float
    after: bool = False
    pretrained: str | None = None

    @classmethod
    def load(cls, name: str) -> Problem:
        """The problem of a file's name."""
        tree = yaml.safe_load((FILES / f"{name}.yaml").read_text())
        return cls(
            name=name,
            family=tree["family"],
            about=tree["about"],
            domains=tree.get("domains", {}),
            targets=tree.get("targets", {}),
            weights=tree.get("weights"),
            start=tree.get("start", "proportional"),
            known=tree.get("known"),
            prefix=tree.get("prefix", 100),
            steps=tree.get("steps", 600),
            model=SMALL | tree.get("model", {}),
            eval_fraction=tree.get("eval_fraction", 0.08),
            after=tree.get("after", False),
            pretrained=tree.get("pretrained"),
        )

    @property
    def new(self) -> list[str]:
        """Domains that the prefix has not seen."""
        return [d for d in self.domains if self.known is not None and d not in self.known]

    def config(self, seed: int, output: str | None = None, *, sized: bool = False) -> RunConfig:
        """The product's configuration: prefix and the steps after it are one stage, or two where domains are new.

        Args:
            seed: of the run.
            output: of the run.
            sized: as `opmix init` would have it, by rule and decided before the first step too; else as the truths
                were measured.
        """
        if self.pretrained:
            return self._pretrained(seed, output, sized=sized)
        place = BUILT / self.name
        for name, entry in {**self.domains, **self.targets}.items():
            write(entry, place / f"{name}.jsonl")

        def source(name: str, entry: Any) -> dict[str, Any]:
            given = entry if isinstance(entry, dict) else {}
            columns = (
                {"prompt_column": "prompt", "completion_column": "completion"}
                if given.get("kind") == "answers"
                else {}
            )
            return {"path": str(place / f"{name}.jsonl"), **columns}

        width = self.model["hidden_size"]
        decide = round(self.prefix / (self.prefix + self.steps), 4)
        begin = [0.0] if sized else []
        whole: dict[str, Any] = {
            "name": "all",
            "steps": self.prefix + self.steps,
            "start": self.start,
            "decide_at": [*begin, decide],
        }
        stages: list[dict[str, Any]] = [whole]
        if self.new:
            stages = [
                {
                    "name": "base",
                    "steps": self.prefix,
                    "start": self.start,
                    "domains": self.known,
                    "decide_at": begin,
                },
                {"name": "more", "steps": self.steps, "start": "join", "decide_at": [0.0]},
            ]
        tree: dict[str, Any] = {
            "name": self.name,
            "seed": seed,
            "model": {
                "autocast": False,
                "config": {
                    "model_type": "llama",
                    "hidden_size": width,
                    "intermediate_size": 3 * width,
                    "num_hidden_layers": self.model["num_hidden_layers"],
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "tie_word_embeddings": True,
                    "max_position_embeddings": 256,
                },
            },
            "tokenizer": {"train_vocab_size": self.model["vocabulary"]},
            "data": {
                "seq_len": 64,
                "eval_fraction": self.eval_fraction,
                "domains": {name: source(name, entry) for name, entry in self.domains.items()},
            },
            "train": {
                "batch_size": 8,
                "optimizer": {"learning_rate": 4e-3},
                "schedule": {"kind": "wsd", "warmup_fraction": 0.03, "decay_fraction": 0.2},
                "log_every": 1000,
            },
            "stages": stages,
            "evaluation": {
                "sequences": 96,
                "sets": {name: source(name, entry) for name, entry in self.targets.items()},
            },
            "search": {"sequences": 64},
        }
        if sized:
            del tree["search"]
        if output:
            tree["output"] = output
        if self.weights:
            tree["evaluation"]["weights"] = self.weights
        return make_config(tree)

    def _pretrained(self, seed: int, output: str | None, *, sized: bool) -> RunConfig:
        keys = [f"name={self.name}", f"seed={seed}", *SHORT]
        keys += [f"stages.0.steps={self.steps}", f"stages.0.start={self.start}", "stages.0.decide_at=[0.0]"]
        keys += [] if sized else ["search.sequences=24"]
        keys += [f"output={output}"] if output else []
        return load_config(ROOT / str(self.pretrained), keys)

    @property
    def file(self) -> Path:
        """What was measured."""
        return RESULTS / f"{self.name}.json.gz"

    def weights_file(self, seed: int) -> Path:
        """The prefix's weights."""
        return RESULTS / f"{self.name}-{seed}.npz"

    def kept(self) -> dict[str, Any]:
        """What was measured so far."""
        if not self.file.exists():
            return {"problem": self.name, "seeds": {}}
        with gzip.open(self.file, "rt") as text:
            return json.load(text)

    def keep(self, result: dict[str, Any]) -> None:
        """Write what was measured, by replacement."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        with gzip.GzipFile(part, "wb", mtime=0) as raw:
            raw.write(json.dumps(result).encode())
        part.replace(self.file)


def names() -> list[str]:
    """All problems."""
    return sorted(file.stem for file in FILES.glob("*.yaml"))


def as_array(shares: dict[str, float], domains: list[str]) -> np.ndarray:
    """Shares in the domains' order."""
    return np.array([shares.get(name, 0.0) for name in domains])
