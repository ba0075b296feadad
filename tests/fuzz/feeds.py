"""What reads each kind of file, as the product does: `FEEDS[name](rng, directory)` damages one, and reads it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import datasets
import gguf
import numpy as np
import torch
import yaml

from opmix_ray.commands.export import write_studies
from opmix_ray.commands.follow import run_status, status_words
from opmix_ray.config import ModelConfig, SourceConfig, load_config
from opmix_ray.data.tokenizer import load_tokenizer_from
from opmix_ray.exchange import FORMATS, read_weights
from opmix_ray.exchange.handover import Handover, Part
from opmix_ray.fit import predict_command, read_sweep
from opmix_ray.init.begin import look_at
from opmix_ray.model.load import load_model, save_model
from opmix_ray.model.probe import load_probe
from opmix_ray.report import write_report
from opmix_ray.sources.source import iter_documents
from opmix_ray.storage import Storage
from opmix_ray.train.checkpoint import TrainState, finish_checkpoint, read_state, read_tensors, write_weights
from tests.fuzz.damage import broken, retyped
from tests.fuzz.files import COLUMNS, FILES, PROBE, SWEEP
from tests.model.tiny_models import VOCAB, tiny
from tests.report.synthetic import make_run
from tests.sources.megatron_files import write_indexed
from tests.support import DEMO, ROOT

BARE = ("data.npy", "data.txt", "data.csv")  # read without a word on columns
Feed = Callable[[random.Random, Path], object]


def _read(path: Path | str, **settings: Any) -> None:
    for document in iter_documents(SourceConfig(path=str(path), **settings), "d"):
        document.length()


def _source(name: str) -> Feed:
    def feed(rng: random.Random, directory: Path) -> None:
        (directory / name).write_bytes(broken(rng.choice(FILES[name]), rng))
        _read(directory / name, **({} if name in BARE else rng.choice(COLUMNS)))

    return feed


def _wrong_rows(rng: random.Random, directory: Path) -> None:
    lines = [json.loads(line) for line in FILES["data.jsonl"][0].splitlines()]
    (directory / "data.jsonl").write_text("".join(json.dumps(retyped(line, rng)) + "\n" for line in lines))
    _read(directory / "data.jsonl", **rng.choice(COLUMNS[:1] + COLUMNS[2:]))


def _probe(name: str) -> Feed:
    def feed(rng: random.Random, directory: Path) -> None:
        for file, content in PROBE.items():
            (directory / file).write_bytes(_damaged(file, content, rng) if file == name else content)
        load_probe(directory)

    return feed


def _damaged(name: str, content: bytes, rng: random.Random) -> bytes:
    """Bytes of a file after an accident to them or, of JSON, to its types."""
    if name.endswith(".json") and rng.random() < 0.6:
        return json.dumps(retyped(json.loads(content), rng)).encode()
    if name.endswith(".jsonl") and rng.random() < 0.6:
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(retyped(json.loads(lines[at]), rng)).encode()
        return b"\n".join(lines) + b"\n"
    return broken(content, rng)


def _copy(whole: Path, directory: Path, rng: random.Random, only: tuple[str, ...] = ()) -> Path:
    """A copy of a directory in which one file is damaged."""
    place = directory / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and (not only or file.name in only)]
    file = rng.choice(files)
    file.write_bytes(_damaged(file.name, file.read_bytes(), rng))
    return place


@cache
def _whole(kind: str) -> Path:
    """A directory with whole files of a kind, made once."""
    place = Path(mkdtemp(prefix="opmix-fuzz-"))
    if kind == "run":
        make_run(place, decisions=1, trials=6, steps=60)
    elif kind == "megatron":
        write_indexed(place / "data", [[[1, 2, 3], [4]], [[5, 6]], [[7] * 40]])
    elif kind == "saved":
        rows = [{"text": "some words", "n": 1}] * 20
        datasets.Dataset.from_list(rows).save_to_disk(str(place / "saved"))
    elif kind == "tokenizer":
        shutil.copytree(DEMO / "tokenizer", place, dirs_exist_ok=True)
    elif kind == "weights":
        save_model(tiny("llama"), place)
    elif kind == "gguf":
        _write_gguf(place / "model.gguf")
    elif kind == "exported":
        parts = tuple(
            Part(name, share, paths=(f"/data/{name}.jsonl",), documents=100, tokens=5000)
            for name, share in (("web", 0.5), ("code", 0.3), ("books", 0.2))
        )
        for name, format in FORMATS.items():
            (place / name).mkdir()
            written = format.write(Handover("a run", parts, planned_tokens=10_000), format.unit)
            for file, text in written.files.items():
                if file != "dataset_info.json":  # which holds no weights
                    (place / name / f"{name}-{file}").write_text(text)
    elif kind == "checkpoint":
        model = tiny("llama")
        optimizer = torch.optim.AdamW(model.parameters())
        write_weights(place, model, None, optimizer.state_dict())
        finish_checkpoint(place, [torch.get_rng_state()], TrainState(step=3))
    return place


def _write_gguf(file: Path) -> None:
    """A llama of two layers in GGUF's own words."""
    model = tiny("llama")
    writer = gguf.GGUFWriter(str(file), "llama")
    config = model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        known = names.get_name(name, try_suffixes=(".weight",))
        if known is not None:
            writer.add_tensor(known, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _megatron(rng: random.Random, directory: Path) -> None:
    _read(_copy(_whole("megatron"), directory, rng) / "data")


def _saved(rng: random.Random, directory: Path) -> None:
    _read(_copy(_whole("saved"), directory, rng) / "saved", format="hf")


def _tokenizer(rng: random.Random, directory: Path) -> None:
    load_tokenizer_from(str(_copy(_whole("tokenizer"), directory, rng)))


def _weights(rng: random.Random, directory: Path) -> None:
    place = _copy(_whole("weights"), directory, rng)
    load_model(ModelConfig(path=str(place)), vocab_size=VOCAB, eos_token_id=0, seed=0)


def _gguf(rng: random.Random, directory: Path) -> None:
    place = _copy(_whole("gguf"), directory, rng)
    load_model(ModelConfig(path=str(place), gguf_file="model.gguf"), vocab_size=VOCAB, eos_token_id=0, seed=0)


def _checkpoint(rng: random.Random, directory: Path) -> None:
    place = _copy(_whole("checkpoint"), directory, rng, ("state.json", "optimizer.pt", "rng.pt"))
    read_state(place)
    for name in ("optimizer.pt", "rng.pt"):
        read_tensors(place, name)


def _run(name: str) -> Feed:
    """A run's output of which one file is damaged, and all that shows it."""

    def feed(rng: random.Random, directory: Path) -> None:
        place = _copy(_whole("run"), directory, rng, (name,))
        storage, decision = Storage(str(place)), place / "decisions/000"
        shown: list[Callable[[], object]] = [
            lambda: status_words(run_status(str(place))),
            lambda: write_report(storage),
            lambda: write_studies(str(place), directory / "studies.log"),
            lambda: predict_command(str(decision), decision / "ratios.csv", directory / "p.csv"),
            lambda: read_weights(str(place / "mixture.json")),
        ]
        rng.choice(shown)()

    return feed


def _sweep(rng: random.Random, directory: Path) -> None:
    """A sweep's two tables of which one is damaged."""
    name = rng.choice(list(SWEEP))
    for file, content in SWEEP.items():
        (directory / file).write_bytes(broken(content, rng) if file == name else content)
    read_sweep(directory / "ratios.csv", directory / "metrics.csv")


def _exported(rng: random.Random, directory: Path) -> None:
    """A mixture in another trainer's format."""
    file = rng.choice([each for each in sorted(_whole("exported").rglob("*")) if each.is_file()])
    (directory / file.name).write_bytes(_damaged(file.name, file.read_bytes(), rng))
    read_weights(str(directory / file.name))


def _begun(rng: random.Random, directory: Path) -> None:
    """A folder of data of which `opmix init` makes domains."""
    place = directory / "data"
    shutil.rmtree(place, ignore_errors=True)
    for name, contents in FILES.items():
        folder, content = place / name.replace(".", "-"), rng.choice(contents)
        folder.mkdir(parents=True)
        (folder / name).write_bytes(broken(content, rng) if rng.random() < 0.4 else content)
    look_at([str(place)], lambda line: None)


def _yaml(rng: random.Random, directory: Path) -> None:
    file, whole = directory / "run.yaml", (ROOT / "examples/quickstart.yaml").read_bytes()
    if rng.random() < 0.5:
        file.write_text(yaml.safe_dump(retyped(yaml.safe_load(whole), rng)))
    else:
        file.write_bytes(broken(whole, rng))
    load_config(file)


RUN_FILES = ("state.json", "config.yaml", "metrics.jsonl", "mixture.json", "result.json", "decision.json", "law.json",
             "trials.jsonl", "ratios.csv")  # fmt: skip
FEEDS: dict[str, Feed] = {
    **{name: _source(name) for name in FILES},
    "wrong rows": _wrong_rows,
    **{name: _probe(name) for name in PROBE},
    "run.yaml": _yaml,
    "sweep": _sweep,
    "exported mixture": _exported,
    "init": _begun,
    "megatron": _megatron,
    "save_to_disk": _saved,
    "tokenizer": _tokenizer,
    "weights": _weights,
    "gguf": _gguf,
    "checkpoint": _checkpoint,
    **{f"run: {name}": _run(name) for name in RUN_FILES},
}
