"""A file that is not as the others of its domain is left out by itself, and a domain that is lost is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opmix_ray.init.begin import look_at

TALK = [{"role": "user", "content": "How warm is it?"}, {"role": "assistant", "content": "It is 4 degrees."}]


def rows(path: Path, word: str, many: int = 60, **named: Callable[[str], Any]) -> None:
    named = named or {"text": lambda text: text}
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"{word} number {i} is a sentence of {i * 7 % 113} and some words" for i in range(many)]
    path.write_text(
        "".join(json.dumps({name: make(text) for name, make in named.items()}) + "\n" for text in texts)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("web", "code"):
        rows(tmp_path / f"{name}.jsonl", name, 300)
    for number in range(6):
        rows(tmp_path / "c" / f"part-{number}.jsonl", f"c{number}")
    return tmp_path


def found(data: Path) -> tuple[dict[str, int], list[str]]:
    said: list[str] = []
    return {domain.name: len(domain.part.files) for domain in look_at([str(data)], said.append)}, said


def log(path: Path) -> None:
    path.write_text('{"error": "HTTP 503"}\n')


def without_text(path: Path) -> None:
    path.write_text('{"id": 2}\n')


def nested(path: Path) -> None:
    rows(path, "nested", text=lambda text: {"en": text})


def nested_later(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:30], '{"text": ["a", "b"]}', *lines[30:]]))


def talks(path: Path) -> None:
    rows(path, "talk", messages=lambda text: [*TALK, {"role": "user", "content": text}, TALK[1]])


@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("spoil", [log, without_text, nested, nested_later, talks])
def test_one_odd_file(data: Path, spoil: Callable[[Path], None], place: int) -> None:
    odd = data / "c" / f"part-{place}.jsonl"
    spoil(odd)
    domains, said = found(data)
    assert domains == {"code": 1, "web": 1, "c": 5}
    (line,) = said
    assert line.startswith(f"left out: {odd}: --data: ")


def test_another_schema_of_parquet(data: Path) -> None:
    for number in range(3):
        texts = [f"table {number} has row {i} of some words" for i in range(60)]
        name = "content" if number == 0 else "text"
        (data / "t").mkdir(exist_ok=True)
        pq.write_table(pa.table({name: texts}), data / "t" / f"part-{number}.parquet")
    domains, said = found(data)
    assert domains == {"code": 1, "web": 1, "c": 6, "t": 2}
    assert "t/part-0.parquet: --data: the file has no column 'text'; write it as" in said[0]


def test_many_files_of_text(data: Path) -> None:
    (data / "de").mkdir()
    for number in range(300):
        (data / "de" / f"{number:03}.txt").write_text(f"Das ist der Text {number} von vielen.\n" * 3)
    (data / "de" / "280.txt").write_bytes("Das ist schön.\n".encode("latin-1"))
    domains, said = found(data)
    assert domains["de"] == 299
    assert [line for line in said if "280.txt" in line and "not UTF-8" in line] == said


def test_ids_among_rows(data: Path) -> None:
    (data / "c" / "a.bin").write_bytes(bytes(range(250)) * 400)
    domains, said = found(data)
    assert domains == {"code": 1, "web": 1, "c": 6}
    assert said == [
        f"left out: {data}/c/a.bin: --data: holds token ids, among files of rows; make it a domain of its own"
    ]


def test_a_lost_domain_is_named(data: Path) -> None:
    for number, file in enumerate((data / "c").iterdir()):
        file.write_text(f'{{"id": {number}}}\n')
    domains, said = found(data)
    assert domains == {"code": 1, "web": 1}
    assert len(said) == 1
    assert said[0].startswith("left out: 6 files, all of c: ")
    assert "no column holds text" in said[0]
