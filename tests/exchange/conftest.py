"""Outputs as a run leaves them: real text counted by the real preparation, without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.config import RunConfig, dump_config
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.output.result import write_mixture
from opmix_ray.output.state import CONFIG, RunState
from opmix_ray.storage import Storage
from tests.sources.megatron_files import write_indexed
from tests.support import TinyRun

MIXTURE = {"code": 0.15, "german": 0.6, "mathematics": 0.25}
SWEEP = {
    "ratios.csv": "run,code,german,mathematics\nt0,0.2,0.5,0.3\nt1,0.3,0.4,0.3\n",
    "metrics.csv": "run,eval_code_loss,eval_german_loss,eval_mathematics_loss\nt0,1.5,2.5,3.5\nt1,1.4,2.6,3.5\n",
}
WriteOutput = Callable[..., "Output"]


class Output:
    """A run's output directory, its configuration and its data."""

    def __init__(self, directory: Path, config: RunConfig, prepared: Prepared) -> None:
        self.directory, self.config, self.prepared = directory, config, prepared

    def lengths(self) -> dict[str, float]:
        """Tokens per document."""
        return {n: d.train_tokens / d.train_documents for n, d in self.prepared.domains.items()}

    def paths(self) -> dict[str, list[str]]:
        """Paths of the domains' data."""
        return {
            n: [s.path] if isinstance(s.path, str) else s.path for n, s in self.config.data.domains.items()
        }


def write_output(
    directory: Path, config: RunConfig, mixture: Mapping[str, float] = MIXTURE, *, sweep: bool = True
) -> Output:
    """What is on disk after a decision, as far as an export reads it."""
    storage = Storage(str(directory))
    prepared = prepare(config)
    storage.write_text(CONFIG, dump_config(config))
    history = [{"step": 0, "stage": config.stages[0].name, "why": "start", "mixture": dict(mixture)}]
    write_mixture(storage, mixture, history, prepared)
    RunState(step=6, stage=config.stages[0].name, mixture=dict(mixture)).save(storage)
    for name, text in SWEEP.items() if sweep else ():
        storage.write_text(f"decisions/000/{name}", text)
    return Output(directory, config, prepared)


@pytest.fixture(scope="module")
def text_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Three domains of JSONL."""
    directory = tmp_path_factory.mktemp("text")
    return write_output(directory / "out", TinyRun(tiny_data, directory).load())


def token_run(kind: str, text_run: Output, directory: Path) -> Output:
    """The same domains as token files: `megatron` (.bin and .idx) or `olmo` (.npy as OLMo writes them)."""
    sources: dict[str, Any] = {}
    for name, domain in text_run.prepared.domains.items():
        store = domain.train()
        documents = [[row.tolist()] for row in store]
        if kind == "megatron":
            sources[name] = {"path": str(write_indexed(directory / f"{name}_text_document", documents))}
        else:
            place = directory / name
            place.mkdir()
            store.batch(range(len(store)))[0].astype("<u2").tofile(place / "part-0.npy")
            sources[name] = {"path": str(place)}
    tree = text_run.config.model_dump(mode="json")
    tree["data"]["domains"] = sources
    return write_output(directory / "out", RunConfig.model_validate(tree))


@pytest.fixture(scope="module")
def megatron_run(text_run: Output, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Three domains of Megatron's indexed data sets."""
    return token_run("megatron", text_run, tmp_path_factory.mktemp("megatron"))


@pytest.fixture(scope="module")
def olmo_run(text_run: Output, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Three domains of raw token files in directories."""
    return token_run("olmo", text_run, tmp_path_factory.mktemp("olmo"))


@pytest.fixture(scope="module")
def hf_run(text_run: Output, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Three domains as `datasets.save_to_disk` leaves them."""
    from datasets import Dataset

    directory = tmp_path_factory.mktemp("hf")
    sources: dict[str, Any] = {}
    for name, paths in text_run.paths().items():
        rows = [json.loads(line) for line in Path(paths[0]).read_text(encoding="utf-8").splitlines()]
        Dataset.from_list(rows).save_to_disk(directory / name)
        sources[name] = {"path": str(directory / name), "format": "hf"}
    tree = text_run.config.model_dump(mode="json")
    tree["data"]["domains"] = sources
    return write_output(directory / "out", RunConfig.model_validate(tree))


@pytest.fixture(scope="module")
def chat_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Two domains of prompts and answers, one of them in two files."""
    directory = tmp_path_factory.mktemp("chat")
    tiny = TinyRun(tiny_data, directory)

    def rows(start: int, count: int, words: int) -> str:
        row = {"ask": "How much is it?", "say": " ".join(["ten"] * words)}
        return "".join(
            json.dumps({**row, "ask": f"{i}: {row['ask']}"}) + "\n" for i in range(start, start + count)
        )

    (directory / "short.jsonl").write_text(rows(0, 200, 2))
    (directory / "long-a.jsonl").write_text(rows(1000, 90, 12))
    (directory / "long-b.jsonl").write_text(rows(2000, 30, 12))
    columns = {"prompt_column": "ask", "completion_column": "say"}
    tiny.tree["data"]["domains"] = {
        "short": {"path": str(directory / "short.jsonl"), **columns},
        "long": {"path": str(directory / "long-*.jsonl"), **columns},
    }
    return write_output(directory / "out", tiny.load(), {"short": 0.5, "long": 0.5}, sweep=False)
