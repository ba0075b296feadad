"""opmix init on real files: what it writes is read, commented, and right."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from opmix_ray.config import TokenizerConfig, load_config
from opmix_ray.data.tokenizer import load_tokenizer_from, vocabulary_size
from opmix_ray.init import begin
from opmix_ray.runner import forecast
from opmix_ray.runner.validate import check_all
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.support import DEMO, DOMAINS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(forecast, "STEPS", 1)
    monkeypatch.setattr(begin, "SPEED_TEST", 512)
    monkeypatch.setattr(forecast, "TIMED", 512)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_files_become_a_run(opmix: Opmix, tiny_data: Path, home: Path) -> None:
    files = [tiny_data / f"{name}.jsonl" for name in DOMAINS]
    ended = opmix("init", "mine", "--minutes", "1", "--data", *files, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [row["domain"] for row in found["domains"]] == list(DOMAINS)
    file = home / "mine" / "opmix.yaml"
    config = load_config(file)
    assert list(config.data.domains) == list(DOMAINS)
    assert config.stages[0].steps == found["plan"]["steps"]
    assert config.stages[0].decide_at
    assert {"trials", "sequences"}.isdisjoint(config.search.model_fields_set), "the budget sizes decisions"
    assert check_all(config, file) == []
    text = file.read_text()
    assert text.count("#") > 15
    assert text.count("#") == text.count("  #") + sum(line.startswith("#") for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 130
    said = {row["domain"]: row["tokens"] for row in found["domains"]}
    prepared = json.loads(opmix("prepare", file, "--json").out)
    for row in prepared:
        assert said[row["domain"]] == pytest.approx(row["train_tokens"], rel=0.25)
    again = opmix("init", "mine", "--data", *files)
    assert "is there already; use --overwrite" in again.only_error()


def test_chat_messages_get_a_tokenizer_with_a_template(opmix: Opmix, tiny_data: Path, home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "code.jsonl").symlink_to(tiny_data / "code.jsonl")
    talk = [
        {"role": "user", "content": "How much is 2 and 2?"},
        {"role": "assistant", "content": "It is 4, as ever."},
    ]
    lines = [
        json.dumps({"messages": [*talk, {"role": "user", "content": str(i)}, talk[1]]}) for i in range(700)
    ]
    (home / "data" / "chat.jsonl").write_text("\n".join(lines) + "\n")
    ended = opmix("init", ".", "--minutes", "1", "--data", "data")
    assert ended.code == 0, ended.err
    tree = yaml.safe_load((home / "opmix.yaml").read_text())
    assert tree["data"]["domains"]["chat"] == {
        "path": "data/chat.jsonl",
        "messages_column": "messages",
        "max_epochs": 4,
    }
    assert tree["tokenizer"] == {"path": "tokenizer"}
    assert check_all(load_config("opmix.yaml"), "opmix.yaml") == []


def test_the_template_for_chat_messages_writes_tools_and_calls(
    opmix: Opmix, tiny_data: Path, home: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How warm is it in place {i}?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"type": "function", "function": {"name": "weather", "arguments": {"place": i}}}
                    ],
                },
                {"role": "tool", "content": str(i)},
                {"role": "assistant", "content": f"It is {i} degrees."},
            ],
            "tools": tools,
        }
        for i in range(700)
    ]
    (home / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["calls.jsonl", tiny_data / "code.jsonl"]
    begun = opmix("init", ".", "--minutes", "1", "--data", *files, "--json")
    assert begun.code == 0, begun.err
    prepared = opmix("prepare", "opmix.yaml", "--json")
    assert prepared.code == 0, prepared.err
    said, is_so = json.loads(begun.out)["domains"][0]["tokens"], json.loads(prepared.out)[0]["train_tokens"]
    assert said == pytest.approx(is_so, rel=0.1), "a sequence for each conversation"
    tokenizer = load_tokenizer_from("tokenizer")
    text = tokenizer.apply_chat_template(rows[7]["messages"], tools=tools, tokenize=False)
    call = {"name": "weather", "arguments": {"place": 7}}
    assert json.loads(text.partition("<tool_call>")[2].partition("</tool_call>")[0]) == call
    assert json.loads(text.partition("<tools>")[2].partition("</tools>")[0]) == tools[0]


def test_sequences_are_long_enough_for_pairs(opmix: Opmix, tiny_data: Path, home: Path) -> None:
    rows = [{"prompt": f"Tell {i} again. " * 60, "completion": f"It was told {i} times."} for i in range(300)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["pairs.jsonl", tiny_data / "code.jsonl"]
    begun = opmix("init", ".", "--minutes", "1", "--data", *files, "--json")
    assert begun.code == 0, begun.err
    assert load_config("opmix.yaml").data.seq_len == 512
    assert opmix("prepare", "opmix.yaml").code == 0


def test_a_pretrained_model_is_named_from_where_the_file_lies(
    opmix: Opmix, tiny_data: Path, home: Path
) -> None:
    shape = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    tokenizer = load_tokenizer_from(str(DEMO / "tokenizer"))
    shape.vocab_size = vocabulary_size(tokenizer)
    LlamaForCausalLM(shape).save_pretrained("checkpoint")
    tokenizer.save_pretrained("checkpoint")
    files = [tiny_data / f"{name}.jsonl" for name in DOMAINS]
    ended = opmix("init", "mine", "--minutes", "1", "--model", "checkpoint", "--data", *files)
    assert ended.code == 0, ended.err
    config = load_config(home / "mine" / "opmix.yaml")
    assert config.model.path == str(home / "checkpoint")
    assert config.data.seq_len <= 64
    assert config.tokenizer == TokenizerConfig()
    assert check_all(config, "mine/opmix.yaml") == []


def test_what_fails_leaves_nothing(opmix: Opmix, home: Path) -> None:
    talk = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "As ever."}]
    (home / "chat.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(900)))
    (home / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"some words {i} " * 9}) + "\n" for i in range(900))
    )
    (home / "tokenizer").mkdir()
    line = opmix("init", ".", "--data", "chat.jsonl", "text.jsonl").only_error()
    assert "tokenizer: is there already" in line
    assert not (home / "opmix.yaml").exists()
    assert list((home / "tokenizer").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["."], "--data: no data is named"),
        ([".", "--data", "nowhere"], "--data = nowhere: no file matches"),
        ([".", "--data", "a.jsonl"], "holds one domain \\(a\\)"),
        (["a.jsonl", "--data", "b.jsonl"], "DIR = a.jsonl: is a file"),
        ([".", "--data", "a.jsonl", "ids.bin"], "ids.bin: holds token ids"),
        (
            [".", "--data", "a.jsonl", "b.jsonl", "--model", "./none"],
            "--model = ./none: cannot be read as a model",
        ),
    ],
)
def test_wrong_input(opmix: Opmix, home: Path, arguments: list[str], said: str) -> None:
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} {i} some words of text"}) for i in range(50)]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    (home / "ids.bin").write_bytes(b"\1\0" * 5000)
    ended = opmix("init", *arguments)
    assert re.search(said, ended.only_error()), ended.err
    assert not (home / "opmix.yaml").exists()


def test_a_messy_folder_becomes_a_run(opmix: Opmix, tiny_data: Path, home: Path) -> None:
    """Every format; what is bad, empty, hidden or about the data is named, and nothing of it is read."""
    rows = {name: (tiny_data / f"{name}.jsonl").read_text().splitlines() for name in DOMAINS}
    texts = {name: [json.loads(line)["text"] for line in lines] for name, lines in rows.items()}
    data = home / "data"
    (data / "src" / "inner").mkdir(parents=True)
    for number, text in enumerate(texts["code"]):
        (data / "src" / ("inner" if number % 2 else "") / f"m{number}.py").write_text(text)
    (data / "book.txt").write_text("\n\n".join(texts["german"]) + "\n\n" + "\n\n".join(texts["code"]))
    pq.write_table(
        pa.table({"doc": [{"text": text} for text in texts["mathematics"]]}), data / "nested.parquet"
    )
    (data / "array.json").write_text(json.dumps([{"content": text} for text in texts["german"]]))
    with (data / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "body"], *enumerate(texts["mathematics"])])
    (data / "README.md").write_text("# About\n" * 50)
    (data / "empty.jsonl").write_text("")
    (data / "broken.jsonl").write_text("{nonsense\n")
    (data / "latin.txt").write_bytes(b"caf\xe9\n" * 30_000)
    (data / "photo.png").write_bytes(b"\x89PNG")
    (data / ".cache").mkdir()
    ended = opmix("init", "mine", "--minutes", "1", "--data", data)
    assert ended.code == 0, ended.err
    said = ended.out.splitlines()
    for name, problem in (
        ("empty", "is empty"),
        ("broken", "is not JSON"),
        ("latin", "is not UTF-8 text"),
    ):
        assert any(line.startswith("left out: ") and name in line and problem in line for line in said), name
    (ignored,) = (line for line in said if line.startswith("ignored"))
    assert all(name in ignored for name in ("README.md", "photo.png", ".cache"))
    config = load_config(home / "mine" / "opmix.yaml")
    assert set(config.data.domains) == {"src", "book", "nested", "array", "table"}
    assert config.data.domains["nested"].text_column == "doc.text"
    assert config.data.domains["table"].text_column == "body"
    prepared = json.loads(opmix("prepare", home / "mine" / "opmix.yaml", "--json").out)
    assert min(row["train_tokens"] for row in prepared) > 1000


def test_a_folder_with_only_bad_files_names_them_all(opmix: Opmix, home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "a.jsonl").write_text("")
    (home / "data" / "b.csv").write_text("a,a\n1,2\n")
    ended = opmix("init", "mine", "--data", home / "data")
    assert ended.code == 2
    assert ["a.jsonl" in line or "b.csv" in line for line in ended.errors] == [True, True]


def test_ids_of_no_known_width_are_left_out_and_named(opmix: Opmix, tiny_data: Path, home: Path) -> None:
    (home / "data" / "ids").mkdir(parents=True)
    for name in ("code", "german"):
        (home / "data" / f"{name}.jsonl").symlink_to(tiny_data / f"{name}.jsonl")
    (home / "data" / "zeros.bin").write_bytes(bytes(100_000))
    ids = np.random.default_rng(0).integers(0, 250, 60_000)
    ids.astype("<u2").tofile(home / "data" / "ids" / "a.bin")
    (home / "data" / "ids" / "broken.bin").write_bytes(bytes(50_000))
    ended = opmix("init", "mine", "--minutes", "1", "--tokenizer", DEMO / "tokenizer", "--data", "data")
    assert ended.code == 0, ended.err
    said = [line for line in ended.out.splitlines() if line.startswith("left out")]
    assert sorted(line.split(":")[1].strip() for line in said) == ["data/ids/broken.bin", "data/zeros.bin"]
    assert all(
        "--data: may hold ids of 16 or of 32 bits" in line and "token_dtype" not in line for line in said
    )
    config = load_config(home / "mine" / "opmix.yaml")
    assert set(config.data.domains) == {"code", "german", "ids"}
    assert check_all(config, home / "mine" / "opmix.yaml") == []
    alone = opmix(
        "init", "o", "--tokenizer", DEMO / "tokenizer", "--data", "data/zeros.bin", "data/code.jsonl"
    )
    assert alone.code == 2
    assert "data/zeros.bin: --data: may hold ids" in alone.only_error()
