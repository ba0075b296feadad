"""Columns are told by names and values; amounts come out right from a part of a file."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from opmix_ray.errors import UserError
from opmix_ray.init import inspect as reading
from opmix_ray.init.begin import look_at
from opmix_ray.init.discover import discover
from opmix_ray.init.inspect import Domain, choose_columns, inspect_part

WORDS = "the quick brown fox jumps over the lazy dog " * 5
ASKS, SAYS = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "1", "text": "a"}, {"text_column": "text"}),
        ({"url": "http://x", "content": "a"}, {"text_column": "content"}),
        ({"source": "x", "story": "a much longer value"}, {"text_column": "story"}),
        ({"prompt": "a", "completion": "b"}, {"prompt_column": "prompt", "completion_column": "completion"}),
        (
            {"instruction": "a", "input": "", "output": "b"},
            {"prompt_column": "instruction", "completion_column": "output"},
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, {"messages_column": "messages"}),
        ({"rejected": [ASKS, SAYS], "chosen": [ASKS, SAYS]}, {"messages_column": "chosen"}),
        ({"rejected": f"{WORDS} {WORDS}", "chosen": WORDS}, {"text_column": "chosen"}),
        (
            {"attention_mask": [1] * 9, "input_ids": [5] * 9, "labels": [-100] * 9},
            {"tokens_column": "input_ids"},
        ),
        ({"bbox": [3, 4, 5, 6] * 99, "Body_Text": WORDS}, {"text_column": "Body_Text"}),
        (
            {"prompt": {"text": WORDS}, "completion": {"text": WORDS}},
            {"prompt_column": "prompt.text", "completion_column": "completion.text"},
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt_column": "prompt", "completion_column": "chosen"},
        ),
        ({"input_ids": [1, 2], "n": 2}, {"tokens_column": "input_ids"}),
        ({"id": "7", "input_ids": [1, 2, 3]}, {"tokens_column": "input_ids"}),
        ({"context": WORDS, "answers": {"start": [3]}, "places": [3]}, {"text_column": "context"}),
    ],
)
def test_columns(row: dict[str, Any], expected: dict[str, str]) -> None:
    assert choose_columns([row, {**row, "extra": None}], "f") == expected


def test_share_gpt_is_messages() -> None:
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    assert choose_columns(rows, "f") == {"messages_column": "conversations"}


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"id": "a" * 32, "content": WORDS.encode() * 20}, "content"),
        ({"url": "http://x", "sentences": [WORDS] * 5}, "sentences"),
        ({"id": "7", "data": [WORDS, WORDS]}, "data"),
    ],
)
def test_text_that_is_not_read_is_told_and_no_id_is_taken_for_it(row: dict[str, Any], unread: str) -> None:
    with pytest.raises(
        UserError, match=f"most of what its rows hold is in `{unread}`, whose values are no text"
    ):
        choose_columns([row], "f")


def test_questions_without_an_answer_are_refused_also_where_they_are_alone() -> None:
    with pytest.raises(UserError, match="no column holds messages with answers to them"):
        choose_columns([{"request": {"messages": [ASKS]}, "response": {"n": 1}}], "f")


def test_a_value_of_another_kind_does_not_hide_a_column() -> None:
    rows: list[dict[str, Any]] = [{"text": WORDS}] * 20 + [{"text": 7}, {"text": float("nan")}]
    assert choose_columns(rows, "f") == {"text_column": "text"}


def test_what_is_not_taken_is_named_lists_nested_columns_and_judgements_too(tmp_path: Path) -> None:
    row = {
        "prompt": WORDS,
        "completion": WORDS,
        "label": False,
        "translation": {"de": WORDS},
        "notes": [WORDS],
    }
    rows = [{**row, "prompt": f"{n} {WORDS}"} for n in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (part,) = discover([str(tmp_path / "a.jsonl")])
    assert inspect_part(part).beside == ["label", "translation.de", "notes"]


def test_a_column_that_the_first_row_lacks_is_read(tmp_path: Path) -> None:
    rows = [{"meta": 1}, *({"text": f"{n} {WORDS}"} for n in range(9)), {"text": float("nan")}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (part,) = discover([str(tmp_path / "a.jsonl")])
    assert inspect_part(part).documents == 9


def test_a_column_with_questions_alone_is_no_conversation() -> None:
    asked, said = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    with pytest.raises(
        UserError, match=r"no column holds messages with answers to them \(it has prompt, completion\)"
    ):
        choose_columns([{"prompt": asked, "completion": said}], "f")
    rows = [{"prompt": asked, "chosen": asked + said, "rejected": asked + said}]
    assert choose_columns(rows, "f") == {"messages_column": "chosen"}


def test_copies_of_a_file_are_left_out_and_named(tmp_path: Path) -> None:
    rows = {
        name: "".join(json.dumps({"text": f"{name} {n} {WORDS}"}) + "\n" for n in range(40)) for name in "ab"
    }
    for name, content in (("a", "a"), ("a (1)", "a"), ("b", "b"), ("sub/copy", "b")):
        (tmp_path / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(rows[content])
    said: list[str] = []
    assert [domain.documents for domain in look_at([str(tmp_path)], said.append)] == [40, 40]
    assert sum("is a copy of" in line for line in said) == 2


def test_text_that_is_not_trained_on_is_named(tmp_path: Path) -> None:
    row = {"instruction": WORDS, "input": WORDS, "output": WORDS, "category": "a b", "id": "7" * 99}
    rows = [row | {"output": f"{n:03d}{WORDS}"} for n in range(100)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = look_at([str(tmp_path / "pairs.jsonl")], lambda _: None)[0]
    assert domain.beside == ["input"]
    assert domain.whole == 2 * len(WORDS) + 3


def test_no_column_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"it has a, b"):
        choose_columns([{"a": 1, "b": 2.0}], "f")


def test_a_first_row_is_no_name_of_a_column(tmp_path: Path) -> None:
    row = "a first row of text that nobody named, 1\n"
    (tmp_path / "a.csv").write_text(row.replace(",", ";") * 40)
    with pytest.raises(UserError, match=r"a\.csv: --data: has no line with the names of its columns"):
        of(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(" text ; n \n" + row.replace(",", ";") * 40)
    assert (of(tmp_path / "a.csv").columns, of(tmp_path / "a.csv").documents) == ({"text_column": "text"}, 40)


def of(path: Path) -> Domain:
    return inspect_part(discover([str(path)])[0])


def test_few_documents_are_counted_exactly(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"{i} {WORDS}"}) + "\n" for i in range(20)))
    domain = of(file)
    assert domain.documents == 20
    assert domain.size == sum(len(f"{i} {WORDS}") for i in range(20))
    out, rest = domain.held_out(0.3, 32)
    assert out + rest == domain.size
    assert domain.held_out(1.0, 32) == (domain.size, 0)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_many_documents_are_estimated_from_the_first(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BYTES", 1 << 14 if ending == "jsonl.gz" else 1 << 18)
    texts = [f"{i * 7919 % 1000003:x} {i * i:x} {i:o} {WORDS[i % 90 :]}" for i in range(4000)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    file = tmp_path / f"a.{ending}"
    file.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    domain = of(file)
    assert domain.documents == pytest.approx(len(texts), rel=0.15)
    assert domain.size == pytest.approx(sum(map(len, texts)), rel=0.2)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_first_line_longer_than_what_is_looked_at_is_a_row(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BYTES", 1 << 12)
    texts = [np.random.default_rng(n).bytes(6_000).hex() for n in range(30)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[ending]
    (tmp_path / f"a.{ending}").write_bytes(pack(content))
    assert (of(tmp_path / f"a.{ending}").documents, of(tmp_path / f"a.{ending}").size) == (30, 360_000)


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": [WORDS] * 3000, "n": range(3000)}), file)
    domain = of(file)
    assert (domain.columns, domain.documents) == ({"text_column": "body"}, 3000)
    assert domain.size == 3000 * len(WORDS)


def test_token_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\1\0" * 500)
    assert (of(tmp_path / "a.bin").kind, of(tmp_path / "a.bin").size) == ("tokens", 500)


def test_a_single_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    with pytest.raises(UserError, match="single document"):
        of(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is empty"), ("\n\n", "holds no row"), ("[1]\n", "line 1 is JSON but not an object")],
)
def test_broken_files(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=said):
        of(tmp_path / "a.jsonl")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n"


def _array(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", POINTER, "is a pointer of Git LFS, not the file itself"),
        ("a.npy", POINTER, "is a pointer of Git LFS, not the file itself"),
        ("a.bin", bytes(2001), "cannot be read: the size is not a multiple of 2 bytes"),
        ("a.npy", _array(np.zeros(200)), "cannot be read: must hold a flat array of integers, not float64"),
        ("a.npy", _array(np.zeros((9, 64), np.uint16)), "cannot be read: must hold a flat array of integers"),
        ("a.npy", _array(np.zeros(900, np.uint16))[:-9], "cannot be read: the array is cut off"),
        ("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops   ", "cannot be read: "),
    ],
)
def test_files_that_hold_no_ids_are_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (part,) = discover([str(tmp_path / name)])
    with pytest.raises(UserError) as found:
        inspect_part(part)
    assert str(found.value).startswith(f"{tmp_path / name}: --data: {said}")
