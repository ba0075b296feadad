"""The same rows in two formats beside each other are read once, and the file that is not read is named."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from opmix_ray.config import SourceConfig
from opmix_ray.init.begin import look_at
from opmix_ray.init.discover import discover
from opmix_ray.sources.listing import expand
from opmix_ray.sources.source import iter_documents


def rows(word: str, many: int = 300) -> list[dict[str, Any]]:
    return [{"id": i, "text": f'{word} "{i}", a row\nof {i * 7 % 113} words, \u00e4'} for i in range(many)]


def write(path: Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in found)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found), path, row_group_size=50)
    elif path.suffix == ".arrow":
        feather.write_feather(pa.Table.from_pylist(found), path, compression="uncompressed")
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(found[0]), *(row.values() for row in found)])
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(found) if path.suffix == ".json" else lines)


KINDS = [".jsonl", ".jsonl.gz", ".parquet", ".arrow", ".json", ".csv"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_format_beside_it(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for ending in (".jsonl", kind):
        write(tmp_path / f"c{ending}", rows("c"))
    write(tmp_path / "web.jsonl", rows("web"))
    with caplog.at_level(logging.WARNING):
        assert [Path(file.path).name for file in expand(str(tmp_path), key="k")] == ["c.jsonl", "web.jsonl"]
    if kind not in (".json", ".csv") or len(caplog.records):
        assert f"c{kind}" in caplog.text
    for data in ([str(tmp_path)], sorted(map(str, tmp_path.iterdir())), [f"{tmp_path}/*"]):
        said: list[str] = []
        domains = look_at(data, said.append)
        assert {domain.name: domain.documents for domain in domains} == {"c": 300, "web": 300}
        assert f"c{kind}" in "\n".join(said)


def test_all_formats_of_one_text(tmp_path: Path) -> None:
    for kind in KINDS:
        write(tmp_path / "d" / f"c{kind}", rows("c"))
    assert sum(1 for _ in iter_documents(SourceConfig(path=str(tmp_path / "d")), "d")) == 300
    (part,) = discover([str(tmp_path)])
    assert [Path(file.path).name for file in part.files] == ["c.jsonl"]


def test_conversations_and_ids(tmp_path: Path) -> None:
    talks = [
        {"messages": [{"role": "user", "content": f"How? {i}"}, {"role": "assistant", "content": "So."}]}
        for i in range(9)
    ]
    ids = [{"input_ids": list(range(i, i + 9))} for i in range(9)]
    for name, found in (("talk", talks), ("ids", ids)):
        for kind in (".jsonl", ".parquet"):
            write(tmp_path / f"{name}{kind}", found)
    assert [Path(file.path).name for file in expand(str(tmp_path), key="k")] == ["ids.jsonl", "talk.jsonl"]


@pytest.mark.parametrize(
    "other",
    [
        rows("c", 299),
        rows("d"),
        [*rows("c", 299), {"id": 7, "text": "another"}],
        [{"id": 7, "text": "another"}, *rows("c")[1:]],
        [{"id": i} for i in range(300)],
    ],
)
def test_what_holds_something_else_is_read(other: list[dict[str, Any]], tmp_path: Path) -> None:
    write(tmp_path / "c.jsonl", rows("c"))
    write(tmp_path / "c.parquet", other)
    assert len(expand(str(tmp_path), key="k")) == 2


def test_rows_without_text_and_broken_files_are_no_twins(tmp_path: Path) -> None:
    numbers = [{"id": i} for i in range(5)]
    for kind in (".jsonl", ".parquet"):
        write(tmp_path / f"n{kind}", numbers)
    write(tmp_path / "b.jsonl", rows("b"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 broken")
    assert len(expand(str(tmp_path), key="k")) == 4
