"""Data, tokenizers and models that do not fit; and unusual data that do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.cli.conftest import Opmix
from tests.support import DEMO, TinyRun

NAMES = ["code", "german", "mathematics"]


def _replace(tiny: TinyRun, content: bytes, name: str = "new.jsonl") -> Path:
    """Another file for the domain `code`."""
    file = tiny.directory / name
    file.write_bytes(content)
    tiny.tree["data"]["domains"]["code"] = {"path": name}
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    return file


def _jsonl(*texts: str, column: str = "text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("command", ["validate", "prepare", "run"])
def test_empty_file(opmix: Opmix, tiny: TinyRun, command: str) -> None:
    file = _replace(tiny, b"")
    line = opmix(command, tiny.write()).only_error()
    assert f"{file}: data.domains.code.path: holds no document; check that the files are not empty" in line


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00\x01" * 50, b"\x89PNG\r\n\x1a\n\x00\x00", b"plain words\n"]
)
def test_file_that_is_not_text_or_not_json(opmix: Opmix, tiny: TinyRun, content: bytes) -> None:
    file = _replace(tiny, content)
    line = opmix("validate", tiny.write()).only_error()
    assert str(file) in line
    assert "data.domains.code" in line


def test_missing_column_names_those_there_are(opmix: Opmix, tiny: TinyRun) -> None:
    file = _replace(tiny, _jsonl("some words", column="content"))
    line = opmix("validate", tiny.write()).only_error()
    assert str(file) in line
    assert (
        "data.domains.code.text_column: the file has no column 'text'; set text_column: content; it has: content"
        in line
    )


def test_a_document_longer_than_anything_works(opmix: Opmix, tiny: TinyRun) -> None:
    """One document of a megabyte in one line, a thousand times a sequence and longer than any buffer."""
    short = [
        f"A short text, number {number}, with a few words in it so that it counts." for number in range(60)
    ]
    long = " ".join(f"word{number}" for number in range(120_000))
    _replace(tiny, _jsonl(long, *short))
    ended = opmix("prepare", tiny.write(), "--json")
    assert ended.code == 0, ended.err
    rows = {row["domain"]: row for row in json.loads(ended.out)}
    assert rows["code"]["train_tokens"] + rows["code"]["eval_tokens"] > 200_000


def test_one_domain_is_enough_where_nothing_is_decided(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["data"]["domains"] = {"code": tiny.tree["data"]["domains"]["code"]}
    line = opmix("validate", tiny.write()).only_error()
    assert "stages.0.decide_at = [0.5]: a decision needs at least two domains; add a domain" in line
    assert "at least two domains" in opmix("search", tiny.write(), "-o", tiny.directory / "out").only_error()
    tiny.tree["stages"][0]["decide_at"] = []
    ended = opmix("validate", tiny.write())
    assert (ended.code, ended.err) == (0, "")
    assert "nothing wrong was found" in ended.out


def test_evaluation_parts_smaller_than_a_sequence_are_all_named(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    for name in NAMES:
        (tiny.directory / f"{name}.jsonl").write_bytes(_jsonl("too short", "this too"))
        tiny.tree["data"]["domains"][name] = {"path": f"{name}.jsonl"}
    ended = opmix("validate", tiny.write())
    assert ended.code == 2
    assert len(ended.errors) == len(NAMES)
    for name, line in zip(NAMES, ended.errors, strict=True):
        assert f"{name}.jsonl: data.domains.{name}: the held-out part has" in line
        assert "tokens in 1 documents, less than one sequence of 32; raise data.eval_fraction" in line
    assert not list((tiny.directory / "cache" / "domains").glob("*")), "half-prepared data were left"


def test_an_evaluation_set_smaller_than_a_sequence(opmix: Opmix, tiny: TinyRun) -> None:
    (tiny.directory / "held.jsonl").write_bytes(_jsonl("too short"))
    tiny.tree["evaluation"]["sets"] = {"held": {"path": "held.jsonl"}}
    line = opmix("run", tiny.write(), "-o", tiny.directory / "out").only_error()
    assert "held.jsonl: evaluation.sets.held: " in line
    assert "add text to this evaluation set" in line


def test_fewer_sequences_than_a_batch(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["train"]["batch_size"] = 1_000_000
    line = opmix("validate", tiny.write()).only_error()
    assert "stages.0 = only: its domains have" in line
    assert "fewer than one batch of 1000000; lower train.batch_size" in line


def test_repetition_caps_that_cannot_be_met(opmix: Opmix, tiny: TinyRun) -> None:
    for source in tiny.tree["data"]["domains"].values():
        source["max_epochs"] = 0.001
    line = opmix("validate", tiny.write()).only_error()
    assert "stages.0: max_epochs: the plan asks for 1,536 tokens" in line
    assert "too few for its part" in line
    for name in NAMES:
        assert f"{name} has " in line


def test_a_tokenizer_without_end_of_text(opmix: Opmix, tiny: TinyRun) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    file = tiny.directory / "tokenizer.json"
    tokenizer.save(str(file))
    tiny.tree["tokenizer"] = {"path": "tokenizer.json"}
    line = opmix("validate", tiny.write()).only_error()
    assert f"{tiny.file}: tokenizer.path = {file}: has no end-of-text token" in line
    assert 'name its token as "eos_token"' in line


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with 100 tokens."""
    config = AutoConfig.for_model(
        "llama", vocab_size=100, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_base_model_of_another_vocabulary(
    opmix: Opmix, tiny: TinyRun, small_vocabulary: Path, command: str
) -> None:
    tiny.tree["model"] = {"path": str(small_vocabulary)}
    line = opmix(command, tiny.write()).only_error()
    assert f"{tiny.file}: model.path = {small_vocabulary}: its embedding has 100 rows, the tokenizer " in line
    assert "leave tokenizer.path out" in line


def test_a_model_directory_without_weights_or_without_anything(
    opmix: Opmix, tiny: TinyRun, small_vocabulary: Path
) -> None:
    directory = tiny.directory / "model"
    directory.mkdir()
    tiny.tree["model"] = {"path": "model"}
    assert (
        f"model.path = {directory}: is not a model's directory"
        in opmix("validate", tiny.write()).only_error()
    )
    shutil.copy(small_vocabulary / "config.json", directory)
    assert f"model.path = {directory}: holds no weights" in opmix("validate", tiny.write()).only_error()


def test_search_from_a_directory_that_is_not_there(opmix: Opmix, tiny: TinyRun) -> None:
    output = tiny.directory / "out"
    line = opmix("search", tiny.write(), "--model", "/nowhere", "-o", output).only_error()
    assert "--model = /nowhere: no such directory" in line
    assert not output.exists()


def test_train_a_tokenizer_on_nothing(opmix: Opmix, tiny: TinyRun) -> None:
    _replace(tiny, b"\n\n")
    tiny.tree["tokenizer"] = {"train_vocab_size": 400}
    assert "data.domains.code.path: holds no document" in opmix("validate", tiny.write()).only_error()
    tiny.tree["tokenizer"] = {"train_vocab_size": 400, "path": str(DEMO / "tokenizer")}
    errors = opmix("validate", tiny.write()).errors
    assert any(
        "together with tokenizer.train_vocab_size" in line and "keep one of them" in line for line in errors
    )
